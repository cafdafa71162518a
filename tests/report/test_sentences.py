"""The sentences on a run's headline say nothing of a null that was not measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from manifests import named

from interp.runs.sentences import distances_by_layer, verdict_words
from interp.runs.view import Run, load_run


@pytest.fixture(scope="module")
def run(make_folder: Callable[..., Path]) -> Run:
    return load_run(make_folder(head_view=False, families=False, patched=False, weighed=False))


def against(run: Run, null: tuple[str, str] | None) -> Run:
    """The run with another null pair."""
    manifest = {**run.manifest, "null_pair": null and named(null)}
    return Run(run.path, run.table, run.arrays, manifest)


def test_the_null_stands_beside_the_headline(run: Run) -> None:
    assert "(null, neutral vs lora: " in verdict_words(run)
    assert distances_by_layer(run)["neutral vs lora"].notna().all()


@pytest.mark.parametrize("null", [None, ("random_lora", "lora")])
def test_a_null_without_rows_is_left_out(run: Run, null: tuple[str, str] | None) -> None:
    found = against(run, null)
    assert "nan" not in verdict_words(found)
    assert "null" not in verdict_words(found)
    assert not any("random_lora" in column for column in distances_by_layer(found))


def test_a_null_undefined_at_the_layer_is_left_out(run: Run) -> None:
    table = run.table.copy()
    null = (table["condition"] == "neutral") & (table["reference"] == "lora")
    named_layer = int(verdict_words(run).split("at layer ")[1].split(",")[0])
    table.loc[null & (table["layer"] == named_layer), "value"] = float("nan")
    assert "nan" not in verdict_words(Run(run.path, table, run.arrays, run.manifest))
