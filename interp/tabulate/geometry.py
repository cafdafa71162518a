"""Rows of the geometry of query states: similarity of two conditions, dimension of one.

geometry_rows(states, design, encoded, plan)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray
from scipy.spatial.distance import pdist, squareform

from interp.design import BASE, Design
from interp.geometry import Result, paired_similarity, probe_pair, single
from interp.measures.plan import Plan
from interp.noise import floor
from interp.queries import Encoded
from interp.registry import MEASURES
from interp.significance import benjamini_hochberg

ByLayer = Callable[[np.ndarray, np.ndarray], Mapping[str, Result]]


def geometry_rows(
    states: xr.DataArray, design: Design, queries: Sequence[Encoded], plan: Plan, position: str
) -> Iterator[dict[str, Any]]:
    """Every geometry measure with its chance level, and its calibrated form where it has one.
    States that lie apart by rounding alone (`plan.noise`) are one point; one point has no geometry.

    Pairs: the headline, its nulls, and both sides against base; without a headline, every kept
    condition against base.
    """
    states = states.copy(
        data=settled_states(states.values, float(floor("relative_l2", plan.noise)))
    )
    kept = states["condition"].values.tolist()
    sides = [(name, BASE) for name in design.headline or kept]
    wanted = [design.headline, *design.nulls.values(), *sides]
    pairs = [p for p in dict.fromkeys(wanted) if p and p[0] != p[1] and set(p) <= set(kept)]
    labels = [queries[i].label for i in states["query"].values]
    for a, b in pairs:
        found = _rows(a, b, states, lambda x, y: _compared(x, y, labels, plan))
        yield from (row | {"position": position} for row in found)
    for name in kept:
        found = _rows(name, None, states, lambda x, _: single(x, plan.seed))
        yield from (row | {"position": position} for row in found)


def settled_states(
    states: Float[ndarray, "*cloud query d_model"], noise: float
) -> Float[ndarray, "*cloud query d_model"]:
    """Clouds whose spread is within `noise` of their norm become their first point; in others, a
    point that lies within `noise` of earlier ones (relative to the points' size) becomes the first
    of these: where two queries differ by rounding alone, their distance says nothing."""
    found = np.array(states)
    for place in np.ndindex(states.shape[:-2]):
        cloud = found[place].astype(np.float64)
        if np.linalg.norm(cloud - cloud.mean(0)) <= noise * np.linalg.norm(cloud):
            found[place] = found[place][:1]
        else:
            size = np.sqrt((cloud**2).sum(-1).mean())
            same = squareform(pdist(cloud)) <= noise * size
            found[place] = found[place][same.argmax(1)]
    return found


def _compared(
    x: np.ndarray, y: np.ndarray, labels: Sequence[str | None], plan: Plan
) -> dict[str, Result]:
    found = dict(paired_similarity(x, y, plan.seed))
    if len(set(labels) - {None}) > 1:
        found |= probe_pair(x, y, labels, plan.seed)
    return found


def _rows(
    a: str, b: str | None, states: xr.DataArray, measured: ByLayer
) -> Iterator[dict[str, Any]]:
    """All layers of one pair or condition; p corrected over its layers."""
    own, other = (states.sel(condition=name).values for name in (a, b or a))
    layers = [measured(x, y) for x, y in zip(own, other, strict=True)]
    for measure in layers[0]:
        results = [layer[measure] for layer in layers]
        p = benjamini_hochberg(np.array([r.p for r in results], dtype=float))
        about = {"condition": a, "reference": b, "site": "resid_post", "queries": "matched"}
        for layer, result in enumerate(results):
            place = about | {"layer": layer, "n": result.n}
            yield place | {
                "measure": measure,
                "value": result.value,
                "ci_low": result.ci_low,
                "ci_high": result.ci_high,
                "p_adjusted": p[layer],
                "units": MEASURES[measure].units,
            }
            yield place | {
                "measure": f"{measure}_chance",
                "value": result.chance,
                "ci_low": result.chance_low,
                "ci_high": result.chance_high,
                "units": MEASURES[measure].units,
            }
            if b is not None:
                value = result.calibrated
                row = {"measure": f"{measure}_calibrated", "value": value, "units": "share"}
                yield place | row
