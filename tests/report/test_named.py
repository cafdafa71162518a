"""Only what differs from its null is named, beside its p; what was not tested is called so."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from interp.noise import NOISE
from interp.report import tables, text_table
from interp.runs import sentences
from interp.runs.largest import at_least, largest, standing
from interp.runs.view import Run, load_run

PAIR = ("prompt", "lora")


def map_of(values: list[float], p: list[float] | None = None) -> pd.DataFrame:
    shown = {"measure": "content_js", "value": values, "head": range(len(values))}
    return pd.DataFrame({**shown, "p_adjusted": p or [np.nan] * len(values)})


def test_the_largest_is_the_largest_of_those_that_differ() -> None:
    found = largest(map_of([0.5, 0.3, 0.4, 0.2], [0.108, 0.05, 0.87, 0.001]), "float32")
    assert found.row is not None
    assert (found.row["head"], found.p, found.tested) == (1, "p = 0.05", True)
    assert standing(map_of([0.5, 0.3], [0.108, 0.001]), "float32")["head"].tolist() == [1]


def test_where_none_differs_none_is_named_and_the_smallest_p_is_told() -> None:
    found = largest(map_of([0.5, 0.3], [0.999, 0.1189]), "float32")
    assert found.row is None
    assert found.none("head") == "no head differs from its null (p ≥ 0.11)"


def test_without_a_test_the_largest_is_called_not_tested_and_rounding_is_none() -> None:
    size = NOISE["float32"]
    found = largest(map_of([size**2, 1e-6, np.nan]), "float32")
    assert found.row is not None
    assert (found.row["head"], found.p) == (1, "not tested")
    nothing = largest(map_of([size**2, 0.0]), "float32")
    assert (nothing.row, nothing.none("head")) == (None, "no head has a value above rounding")
    assert largest(map_of([1e-4]), "bfloat16").row is None
    assert largest(map_of([]), "float32").row is None


@pytest.mark.parametrize(
    ("p", "said"), [(0.996, "0.99"), (0.3, "0.3"), (0.0789, "0.078"), (0.07, "0.07"), (0.1, "0.1")]
)
def test_a_bound_is_never_rounded_up(p: float, said: str) -> None:
    assert at_least(p) == f"p ≥ {said}"
    assert float(said) <= p
    assert at_least(1.0) == "p = 1"


# Where a run names a head or a layer ------------------------------------------------------------


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return load_run(folder)


def changed(run: Run, p: float, measure: str = "content_js") -> Run:
    """The run with another p of a measure (NaN: no test)."""
    table = run.table.copy()
    table.loc[table["measure"] == measure, "p_adjusted"] = p
    return Run(run.path, table, run.arrays, run.manifest)


def screen(run: Run, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(text_table(run))
    return out.getvalue()


def test_every_layer_names_its_largest_head_that_differs(run: Run) -> None:
    """The synthetic run tells every second layer from its control."""
    frame = run.rows("content_js", "pattern", PAIR, "last")
    for layer, row in enumerate(tables.layer_table(run).rows):
        own = frame[frame["layer"] == layer]
        best = own.loc[own["value"].idxmax()]
        assert row[-1].extra == ("" if layer % 2 else f"L{layer}H{best['head']} p=0.01")
        assert (row[-1].text == "–") == bool(layer % 2)
    said = " ".join(screen(run).split())
    assert "heads that differ from the null, p ≤ 0.05; –: no head of the layer does, p≥0.3" in said


def test_heads_that_were_not_tested_are_called_so(run: Run) -> None:
    untested = changed(run, np.nan)
    assert "largest content JS: not tested (no control)" in " ".join(screen(untested).split())
    assert all(" p=" not in row[-1].extra for row in tables.layer_table(untested).rows)
    assert tables.top_heads(untested).caption.startswith("Heads (not tested) with the largest")


def test_a_wide_terminal_shows_every_interval(run: Run) -> None:
    """Where they fit; the numbers are the same, and no line is wider than the terminal."""
    said = {width: screen(run, width) for width in (60, 80, 120, 200)}
    for width, text in said.items():
        assert max(map(len, text.splitlines())) <= width
    counts = {width: text.count("[interval]") for width, text in said.items()}
    assert counts[80] == 1 < counts[120] <= counts[200] == 5
    last = tables.layer_table(run).rows[-1]
    row = next(line for line in said[200].splitlines() if line.split()[:1] == [last[0].text])
    assert [cell.extra in row for cell in last[1:]] == [True] * len(last[1:])


def test_the_terminal_fits_80_columns(make_folder: Callable[..., Path]) -> None:
    run = load_run(make_folder(n_layers=32, n_heads=16, head_view=False, patched=False))
    table = run.table.copy()
    table.loc[table["measure"] == "content_js", ["value", "p_adjusted"]] = [0.0123, 0.00105]
    lines = screen(Run(run.path, table, run.arrays, run.manifest)).splitlines()
    rows = [line for line in lines if " p=0.001" in line]
    assert len(rows) == 32
    assert max(map(len, rows)) <= 80


def test_the_table_of_heads_holds_only_heads_that_differ(run: Run) -> None:
    table = tables.top_heads(run)
    assert table.rows
    assert all(int(row[0].text[1]) % 2 == 0 for row in table.rows)
    assert {row[2].text for row in table.rows} == {"0.01"}
    none = tables.top_heads(changed(run, 0.2))
    assert none.rows == []
    assert (
        none.caption == "Of content JS of prompt vs lora, no head differs from its null (p ≥ 0.2)."
    )


def test_the_verdict_names_a_layer_that_differs_or_none(run: Run) -> None:
    frame = run.rows("relative_l2", "resid_post", PAIR, "last")
    even = frame[frame["layer"] % 2 == 0]
    layer = even.loc[even["value"].idxmax(), "layer"]
    assert f"differ most at layer {layer}, " in sentences.verdict_words(run)
    assert "; p = 0.01);" in sentences.verdict_words(run)
    same = sentences.verdict_words(changed(run, 0.4, "relative_l2"))
    assert same.endswith("of the residual streams no layer differs from its null (p ≥ 0.4).")


def test_families_that_no_layer_tells_apart_are_said_so(run: Run) -> None:
    said = sentences.family_words(changed(run, 0.34, "divergence_index"))
    assert said[0].endswith("no layer differs from what relabelling gives (p ≥ 0.34).")
    assert " p = " not in " ".join(said)
