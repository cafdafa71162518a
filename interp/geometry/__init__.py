"""Geometry over queries (docs/reference/metrics.md): how the states of many queries lie together.

    states = {"prompt": x, "lora": y}              # [query, d_model], rows paired, any float dtype
    paired_similarity(x, y, seed=0)["linear_cka"].calibrated  # 1 = identical, 0 = by chance
    single(x, seed=0)["intrinsic_dimension"].value
    probe_pair(x, y, labels, seed=0)["probe_transfer"].p
    kept = sample([query.key for query in queries], size=200, seed=0)

Each measure comes as a `Result`: its value, its interval over queries and what it is by chance.
Everything is numpy in float64; nothing here reaches torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import pdist, squareform

from interp.geometry.calibration import (
    Result,
    all_but_one_group,
    result,
    row_orders,
    undefined_result,
)
from interp.geometry.dimension import (
    NEIGHBOUR_SCALES,
    euclidean_distances,
    from_nearest,
    gride,
    two_nn,
)
from interp.geometry.dimension import SCALE as DIMENSIONS
from interp.geometry.similarity import (
    CKA,
    PROCRUSTES,
    Points,
    centred,
    compact,
    linear_cka,
    mutual_knn,
    neighbours,
    procrustes_distance,
)
from interp.geometry.transfer import Labels, Probes, probe_transfer

__all__ = [
    "PAIRED",
    "SINGLE",
    "Probes",
    "Result",
    "gride",
    "linear_cka",
    "mutual_knn",
    "paired",
    "probe",
    "probe_transfer",
    "procrustes_distance",
    "sample",
    "single",
    "two_nn",
]

PAIRED = ("linear_cka", "procrustes_distance", "mutual_knn")
"""Measures of `paired_similarity`, in the order in which a reader meets them."""

SINGLE = tuple(NEIGHBOUR_SCALES)
"""Measures of `single`: at ever coarser scales."""

_SHUFFLES = 30
"""How often coordinates are shuffled at most: every time all distances have to be found again."""


def paired_similarity(
    x: Points, y: Points, seed: int, permutations: int = 100
) -> dict[str, Result]:
    """Similarity of two conditions' states; by chance, with the rows of y in another order."""
    if len(x) != len(y):
        raise ValueError(f"rows are paired: {len(x)} of one condition, {len(y)} of the other")
    n = len(x)
    if centred(x) is None or centred(y) is None:
        return {name: undefined_result(n) for name in PAIRED}
    x, y = (compact(each.astype(np.float64)) for each in (x, y))
    orders, subsets = row_orders(n, permutations, seed), all_but_one_group(n, seed)
    results = {}
    for name, measure in zip(PAIRED, (CKA, PROCRUSTES, neighbours(n)), strict=True):
        a, b = measure.features(x), measure.features(y)
        if a is None or b is None:
            results[name] = undefined_result(n)
            continue
        replicates = [measure(x[kept], y[kept]) for kept in subsets]
        null = measure.permuted(a, b, orders)
        results[name] = result(measure.compare(a, b), replicates, null, n, measure.scale)
    return results


def single(x: Points, seed: int, permutations: int = _SHUFFLES) -> dict[str, Result]:
    """Dimension of one condition's states; by chance, with each coordinate shuffled over queries.

    The shuffled states have the same coordinates, each by itself: what their dimension exceeds
    that of the states by is how far coordinates vary together. p is of so low a dimension.
    """
    n, rng = len(x), np.random.default_rng(seed)
    between = euclidean_distances(x)
    if between is None:
        return {name: undefined_result(n) for name in NEIGHBOUR_SCALES}
    subsets = [between[np.ix_(kept, kept)] for kept in all_but_one_group(n, seed)]
    wide = x.astype(np.float64)
    shuffles = (rng.permuted(wide, axis=0) for _ in range(min(permutations, _SHUFFLES)))
    shuffled = [squareform(pdist(each)) for each in shuffles]
    near, *left = (np.sort(each, axis=1) for each in (between, *subsets, *shuffled))
    results = {}
    for name, n1 in NEIGHBOUR_SCALES.items():
        replicates, null = (
            [from_nearest(each, n1) for each in some]
            for some in (left[: len(subsets)], left[len(subsets) :])
        )
        results[name] = result(from_nearest(near, n1), replicates, null, n, DIMENSIONS)
    return results


def probe_pair(
    x_a: Points, x_b: Points, labels: Labels, seed: int, permutations: int = 100
) -> dict[str, Result]:
    """`probe_transfer` from a to b. With one a and many b, train `Probes` once instead."""
    trained = Probes.of(x_a, labels, seed)
    found = undefined_result(len(x_a)) if trained is None else trained.transfer(x_b, permutations)
    return {"probe_transfer": found}


def sample(keys: Sequence[str], size: int, seed: int) -> list[int]:
    """Which queries are kept, sorted: those whose keys, hashed with the seed, come first.

    A query is kept or not whatever the order of the others: shards agree on it. All of them where
    there are no more than `size`."""
    hashes = [hashlib.sha256(f"sample:{seed}:{key}".encode()).digest() for key in keys]
    return sorted(sorted(range(len(keys)), key=lambda i: (hashes[i], i))[:size])
