"""What `interp read` found, in the report and in a terminal; tokens stay text everywhere."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from interp.errors import RunError
from interp.report import channels, reading, reading_table, steered, write
from interp.runs.readings import JACOBIAN_LENS, PATCHSCOPE
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


def section(path: Path) -> str:
    """The section of the run's report, written anew."""
    write(path)
    page = (path / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<h2 id="reading">.*?(?=<h2 )', page, re.S)
    assert found, "no section"
    return found[0]


def test_the_strongest_reading_is_the_largest_of_the_table(run: Run) -> None:
    of = run.reading
    table = run.table[run.table["measure"] == "word_score"]
    rows = reading.strongest_table(of).rows
    assert len(rows) == len(of.pairs) * len(of.groups)
    for group, pair, where, score, p, *_ in rows:
        condition, reference = pair.text.split(" vs ")
        own = table[(table["condition"] == condition) & (table["reference"] == reference)]
        own = own[own["queries"] == group.text]
        best = own.loc[own["value"].idxmax()]
        assert score.text == number(best["value"])
        assert where.text == f"{best['layer']}, {best['position']}"
        assert p.text == f"{best['p_adjusted']:.2g}"


def test_sentences_say_what_the_numbers_do(run: Run) -> None:
    said = reading.reading_words(run.reading)
    assert len(said) == 4
    for line, (group, pair) in zip(
        said, [(g, p) for g in run.reading.groups for p in run.reading.own], strict=True
    ):
        best = run.reading.strongest(pair, group)
        assert best is not None
        named = best["p_adjusted"] <= 0.05 and best["value"] > 0
        assert (" names the task words" in line) == named
        assert f"largest score is {number(best['value'])} SD" in line
        assert "neutral vs base's" in line
        assert "than its control's by" in line


def test_the_section_has_tokens_as_text(path: Path) -> None:
    found = section(path)
    assert "<script" not in found
    assert "<img" not in found
    assert "\x00" not in found
    words = html.unescape(re.sub(r"<[^>]*>", " ", found))
    assert "</script><script>window.x=1</script>" in words
    assert "&lt;" in words
    assert "a note on <b>readings</b>" in words
    captions = ("The mean difference", "What mean differences say", "Leading directions")
    captions += ("Patchscope: the mean difference", "Steered samples: base writes")
    for caption in (*captions, "What prompts change along", "The directions of lora that write"):
        assert caption in words


def test_a_patchscope_s_sentences_say_what_controls_score(run: Run) -> None:
    of = run.reading
    said = reading.reading_words(of, PATCHSCOPE)
    assert len(said) == 4
    for line, (group, pair) in zip(said, [(g, p) for g in of.groups for p in of.own], strict=True):
        best = of.strongest(pair, group, PATCHSCOPE)
        assert best is not None
        assert line.startswith("In a patchscope, on ")
        assert f"largest score is {number(best['value'])} SD (layer" in line  # no interval
        place = (group, best["position"], best["layer"])
        beside = [of.row(PATCHSCOPE.score, c, *place) for c in of.pairs if c not in of.own]
        assert all(f"'s {number(row['value'])}," in line for row in beside if row)
        below = all(row["value"] < best["value"] for row in beside if row)
        assert line.endswith(", all below it." if below else ", not all below it.")


def test_the_jacobian_lens_has_table_sentences_and_tokens_of_its_own(run: Run) -> None:
    of = run.reading
    said = reading.reading_words(of, JACOBIAN_LENS)
    assert len(said) == 4
    rows = reading.strongest_table(of, JACOBIAN_LENS).rows
    for line, (group, pair) in zip(said, [(g, p) for g in of.groups for p in of.own], strict=True):
        best = of.strongest(pair, group, JACOBIAN_LENS)
        assert best is not None
        assert line.startswith("Through the Jacobian lens, on ")
        assert f"largest score is {number(best['value'])} SD [" in line
        assert "than its control's by" in line
        assert number(best["value"]) in [row[3].text for row in rows if row[0].text == group]
    found = reading.reading_section(run)
    assert found is not None
    assert found["fitted"] == "Fitted on 30 texts under base"
    captions = [table.caption for table in found["tokens"]]
    assert sum("through the Jacobian lens" in caption for caption in captions) == len(captions) / 2


@pytest.mark.parametrize(
    ("low", "verdict"),
    [
        (0.2, "more than all of these"),
        (0.05, "not told apart from random_lora vs base"),
        (0.0, "not told apart from any of these"),
    ],
)
def test_samples_are_told_from_every_null_or_these_are_named(
    run: Run, low: float, verdict: str
) -> None:
    """Of all nulls only the random LoRA writes any, up to 0.1; the side's interval starts at
    `low`."""
    table, numbers = run.table.copy(), ["value", "ci_low", "ci_high"]
    samples = table["measure"].isin(["steered_words", "steered_words_random"])
    table.loc[samples, numbers] = 0.0
    of_mean = table["measure"] == "steered_words"
    random = of_mean & (table["condition"] == "random_lora") & (table["position"] == "4 x mean")
    table.loc[random, numbers] = [0.05, 0.0, 0.1]
    own = of_mean & (table["condition"] == "lora") & (table["position"] == "1 x mean")
    table.loc[own, numbers] = [0.25, low, 0.5]
    said = steered.steering_words(Run(run.path, table, run.arrays, run.manifest).reading)
    assert len(said) == 4
    (line,) = (one for one in said if "of lora vs base on 32 unrelated" in one)
    nothing = "0.00 [0.00, 0.00]"
    assert line == (
        "Added to base at layer 1 (1 x), the mean difference of lora vs base on 32 unrelated texts "
        f"makes 0.250 [{number(low)}, 0.500] of the tokens written task words; base alone "
        f"{nothing}, a random direction {nothing}, neutral vs base {nothing}, random_lora vs base "
        f"0.0500 [0.00, 0.100]: {verdict}."
    )


def test_sentences_on_the_channel_follow_both_nulls(run: Run) -> None:
    of = run.reading.variables
    said = channels.variable_words(of)
    assert len(said) == 4
    for line, side in zip(said, ("read", "written"), strict=False):
        found = [of.overall(f"channel_{side}{e}", ("prompt", "lora"), "query")
                 for e in ("", "_excess", "_over_random")]  # fmt: skip
        assert all(found)
        over = all(row["ci_low"] > 0 for row in found[1:])
        assert (" uses this channel" in line) == over
        for row in found:
            assert number(row["value"]) in line
    assert "random LoRA's: " in said[2]


def test_the_terminal_fits_and_is_plain(run: Run) -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(reading_table(run))
    said = out.getvalue()
    assert max(map(len, said.splitlines())) <= 80
    assert "\x1b" not in said
    assert "\x00" not in said


def test_a_run_that_was_not_read(make_folder: Callable[..., Path]) -> None:
    path = make_folder(read=False, n_layers=2)
    write(path)
    assert 'id="reading"' not in (path / "report.html").read_text(encoding="utf-8")
    with pytest.raises(RunError, match="interp read"):
        reading_table(load_run(path))
