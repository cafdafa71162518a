"""What `interp weights` found, in the report and in a terminal: the run's numbers only."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from plots.synthetic_weights import MODULES, TOP
from rich.console import Console

from interp.errors import RunError
from interp.report import weights, weights_table, write
from interp.runs.files import WEIGHTS, write_run
from interp.runs.view import Run, load_run
from interp.showing import number


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures have tests of their own."""
    monkeypatch.setattr("interp.report.writing.figures", lambda run: {})


@pytest.fixture(scope="module")
def path(make_folder: Callable[..., Path]) -> Path:
    return make_folder()


@pytest.fixture(scope="module")
def run(path: Path) -> Run:
    return load_run(path)


def terminal(run: Run, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(weights_table(run))
    return out.getvalue()


def words(path: Path) -> str:
    """The section of the run's report, written anew, without its markup."""
    write(path)
    page = (path / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<h2 id="weights">.*?(?=<h2 )', page, re.S)
    assert found, "no section"
    return html.unescape(re.sub(r"<[^>]*>", " ", found[0]))


def test_a_row_per_condition_with_the_tables_numbers(run: Run) -> None:
    table = run.table[run.table["head"].isna() & run.table["layer"].notna()]
    table = table[~table["site"].fillna(":").str.contains(":")]
    rows = weights.by_condition(run.weights).rows
    assert [row[0].text for row in rows] == ["lora", "lora_1", "lora_2", "random_lora", "untrained"]
    for name, count, norm, rank, _, most, intruders in rows:
        own = table[table["condition"] == name.text].groupby("measure")["value"]
        assert count.text == str(4 * len(MODULES))
        assert norm.text == number(own.median()["relative_norm"])
        assert rank.text == number(own.median()["stable_rank"])
        assert most.text == number(own.max()["relative_norm"])
        found = own.sum()["intruder_dimensions"]
        assert intruders.text == f"{found:.0f} of {TOP * 4 * len(MODULES)}"


def test_pairs_stand_by_what_they_are(run: Run) -> None:
    of = run.weights
    rows = weights.subspace_table(of).rows
    assert [(row[0].text, row[1].text) for row in rows] == [
        ("within lora", "3"),
        ("lora – random_lora", "3"),
        ("lora – untrained", "3"),
        ("random_lora – untrained", "1"),
    ]
    family = ("lora", "lora_1", "lora_2")
    own = [e for e in of.found["alike"] if e["condition"] in family and e["reference"] in family]
    mean = sum(e["left"] for e in own) / 3
    assert rows[0][2].text == number(mean)
    assert rows[0][3].text == "0.125"
    assert f"written directions overlap by {number(mean)} (chance 0.12)" in weights.findings(of)[0]


def test_the_most_changed_matrices_and_heads_come_first(run: Run) -> None:
    of = run.weights
    table = run.table[
        (run.table["measure"] == "relative_norm") & (run.table["condition"] == "lora")
    ]
    for rows, there in (
        (weights.matrices(of).rows, table["head"].isna() & table["layer"].notna()),
        (weights.head_slice_table(of).rows, table["head"].notna()),
    ):
        wanted = table.loc[there, "value"].nlargest(len(rows)).map(number).tolist()
        assert [row[1].text for row in rows] == wanted
    assert re.fullmatch(r"L\d c_attn:[qkv], head \d", weights.head_slice_table(of).rows[0][0].text)


def test_the_section_shows_findings_notes_and_tables(path: Path) -> None:
    said = words(path)
    assert "within lora (3 pairs): written directions overlap by" in said
    assert "made up <b>too</b>" in said
    for caption in ("What each condition adds", "What lora changes most", "The heads that lora"):
        assert caption in said
    assert "undefined" not in said


def test_the_terminal_fits_80_columns_and_is_plain(run: Run) -> None:
    said = terminal(run)
    assert max(map(len, said.splitlines())) <= 80
    assert "\x1b" not in said
    assert "…" not in said
    assert 80 < max(map(len, terminal(run, 120).splitlines())) <= 120


def test_what_was_not_measured_is_a_dash(run: Run) -> None:
    table = run.table[run.table["measure"] != "intruder_dimensions"]
    bare = Run(run.path, table, run.arrays, run.manifest)
    rows = weights.by_condition(bare.weights).rows
    assert {row[-1].text for row in rows} == {"–"}
    assert {row[-1].text for row in weights.matrices(bare.weights).rows} == {"–"}


def test_a_run_that_was_not_weighed(make_folder: Callable[..., Path]) -> None:
    path = make_folder(weighed=False, n_layers=2)
    write(path)
    assert 'id="weights"' not in (path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(RunError, match="interp weights"):
        weights_table(load_run(path))


def test_a_run_made_anew_has_no_weights(make_folder: Callable[..., Path]) -> None:
    path = make_folder(n_layers=2)
    manifest = dict(load_run(path).manifest)
    for name in ("weights", "files", "arrays", "schema_version"):
        manifest.pop(name)
    write_run(path, [], {}, manifest)
    assert not (path / WEIGHTS).exists()
    assert load_run(path).table.empty
