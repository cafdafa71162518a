"""Where the conditions of a run lie, layer by layer, in two dimensions.

    found = condition_maps(run, "last", "matched")
    found.points[layer, found.conditions.index("lora")]

Torch-free; nothing here draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from interp.families import aligned, classical_mds, distances
from interp.runs.view import NotMeasured, Run


class Maps(NamedTuple):
    """Coordinates `[layer, condition, 2]` and the share of variance that the map holds."""

    conditions: list[str]
    points: np.ndarray
    share: np.ndarray


def condition_maps(run: Run, position: str, queries: str) -> Maps:
    """The maps of all layers. Units: the layer's root mean square norm (without controls)."""
    gram = run.arrays.get("gram_resid_post")
    if gram is None or gram.sizes["condition"] < 3:
        raise NotMeasured("this run has no gram_resid_post of three conditions or more")
    gram = gram.sel(queries=queries)
    if "position" in gram.dims:
        gram = gram.sel(position=position)
    g = gram.transpose("layer", "condition", "condition2").values.astype(float)
    names = [str(name) for name in gram["condition"].values]
    aside = set(run.nulls)
    inner = [i for i, name in enumerate(names) if name not in aside]
    inner = inner if len(inner) >= 3 else list(range(len(names)))
    norms = np.sqrt(np.diagonal(g, axis1=1, axis2=2)[:, inner].mean(axis=1))
    d = distances(g) / norms[:, None, None]
    mds = classical_mds(d[:, inner][:, :, inner])
    turned = aligned(mds.coordinates)
    points = np.stack([_placed(d[x], inner, turned[x]) for x in range(len(d))])
    return Maps(names, points, mds.share.sum(axis=-1))


def _placed(d: np.ndarray, inner: list[int], points: np.ndarray) -> np.ndarray:
    """All conditions on a map of some, by their distances to these (Gower 1968)."""
    squares = d[inner][:, inner] ** 2
    pull = squares.mean(axis=1) - d[:, inner] ** 2
    placed = 0.5 * pull @ np.linalg.pinv(points).T
    placed[inner] = points
    return placed
