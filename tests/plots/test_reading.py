"""Figures of readings show the table's numbers, their bands, and the controls beside the sides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from interp import plots
from interp.plots.tidy import tidy
from interp.runs.readings import JACOBIAN_LENS, LOGIT_LENS, PATCHSCOPE, WordLens
from interp.runs.view import NotMeasured, Run

LENSES = pytest.mark.parametrize(
    "lens", [LOGIT_LENS, JACOBIAN_LENS, PATCHSCOPE], ids=lambda one: one.name
)


@LENSES
def test_lines_carry_every_score_against_base(run: Run, lens: WordLens) -> None:
    drawn = tidy(plots.reading(run, lens))
    own = drawn[drawn["measure"] == lens.score]
    table = run.table[run.table["measure"] == lens.score]
    keys = ["condition", "reference", "queries", "position", "layer"]
    both = own.merge(table, on=keys)
    assert len(both) == len(own) == len(table)
    np.testing.assert_allclose(both["value_x"], both["value_y"], rtol=1e-6)
    assert set(own["condition"]) == {"prompt", "lora", "neutral", "random_lora"}


@pytest.mark.parametrize(
    ("lens", "ends"),
    [(LOGIT_LENS, (-1, 1)), (JACOBIAN_LENS, (-0.3, 1.7)), (PATCHSCOPE, (-0.5, 0.7))],
)
def test_the_band_is_that_of_random_differences(
    run: Run, lens: WordLens, ends: tuple[float, float]
) -> None:
    drawn = tidy(plots.reading(run, lens))
    band = drawn[drawn["measure"] == lens.random]
    assert set(zip(band["queries"], band["position"], strict=True)) == {
        ("matched", "last"), ("matched", "query"), ("unrelated", "last"),
    }  # fmt: skip
    np.testing.assert_allclose(band[["low", "high"]], np.tile(ends, (len(band), 1)))


def test_a_patchscope_without_intervals_names_none_and_says_its_prompt(run: Run) -> None:
    figure = plots.reading(run, PATCHSCOPE)
    hovers = [t.hovertemplate for t in figure.data if t.hovertemplate]
    assert hovers
    assert not any("interval" in hover for hover in hovers)
    assert any("interval" in t.hovertemplate for t in plots.reading(run).data if t.hovertemplate)
    assert "Neutral prompt: a <i>carrier</i> ?" in figure.layout.meta["caption"]
    assert (
        "Fitted on 30 texts under base" in plots.reading(run, JACOBIAN_LENS).layout.meta["caption"]
    )


def test_samples_stand_beside_random_directions_and_base_alone(run: Run) -> None:
    figure = plots.steered_samples(run)
    drawn = tidy(figure)
    keys = ["measure", "condition", "reference", "queries", "strength"]
    table = run.reading.steered
    both = drawn[drawn["strength"] > 0].merge(table, on=keys)
    assert len(both) == (drawn["strength"] > 0).sum() == (table["strength"] > 0).sum()
    for column in ("value", "ci_low", "ci_high", "n"):
        x, y = (both[f"{column}_{side}"].astype(float) for side in "xy")
        np.testing.assert_allclose(x, y, rtol=1e-6)
    alone = drawn[drawn["condition"] == "base"]
    assert len(alone) == 4  # in every panel: two groups, two strengths
    assert set(alone["difference_label"]) == {"base alone"}
    pairs = {c: run.reading.pairs.keys() >= {(c, "base")} for c in drawn["condition"].unique()}
    assert pairs == {
        "base": False, "prompt": True, "lora": True, "neutral": True, "random_lora": True,
    }  # fmt: skip
    assert [a.text for a in figure.layout.annotations if "1 x" in a.text] == [
        "1 x the mean difference on 64 matched texts",
        "1 x the mean difference on 32 unrelated texts",
    ]


@LENSES
def test_hostile_words_stay_text_in_the_caption(run: Run, lens: WordLens) -> None:
    figure = plots.reading(run, lens)
    for text in (figure.layout.meta["caption"], *(a.text for a in figure.layout.annotations)):
        if text != figure.layout.meta["caption"]:
            assert "<script" not in text
            assert "<img" not in text
    assert "\x00" not in str(figure.layout.annotations)


def test_the_channel_s_lines_and_marks_are_the_tables(run: Run) -> None:
    drawn = tidy(plots.channels(run))
    keys = ["measure", "condition", "reference", "position", "layer"]
    lines = drawn[drawn["measure"].str.startswith("channel_")]
    table = run.table[(run.table["site"] == "block") & run.table["measure"].isin(lines["measure"])]
    table = table[(table["reference"] == "lora") | (table["condition"] == "prompt")]
    both = lines.merge(table, on=keys)
    assert len(both) == len(lines) == len(table)
    np.testing.assert_allclose(both["value_x"], both["value_y"], rtol=1e-6)
    marks = drawn[drawn["measure"] == "direction_auroc"]
    wanted = run.table[run.table["measure"] == "direction_auroc"]
    assert len(marks) == len(wanted)
    assert set(marks["reference"]) == {"lora", "random_lora"}


def test_a_run_that_was_not_read_has_none(make_run: Callable[..., Run]) -> None:
    bare = make_run(read=False, n_layers=2)
    for figure in (plots.reading, plots.steered_samples):
        with pytest.raises(NotMeasured, match="interp read"):
            figure(bare)


def test_what_was_left_out_has_no_figure(run: Run) -> None:
    left_out = ("jacobian", "patchscope", "steered")
    kept = run.table[~run.table["measure"].str.startswith(left_out)]
    other = Run(run.path, kept, run.arrays, run.manifest)
    with pytest.raises(NotMeasured, match="no scores of a Jacobian lens"):
        plots.reading(other, JACOBIAN_LENS)
    with pytest.raises(NotMeasured, match="no scores of a patchscope"):
        plots.reading(other, PATCHSCOPE)
    with pytest.raises(NotMeasured, match="--steer"):
        plots.steered_samples(other)


def test_readings_without_words_have_tables_alone(run: Run) -> None:
    manifest = {**run.manifest, "reading": {**run.manifest["reading"], "words": []}}
    with pytest.raises(NotMeasured, match="--words"):
        plots.reading(Run(run.path, run.table, run.arrays, manifest))
