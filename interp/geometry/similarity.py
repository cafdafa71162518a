"""Do two conditions lay the same queries out alike? CKA, Procrustes and shared neighbours.

    linear_cka(x, y)              # x, y: [query, d_model], rows paired
    procrustes_distance(x, y)
    mutual_knn(x, y)

A measure is made of `features` of one condition and a `compare` of two. Breaking the row pairing
only re-orders the features of one, so a permutation costs an inner product, not a measurement.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from interp.geometry.calibration import MeasureRange

_NEIGHBOURS = 10
"""k of `mutual_knn`, where there are queries enough."""

_DECIMALS = 12
"""Cosines that are equal to so many decimals are tied."""

Points = Float[ndarray, "_query d_model"]
"""States of one condition. That rows are paired is checked where they meet, also outside tests."""

_Orders = Int[ndarray, "permutation query"]


@dataclass(frozen=True)
class _Paired:
    """A measure of two conditions whose rows are the same queries."""

    scale: MeasureRange
    features: Callable[[Points], ndarray | None]
    """What a comparison needs of one condition; None where it is undefined."""
    compare: Callable[[ndarray, ndarray], float]
    permuted: Callable[[ndarray, ndarray, _Orders], list[float]]
    """The comparison with the second condition's rows in each order."""

    def __call__(self, x: Points, y: Points) -> float:
        """The measure; NaN where either condition's features are undefined."""
        if len(x) != len(y):
            raise ValueError(f"rows are paired: {len(x)} of one condition, {len(y)} of the other")
        a, b = self.features(x), self.features(y)
        return float("nan") if a is None or b is None else self.compare(a, b)


def linear_cka(x: Points, y: Points) -> float:
    """Debiased linear CKA, `[-1, 1]`: 1 = same Gram up to scale, 0 in expectation by chance.

    With zero-diagonal Grams K, L: `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`, `HSIC(K, L) =
    [tr(KL) + (1'K1)(1'L1)/((n-1)(n-2)) - 2·1'KL1/(n-2)] / (n(n-3))` (Murphy et al. 2405.01012,
    eq. 3, after Song et al. 2012). It is computed as the cosine of the U-centred Grams (Székely &
    Rizzo 2014), which is equal, does not cancel, and has no negative radicand. NaN with fewer than
    4 queries, with states that are not finite, and where a radicand is 0: all rows of a condition
    are the same to rounding, or all are as far from each other.
    """
    return CKA(x, y)


def procrustes_distance(x: Points, y: Points) -> float:
    """`min_R ‖X - YR‖ = sqrt(2 - 2‖X'Y‖_*)`, `[0, sqrt 2]`, a metric: 0 = same up to rotation.

    X and Y are centred by column and have Frobenius norm 1; R is any orthogonal matrix (Williams
    et al. 2110.14739, eq. 4). Blind to rotation, reflection, scale and translation. With fewer
    queries than dimensions it is small by chance alone: read it calibrated. NaN with fewer than
    2 queries, with states that are not finite and where all rows of a condition are the same.
    """
    return PROCRUSTES(x, y)


def mutual_knn(x: Points, y: Points, k: int = _NEIGHBOURS) -> float:
    """Mean over queries of `|N_k^a(i) ∩ N_k^b(i)| / k`, `[0, 1]`, neighbours by cosine.

    Huh et al. 2405.07987, app. A; chance is `k/(n-1)`. No more than a quarter of the others are
    neighbours: `k = min(k, (n-1)//4)`. Where several queries tie for the last places they share
    them: each is a neighbour by an equal part, and two parts have their minimum in common. So the
    result depends neither on the order of queries nor on chance. NaN with fewer than 5 queries,
    with states that are not finite or zero, and where all rows of a condition are the same.
    """
    return neighbours(len(x), k)(x, y)


# Features ---------------------------------------------------------------------------------------


def centred(x: Points) -> Points | None:
    """The rows about their mean, in float64; None where they are the same to their rounding."""
    if len(x) < 2 or not np.isfinite(x).all():
        return None
    rounding = 8 * np.finfo(x.dtype).eps
    wide = x.astype(np.float64)
    about = wide - wide.mean(0)
    return about if np.linalg.norm(about) > rounding * np.linalg.norm(wide) else None


def _direction(x: Points) -> ndarray | None:
    """The U-centred Gram, of Frobenius norm 1."""
    about, n = centred(x), len(x)
    if about is None or n < 4:
        return None
    gram = about @ about.T
    size = np.linalg.norm(gram)
    np.fill_diagonal(gram, 0)
    row = gram.sum(0) / (n - 2)
    gram += gram.sum() / ((n - 1) * (n - 2)) - row - row[:, None]
    np.fill_diagonal(gram, 0)
    length = np.linalg.norm(gram)
    return gram / length if length > 1e-12 * size else None


def _shape(x: Points) -> ndarray | None:
    """Centred and of norm 1, in coordinates of which there are no more than queries."""
    about = centred(x)
    return None if about is None else compact(about / np.linalg.norm(about))


def _shares(x: Points, k: int) -> ndarray | None:
    """By how much `[query, other]` is a neighbour; rows sum to k."""
    lengths = np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    if k < 1 or centred(x) is None or not lengths.all():
        return None
    unit = x / lengths
    near = np.round(unit @ unit.T, _DECIMALS)
    np.fill_diagonal(near, -np.inf)
    last = np.partition(near, -k, axis=1)[:, -k, None]
    closer, tied = near > last, near == last
    left = k - closer.sum(1, keepdims=True)
    return closer + tied * (left / tied.sum(1, keepdims=True))


def compact(x: Points) -> Float[ndarray, "query coordinate"]:
    """The same points in at most as many coordinates as points: distances and angles stay."""
    if x.shape[1] <= len(x):
        return x
    return np.asarray(np.linalg.qr(x.T, mode="r")).T


# Comparisons ------------------------------------------------------------------------------------


def _aligned(a: ndarray, b: ndarray) -> float:
    return float(np.clip(np.vdot(a, b), -1, 1))


def _rotated(a: ndarray, b: ndarray) -> float:
    """The distance itself after the best rotation: near 0 the nuclear norm has lost it."""
    u, _, v = np.linalg.svd(b.T @ a)
    return float(np.linalg.norm(a - b @ (u @ v)))


def _rotated_by_order(a: ndarray, b: ndarray, orders: _Orders) -> list[float]:
    nuclear = [np.linalg.svd(a.T @ b[order], compute_uv=False).sum() for order in orders]
    return [float(np.sqrt(max(2 - 2 * norm, 0))) for norm in nuclear]


def _shared(a: ndarray, b: ndarray) -> float:
    return float(np.minimum(a, b).sum() / a.sum())


def _by_order(compare: Callable[[ndarray, ndarray], float]) -> Callable[..., list[float]]:
    """The comparison of `[query, query]` features with the second's queries in each order."""
    return lambda a, b, orders: [compare(a, b[order[:, None], order]) for order in orders]


CKA = _Paired(MeasureRange(-1.0, 1.0, 1.0, +1), _direction, _aligned, _by_order(_aligned))
PROCRUSTES = _Paired(MeasureRange(0.0, 2**0.5, 0.0, -1), _shape, _rotated, _rotated_by_order)


def neighbours(n: int, k: int = _NEIGHBOURS) -> _Paired:
    """`mutual_knn` with the k of n queries, which it keeps when some of them are left out."""
    k = min(k, (n - 1) // 4)
    return _Paired(
        MeasureRange(0.0, 1.0, 1.0, +1), lambda x: _shares(x, k), _shared, _by_order(_shared)
    )
