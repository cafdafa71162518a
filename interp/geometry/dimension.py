"""Of how many dimensions are the states of many queries? From distances to near neighbours alone.

    two_nn(x)             # x: [query, d_model]
    gride(x, n1=4)        # the same at a coarser scale: neighbours 4 and 8 instead of 1 and 2

Dimensions that noise alone fills show at the finest scale and vanish at coarser ones.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.optimize import brentq
from scipy.spatial.distance import pdist, squareform

from interp.geometry.calibration import MeasureRange
from interp.geometry.similarity import Points, centred

NEIGHBOUR_SCALES = {"intrinsic_dimension": 1, "gride_2": 2, "gride_4": 4, "gride_8": 8}
"""Measure -> n1: dimensions are read off the distances to neighbours n1 and 2 n1."""

_FEWEST = 10
"""Points with neighbours at a distance, below which a dimension is not estimated."""

SCALE = MeasureRange(0.0, np.inf, np.nan, -1)


def two_nn(x: Points) -> float:
    """TwoNN `d = N / Σ ln(r2/r1)`, `[0, inf)` dimensions: Facco et al. 2017, maximum likelihood.

    r1 and r2 are the distances of a point to its two nearest. No point is discarded (the paper
    fits without the largest tenth of the ratios; use `gride` against outliers), but those with a
    duplicate (r1 = 0), whose ratio is undefined. dadapy has N - 1 for N, also in `gride`. NaN where
    fewer than 10 points remain, with states that are not finite and where all points are as far
    from their second neighbour as from their first. It falls short of dimensions above some ten
    with a few hundred points.
    """
    return gride(x, 1)


def gride(x: Points, n1: int) -> float:
    """Gride, `[0, inf)` dimensions: TwoNN on neighbours n1 and n2 = 2 n1 (Denti et al. 2022).

    The root of the maximum-likelihood equation of `μ = r_n2 / r_n1`, whose density is `d (μ^d -
    1)^(n2-n1-1) / (μ^((n2-1)d+1) B(n2-n1, n1))` (eq. 3): there is one. With n1 = 1 it is `two_nn`.
    NaN as there, with r_n1 for r1, and where more than half of the others are neighbours (2 n2 >
    n - 1): the density would have to be constant over as many.
    """
    between = euclidean_distances(x)
    return float("nan") if between is None else from_nearest(np.sort(between, axis=1), n1)


def euclidean_distances(x: Points) -> Float[ndarray, "query other"] | None:
    """Euclidean, without a Gram: duplicates are exactly 0 apart. None where a state is not finite,
    or all are the same."""
    return None if centred(x) is None else squareform(pdist(x.astype(np.float64)))


def from_nearest(near: Float[ndarray, "query other"], n1: int) -> float:
    """`gride` of points of which the distances to all others are known, the nearest first (that is
    the point itself)."""
    n2, n = 2 * n1, len(near)
    if 2 * n2 > n - 1:
        return float("nan")
    r1, r2 = near[near[:, n1] > 0][:, [n1, n2]].T
    logs = np.log(r2 / r1)
    if len(logs) < _FEWEST or not logs.any():
        return float("nan")
    return _most_likely(logs, n1, n2)


def _most_likely(logs: Float[ndarray, "query"], n1: int, n2: int) -> float:
    """The d at which the log likelihood of `logs = ln μ` is greatest.

    d times its derivative, `N + (n2-n1-1) Σ u/(1 - e^-u) - (n2-1) Σ u` with u = d ln μ, falls
    from N(n2-n1) at 0; as `max(1, u) <= u/(1 - e^-u) <= 1 + u`, its root lies within the bracket.
    """
    most, total = len(logs) * (n2 - n1), logs.sum()

    def slope(d: float) -> float:
        u = d * logs
        inner = np.divide(u, -np.expm1(-u), out=np.ones_like(u), where=u > 0)
        return len(logs) + (n2 - n1 - 1) * inner.sum() - (n2 - 1) * u.sum()

    low, high = most / ((n2 - 1) * total), most / (n1 * total)
    if n2 - n1 == 1:
        return float(low)
    return float(brentq(slope, low * (1 - 1e-9), high * (1 + 1e-9), xtol=1e-12, rtol=1e-14))
