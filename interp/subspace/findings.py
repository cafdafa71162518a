"""From divergences by query to a run's rows: recovery by dimension, and the smallest that suffices.

    rows = recovery_rows(scores, dimensions, scale)
    smallest_dimension(scores, dimensions, width, scale, margin=0.1)      # value, low, high

All divergences are nats per answer; recovery is a ratio of sums over queries. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from interp.patching.effects import Resampling, equivalence_depth, move_rows, ratio
from interp.patching.sites import PatchSite
from interp.registry import MEASURES
from interp.runs.subspaces import APART, FULL, LEARNED, SIZE, measure_of_kind
from interp.statistics import Ratio, percentile_interval


class SwapScores(NamedTuple):
    """`KL(p_source ‖ p_patched)` of one move at one layer on one group of queries, by kind of
    basis and dimension; `full` and `apart` have one column."""

    source: str
    target: str
    layer: int
    queries: str
    near: Mapping[str, Float[ndarray, "query k"]]

    def recovery(self, kind: str, scale: Resampling) -> Ratio:
        """`1 - KL(source ‖ patched) / KL(source ‖ target)`, sums over queries."""
        near = self.near[kind]
        apart = np.broadcast_to(self.near[APART], near.shape)
        return ratio(apart - near, apart, scale)


def recovery_rows(
    scores: SwapScores, dimensions: Sequence[int], width: int, scale: Resampling, margin: float
) -> pd.DataFrame:
    """Rows of a run's table: recovery of every kind, its dimension as `position`; that of the whole
    state at position `all`; and the smallest dimension that is enough."""
    move = (scores.source, scores.target)
    parts = []
    for kind in scores.near:
        if kind == APART:
            continue
        labels = ["all"] if kind == FULL else [str(k) for k in dimensions]
        cells = [PatchSite("resid_post", scores.layer, None, label) for label in labels]
        estimate = scores.recovery(kind, scale).compute()
        parts.append(move_rows(move, cells, measure_of_kind(kind), estimate))
    parts.append(pd.DataFrame([_size_row(scores, dimensions, width, scale, margin)]))
    return pd.concat(parts, ignore_index=True).assign(queries=scores.queries)


def _size_row(
    scores: SwapScores, dimensions: Sequence[int], width: int, scale: Resampling, margin: float
) -> dict[str, Any]:
    value, low, high = smallest_dimension(scores, dimensions, width, scale, margin)
    return {
        "measure": SIZE,
        "condition": scores.source,
        "reference": scores.target,
        "site": "resid_post",
        "layer": scores.layer,
        "position": "all",
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": len(scale.weights),
        "units": MEASURES[SIZE].units,
    }


class SmallestDimension(NamedTuple):
    """A dimension of those compared, and the interval over bootstrap replicates."""

    value: float
    ci_low: float
    ci_high: float


def smallest_dimension(
    scores: SwapScores, dimensions: Sequence[int], width: int, scale: Resampling, margin: float
) -> SmallestDimension:
    """The smallest of 0, `dimensions` and `width` from which on the learned subspace recovers as
    much as the whole state, less `margin`. 0: there is no more to recover than that; `width`: no
    subspace compared is enough. NaN where nothing is apart."""
    learned, whole = (_values(scores.recovery(kind, scale)) for kind in (LEARNED, FULL))
    missing = np.concatenate([whole, whole - learned, np.zeros_like(whole)], axis=1)
    grid = np.array([0, *dimensions, width], dtype=float)
    at = equivalence_depth(missing, margin)
    found = np.interp(at, range(len(grid)), grid)  # NaN stays NaN
    low, high = percentile_interval(found[1:])
    return SmallestDimension(float(found[0]), float(low), float(high))


def _values(total: Ratio) -> Float[ndarray, "replicate k"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return (total.numerator / total.denominator)[..., 0]


# --- in words ------------------------------------------------------------------------------------


def subspace_words(
    table: pd.DataFrame, moves: Sequence[tuple[str, str]], dimensions: Sequence[int], margin: float
) -> Iterator[str]:
    """A sentence per move, from the rows of the queries that the subspaces were not learned on: at
    the layer where the fewest dimensions are enough (the earliest of equals)."""
    scored = table[table["queries"] == "matched"]
    for source, target in moves:
        own = scored[(scored["condition"] == source) & (scored["reference"] == target)]
        sizes = own[own["measure"] == SIZE].dropna(subset=["value"])
        if sizes.empty:
            continue
        best = sizes.loc[sizes["value"].idxmin()]
        here = own[own["layer"] == best["layer"]].set_index(["measure", "position"])
        yield _sentence(here, best, dimensions, margin)


def _sentence(here: pd.DataFrame, best: pd.Series, dimensions: Sequence[int], margin: float) -> str:
    source, target, k = best["condition"], best["reference"], int(best["value"])
    whole = _number(here, FULL, "all")
    where = f"{source} into {target}, layer {best['layer']}"
    ends = "" if np.isnan(best["ci_low"]) else f" [{best['ci_low']:.0f}, {best['ci_high']:.0f}]"
    if k not in dimensions:
        most = str(dimensions[-1])
        why = (
            f"the whole state recovers {whole}, within {margin:g} of nothing"
            if k == 0
            else f"{most} dimensions recover {_number(here, LEARNED, most)} of the whole state's "
            f"{whole}, which is not within {margin:g}"
        )
        return f"{where}: {why}."
    noun = "dimension recovers" if k == 1 else "dimensions recover"
    beside = ", ".join(
        f"{name} {_number(here, kind, str(k), interval=False)}"
        for kind, name in _BESIDE.items()
        if (measure_of_kind(kind), str(k)) in here.index
    )
    return (
        f"{where}: {k}{ends} {noun} {_number(here, LEARNED, str(k))} of the behaviour, the whole "
        f"state {whole}; beside it {beside}."
    )


_BESIDE = {
    "principal": "the principal directions",
    "shuffled": "other queries' states",
    "random_difference": "an unrelated difference of the same length",
    "random_rotation": "random directions",
    "crossed": "the other condition's subspace",
}


def _number(here: pd.DataFrame, kind: str, position: str, *, interval: bool = True) -> str:
    row = here.loc[(measure_of_kind(kind), position)]
    ends = f" [{row['ci_low']:.2f}, {row['ci_high']:.2f}]"
    return f"{row['value']:.2f}" + (ends if interval and not np.isnan(row["ci_low"]) else "")
