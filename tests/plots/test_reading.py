"""The figure of readings shows the table's numbers, its band, and the controls beside the sides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from interp import plots
from interp.plots.tidy import tidy
from interp.runs.view import NotMeasured, Run


def test_lines_carry_every_score_against_base(run: Run) -> None:
    drawn = tidy(plots.reading(run))
    own = drawn[drawn["measure"] == "word_score"]
    table = run.table[run.table["measure"] == "word_score"]
    keys = ["condition", "reference", "queries", "position", "layer"]
    both = own.merge(table, on=keys)
    assert len(both) == len(own) == len(table)
    np.testing.assert_allclose(both["value_x"], both["value_y"], rtol=1e-6)
    assert set(own["condition"]) == {"prompt", "lora", "neutral", "random_lora"}


def test_the_band_is_that_of_random_differences(run: Run) -> None:
    drawn = tidy(plots.reading(run))
    band = drawn[drawn["measure"] == "word_score_random"]
    assert set(zip(band["queries"], band["position"], strict=True)) == {
        ("matched", "last"), ("matched", "query"), ("unrelated", "last"),
    }  # fmt: skip
    assert set(band["low"]) == {-1}
    assert set(band["high"]) == {1}


def test_hostile_words_stay_text_in_the_caption(run: Run) -> None:
    figure = plots.reading(run)
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
    with pytest.raises(NotMeasured, match="interp read"):
        plots.reading(make_run(read=False, n_layers=2))


def test_readings_without_words_have_tables_alone(run: Run) -> None:
    manifest = {**run.manifest, "reading": {**run.manifest["reading"], "words": []}}
    with pytest.raises(NotMeasured, match="--words"):
        plots.reading(Run(run.path, run.table, run.arrays, manifest))
