"""What `interp patch` found, in the report and in a terminal: the run's numbers, and only these."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from plots import synthetic
from report import synthetic_patching
from rich.console import Console

from interp.errors import RunError
from interp.report import lora_parts, patch_table, patching, write
from interp.report.patching_lines import MOST_LAYERS, short, shown_layers
from interp.runs.files import INTERCHANGE
from interp.runs.patched import Patched
from interp.runs.view import Run, load_run
from interp.showing import number

HOSTILE = ("</td><script>window.y=1</script>", "[bold]%{z}\x1b[31m\n")


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures have tests of their own."""
    monkeypatch.setattr("interp.report.writing.figures", lambda run: {})


@pytest.fixture(scope="module")
def make(make_folder: Callable[..., Path]) -> Callable[..., Path]:
    """A small run that `interp patch` has been over; keywords are those of its findings."""

    def folder(n_layers: int = 4, **options: object) -> Path:
        path = make_folder(families=False, n_layers=n_layers, patched=False)
        synthetic_patching.patch(path, n_layers=n_layers, **options)
        return path

    return folder


@pytest.fixture(scope="module")
def run(make: Callable[..., Path]) -> Run:
    return load_run(make())


@pytest.fixture
def of(run: Run) -> Patched:
    return run.interchange


def terminal(run: Run, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(patch_table(run))
    return out.getvalue()


def section(path: Path) -> str:
    """The markup of the section in the run's report, written anew."""
    write(path)
    page = (path / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<h2 id="patching">.*?(?=<h2 )', page, re.S)
    assert found, "no section"
    return found[0]


def words(markup: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", markup))


def exactly(run: Run, **wanted: object) -> float:
    """The value of the one row that these columns name."""
    table = run.table
    for name, value in wanted.items():
        table = table[table[name].isna() if value is None else (table[name] == value).fillna(False)]
    return table["value"].item()


# Section ----------------------------------------------------------------------------------------


def test_a_run_without_it_says_how_to_add_it(make_folder: Callable[..., Path]) -> None:
    path = make_folder(families=False, n_layers=2, patched=False)
    write(path)
    page = (path / "report.html").read_text(encoding="utf-8")
    assert "<code>interp patch RUN</code> adds it" in page
    assert "Activation patching:" not in page
    assert 'href="#patching"' not in page
    with pytest.raises(RunError, match="interp patch"):
        patch_table(load_run(path))


def test_the_section_opens_with_the_verdict(make: Callable[..., Path]) -> None:
    path = make()
    markup = section(path)
    assert markup.split("</h2>")[1].lstrip().startswith('<p class="found">prompt&#39;s state works')
    assert 'href="#patching"' in (path / "report.html").read_text(encoding="utf-8")
    for title in (
        "Segments",
        "Heads",
        "A few heads together",
        "First-order estimates",
        "Parts of the LoRA",
    ):
        assert f'<h3 class="part">{title}</h3>' in markup
    assert "directions of &lt;b&gt;DoRA&lt;/b&gt; are not taken apart" in markup
    assert "Putting base's own states back into its run changes logits by 0." in words(markup)


def test_what_was_not_asked_for_is_not_there(make: Callable[..., Path]) -> None:
    path = make(minimal=True)
    markup, said = section(path), terminal(load_run(path))
    assert '<h3 class="part">' not in markup
    assert "Best layer before the last" in markup
    assert "nats per answer" not in said
    for title in (
        "Segments",
        "Heads",
        "Few heads",
        "Function vectors",
        "attribution",
        "LoRA",
        "By-products",
    ):
        assert title not in said


def test_the_layers_numbers_are_the_tables(run: Run, of: Patched) -> None:
    shown = patching.interchange_table(of)
    wanted = [
        ("damage", "prompt", "lora"),
        ("damage", "lora", "prompt"),
        ("damage", "base", "lora"),
        ("damage_random_difference", "prompt", "lora"),
        ("recovery", "prompt", "base"),
        ("recovery", "lora", "base"),
        ("relative_damage", "prompt", "lora"),
        ("relative_damage", "lora", "prompt"),
    ]
    for layer, row in enumerate(shown.rows):
        at = {"site": "resid_post", "layer": layer, "position": "all", "head": None}
        values = [exactly(run, measure=m, condition=s, reference=t, **at) for m, s, t in wanted]
        assert [cell.text for cell in row] == [str(layer), *map(number, values)]
        assert row[1].extra == f"[{number(0.9 * values[0])}, {number(1.1 * values[0])}]"
        line = next(li for li in terminal(run).splitlines() if li.split()[:1] == [str(layer)])
        numbers = re.sub(r"\[[^]]*\]", "", line).split()  # as many intervals as there is room for
        assert numbers[1] == short(values[0])
        assert numbers[-4:-2] == [short(values[2]), short(values[3])]
        assert numbers[-1] == f"{values[5]:.3f}"


def test_the_heads_numbers_are_the_tables(run: Run, of: Patched) -> None:
    table = patching.head_table(of)
    assert [row[0].text for row in table.rows] == ["L1H0", "L2H1", "L0H0", "L0H2", "L3H1"]
    at = {"site": "z", "layer": 2, "head": 1}
    lost = exactly(run, measure="damage", condition="base", reference="lora", **at)
    won = exactly(run, measure="recovery", condition="prompt", reference="base", **at)
    assert (table.rows[1][2].text, table.rows[1][3].text) == (number(lost), number(won))


def test_a_segment_stands_beside_the_others_of_its_move(of: Patched) -> None:
    rows = [[cell.text for cell in row] for row in patching.segment_table(of).rows]
    assert rows == [
        ["prompt → base", "query", "1", "0.250", "27"],
        ["prompt → base", "answer", "1", "0.750", "27"],
        ["lora → base", "query", "1", "undefined", "27"],
        ["lora → base", "answer", "1", "undefined", "27"],
    ]


def test_a_ranking_that_is_undefined_is_not_compared(of: Patched) -> None:
    assert [row[0].text for row in patching.head_overlap_table(of).rows] == ["lost"]


def test_a_function_vector_stands_at_its_best_layer_beside_its_controls(
    run: Run, of: Patched
) -> None:
    _, heads, layer, *values = patching.function_vectors(of).rows[0]
    at = {"condition": "prompt", "position": "last", "layer": 1}
    controls = [exactly(run, measure=f"function_vector_{c}", **at) for c in ("null", "random")]
    assert (heads.text, layer.text) == ("L1H0, L2H1, L0H0", "1")
    assert [cell.text for cell in values] == ["0.600", *map(number, controls)]


def test_greedy_steps_stand_side_by_side_and_end(of: Patched) -> None:
    rows = [[cell.text for cell in row] for row in patching.greedy(of).rows]
    assert rows == [
        ["1", "L1H0", "0.610", "L1H0", "0.310"],
        ["2", "L2H1", "0.930", "", ""],
        ["", "all heads", "0.970", "all heads", "0.970"],
    ]


def test_attribution_stands_by_site_and_move(of: Patched) -> None:
    table = patching.attribution_table(of)
    assert table.columns[2:] == ["prompt → lora", "lora → prompt", "prompt → base"]
    rows = [[cell.text for cell in row] for row in table.rows]
    assert rows == [
        ["head outputs by head", "12", "0.87", "0.83", "–"],
        ["residual stream by layer", "4", "–", "–", "undefined"],
    ]


def test_another_pair_than_the_headline_has_its_own_certificate(make: Callable[..., Path]) -> None:
    assert "NOT CERTIFIED: no match certificate" in words(section(make(pair=("neutral", "lora"))))
    turned = make(pair=("lora", "prompt"))
    assert "CERTIFIED" not in section(turned)
    assert terminal(load_run(turned)).startswith("PASS lora vs prompt, matched: mean JS 0.0120")


def test_names_stay_text(make: Callable[..., Path]) -> None:
    path = make(pair=HOSTILE)
    markup, said = section(path), terminal(load_run(path))
    assert "<script>" not in markup
    assert HOSTILE[0] in words(markup)
    assert "[bold]%{z}␛[31m␊" in words(markup)
    assert "[bold]%{z}␛[31m␊" in re.sub(r"\n *", "", said)
    assert "\x1b" not in said


# Parts of the LoRA ------------------------------------------------------------------------------


def test_what_the_output_needs_and_what_it_does_not(of: Patched) -> None:
    needed, products = lora_parts.ablation_table(of), lora_parts.by_products(of)
    assert needed.rows[0][1].text == "layer 1"
    assert len(needed.rows) == 7  # layer 1, its modules and their directions
    assert all("1" in row[1].text for row in needed.rows)
    assert "7 of 28 do." in needed.caption
    assert [row[1].text for row in products.rows[:2]] == [
        "layer 2",
        "model.layers.2.self_attn.q_proj",
    ]
    assert not any("1" in row[1].text.split(".")[2:3] for row in products.rows)


def test_keeping_a_part_alone_is_not_leaving_it_out(of: Patched) -> None:
    assert max(part.number("ablation_damage") for part in lora_parts.parts(of)) < 1


def test_the_strongest_of_every_kind(of: Patched) -> None:
    names = [row[1].text for row in lora_parts.strongest(of, "lora").rows]
    module = "model.layers.1.self_attn.q_proj"
    assert names == ["layer 1", module, f"{module}, direction 0"]
    assert lora_parts.strongest(of, "prompt").rows == []


def test_few_directions_are_in_their_order(of: Patched) -> None:
    rows = [[cell.text for cell in row] for row in lora_parts.few_directions(of).rows]
    assert rows == [["lora", str(k), "–", number(0.45 * k)] for k in range(3)]


# Terminal ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_layers", "scale"), [(4, 1e-9), (4, 1e5), (30, 1.0)])
def test_the_terminals_table_fits_80_columns(
    make: Callable[..., Path], n_layers: int, scale: float
) -> None:
    said = terminal(load_run(make(n_layers=n_layers, scale=scale)), width=80)
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said


def test_the_terminals_table_has_no_colours_without_a_terminal(run: Run) -> None:
    assert "\x1b" not in terminal(run)


def test_a_wide_terminal_shows_more_intervals_and_the_same_numbers(run: Run) -> None:
    narrow, wide = (terminal(run, width=width) for width in (80, 200))
    assert max(map(len, narrow.splitlines())) <= 80 < max(map(len, wide.splitlines())) <= 200
    assert wide.count("[interval]") > narrow.count("[interval]") == 2
    for layer in run.interchange.layers:
        one, other = (re.search(rf"^ +{layer} .*$", said, re.M) for said in (narrow, wide))
        assert one
        assert other
        assert re.sub(r" \[.*?\]", "", one[0]).split() == re.sub(r" \[.*?\]", "", other[0]).split()


def test_many_layers_are_thinned_and_the_last_stays(make: Callable[..., Path]) -> None:
    of = load_run(make(n_layers=30, minimal=True)).interchange
    assert of
    assert len(shown_layers(of)) <= MOST_LAYERS + 1
    assert (shown_layers(of)[0], shown_layers(of)[-1]) == (0, 29)
    assert "not every layer is shown" in re.sub(r"\n *", " ", terminal(of.run))
    assert len(patching.interchange_table(of).rows) == 30


def test_what_is_undefined_is_never_a_number(make: Callable[..., Path]) -> None:
    path = make(scale=float("nan"))
    for text in (words(section(path)), terminal(load_run(path))):
        assert not re.search(r"\b(nan|NaN|None|inf|<NA>)\b", text)
    assert "from no layer on" in terminal(load_run(path))


def test_every_finding_has_its_line(run: Run) -> None:
    assert "nats per answer that the output moves" in re.sub(r"\s+", " ", terminal(run))
    said = re.sub(r"\s+", " ", terminal(run))
    for line in (
        "Damage stays within 0.02 nats in both directions from no layer on.",
        "prompt → lora layer 2: damage 0.0123 [0.0100, 0.0150]; prompt → base layer 2: recovery "
        "undefined (source and target say the same already).",
        "Segments (recovery in base; layers chosen on one half, scored on the other, n = 27): "
        "prompt acts most through answer 0.750 [0.700, 0.800] at layer 1 (query 0.250 [0.200, "
        "0.300] at layer 1); lora acts most through query undefined (source and target say the "
        "same already) at layer 1 (answer undefined (source and target say the same already) at "
        "layer 1).",
        "Heads (not tested one by one): most is lost without L1H0, L2H1, L0H0 under prompt; L1H0, "
        "L0H2, L3H1 under lora; 33 % of the strongest 3 in common, p = 0.25.",
        "Few heads: 2 together give base 0.930 [0.900, 0.950] of prompt's behaviour (L1H0, L2H1);",
        "Few heads: 1 together give base 0.310 [0.200, 0.400] of lora's behaviour (L1H0); 90 % is "
        "not reached; all heads 0.970.",
        "Spearman, median of moves: head outputs by head 0.85 (0.83 to 0.87).",
        "Effect kept by the k largest directions of every module: lora, k = 0: 0.00;",
        "Damage of more than 5 % of the LoRA's whole effect, without part of lora [nats]: layer 1 "
        "0.900 [0.810, 0.990]; model.layers.1.self_attn.q_proj 0.450",
        "By-products (much internal change, damage up to 5 % of the LoRA's whole effect): lora, "
        "layer 2: change 0.800",
    ):
        assert line in said


# Nothing stale ----------------------------------------------------------------------------------


def test_patching_again_leaves_nothing_of_before(make: Callable[..., Path]) -> None:
    path = make()
    section(path)
    synthetic_patching.patch(path, minimal=True)
    assert "Parts of the LoRA" not in section(path)
    assert not load_run(path).table["measure"].str.startswith("ablation").any()


def test_a_run_made_anew_has_no_interchange(make: Callable[..., Path]) -> None:
    path = make()
    section(path)
    synthetic.write(path, families=False, patched=False)
    write(path)
    assert 'id="patching">Whether' in (path / "report.html").read_text(encoding="utf-8")
    assert not (path / INTERCHANGE).exists()
    assert not (load_run(path).table["measure"] == "damage").any()


def test_the_report_is_a_view(make: Callable[..., Path]) -> None:
    path = make()
    section(path)
    before = (path / "report.html").read_bytes()
    section(path)
    assert (path / "report.html").read_bytes() == before
