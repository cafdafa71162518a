"""Measures of geometry against their definitions, written out independently, on random matrices.

Float64; each returns the largest absolute difference over the matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy import ndarray
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import cKDTree

from interp.geometry import linear_cka, mutual_knn, procrustes_distance, two_nn
from interp.validation.outcome import Reading, largest_or_nan

_BOUND = 1e-8
_SHAPES = ((40, 5), (60, 30), (24, 50))
"""Queries and width: more of either."""


def _matrices(seed: int = 0) -> Iterator[tuple[ndarray, ndarray]]:
    """Two conditions that have something in common."""
    rng = np.random.default_rng(seed)
    for n, width in _SHAPES:
        x = rng.standard_normal((n, width))
        yield x, x @ rng.standard_normal((width, width)) + rng.standard_normal((n, width))


def _cka(x: ndarray, y: ndarray) -> float:
    """Debiased linear CKA with the traces of Murphy et al. 2405.01012, eq. 3."""

    def hsic(k: ndarray, m: ndarray) -> float:
        n = len(k)
        one = np.ones(n)
        sums = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + sums - 2 * (one @ k @ m @ one) / (n - 2)) / (n * (n - 3))

    k, m = (z @ z.T - np.diag(np.square(z).sum(1)) for z in (x, y))
    return hsic(k, m) / float(np.sqrt(hsic(k, k) * hsic(m, m)))


def _procrustes(x: ndarray, y: ndarray) -> float:
    """`sqrt(2 - 2 ‖X'Y‖_*)` (Williams et al. 2110.14739), the nuclear norm from scipy."""
    x, y = (z - z.mean(0) for z in (x, y))
    _, nuclear = orthogonal_procrustes(x / np.linalg.norm(x), y / np.linalg.norm(y))
    return float(np.sqrt(2 - 2 * nuclear))


def _shared_neighbours(x: ndarray, y: ndarray) -> float:
    """Mean share of common neighbours (Huh et al. 2405.07987, app. A) from sets of a k-d tree: on
    the unit sphere the nearest by distance are the nearest by cosine."""
    k = min(10, (len(x) - 1) // 4)
    unit = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    near = [cKDTree(z).query(z, k + 1)[1][:, 1:] for z in unit]
    return float(np.mean([len({*a} & {*b}) / k for a, b in zip(*near, strict=True)]))


def _dimension(x: ndarray) -> float:
    """TwoNN `N / Σ ln(r2/r1)` (Facco et al. 2017) with distances of a k-d tree."""
    _, r1, r2 = cKDTree(x).query(x, 3)[0].T
    return float(len(x) / np.log(r2 / r1).sum())


def _compared(ours: Callable[..., float], theirs: Callable[..., float], pairs: bool) -> Reading:
    gaps = []
    for x, y in _matrices():
        cases = [(x, y), (y, x)] if pairs else [(x,), (y,)]
        gaps += [abs(ours(*case) - theirs(*case)) for case in cases]
    return Reading(largest_or_nan(gaps), _BOUND)


PUBLISHED_CHECKS: dict[str, Callable[[], Reading]] = {
    "CKA": lambda: _compared(linear_cka, _cka, True),
    "Procrustes": lambda: _compared(procrustes_distance, _procrustes, True),
    "mutual kNN": lambda: _compared(mutual_knn, _shared_neighbours, True),
    "TwoNN": lambda: _compared(two_nn, _dimension, False),
}
"""Name -> a measure's largest difference from its definition."""
