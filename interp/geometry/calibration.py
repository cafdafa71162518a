"""What a value is worth: its interval over queries, and what it is by chance.

    null = [value under each of `row_orders(n, 100, seed)`]
    low, high = grouped_jackknife(value, [value on each of `all_but_one_group(n, seed)`])

Queries are resampled by leaving groups of them out: a bootstrap repeats rows, and a repeated row is
its own nearest neighbour, which is neither a neighbourhood nor a dimension of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from scipy.stats import t as student

_LEVEL = 0.95

_GROUPS = 10
"""How many groups of queries are left out in turn; of fewer queries, each one."""

_TIE = 1e-7
"""A permuted value this close to the observed one is as extreme: their roundings differ."""


@dataclass(frozen=True)
class Result:
    """A measure over queries. Whatever is undefined is NaN; `n` is how many queries there were."""

    value: float
    ci_low: float
    """95 % interval over queries. It says how far other queries would move the value, not how far
    the value is from that of infinitely many: for the bias there is `chance`."""
    ci_high: float
    n: int
    chance: float
    """Mean over permutations that break what the measure looks for; their central 95 % below."""
    chance_low: float
    chance_high: float
    calibrated: float
    """`(value - chance) / (identical - chance)`: 1 = identical, 0 = chance, negative = less alike
    than chance. NaN where a measure has no value for identical (dimensions)."""
    p: float
    """`(1 + permutations at least as extreme) / (1 + permutations)`, before any correction."""


@dataclass(frozen=True)
class MeasureRange:
    """How a measure's values are to be read."""

    lowest: float
    highest: float
    identical: float
    """The value where two conditions agree; NaN if there is none."""
    extreme: int
    """+1 where high values are the opposite of chance, -1 where low ones are."""


def result(
    value: float, replicates: Sequence[float], null: Sequence[float], n: int, scale: MeasureRange
) -> Result:
    """A value with its interval and its chance; a value that is undefined has neither."""
    if not np.isfinite(value):
        return undefined_result(n)
    interval = grouped_jackknife(value, np.asarray(replicates))
    low, high = np.clip(interval, scale.lowest, scale.highest).tolist()
    by_chance = np.asarray(null)
    chance = float(by_chance.mean()) if len(by_chance) else np.nan
    tails = [np.nan, np.nan]
    if np.isfinite(chance):
        tails = np.quantile(by_chance, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]).tolist()
    span = scale.identical - chance
    calibrated = (value - chance) / span if abs(span) > _TIE else np.nan
    p = phipson_smyth_p(value, by_chance, scale.extreme)
    return Result(value, low, high, n, chance, tails[0], tails[1], calibrated, p)


def undefined_result(n: int) -> Result:
    """What n queries give where the measure is undefined."""
    nan = float("nan")
    return Result(nan, nan, nan, n, nan, nan, nan, nan, nan)


def phipson_smyth_p(value: float, null: Float[ndarray, "permutation"], extreme: int) -> float:
    """`(1 + #{as extreme}) / (1 + R)`, `(0, 1]`; NaN where a permuted value is undefined.

    The data count as one of their own permutations (Phipson & Smyth 2010): p is never 0."""
    if not len(null) or not np.isfinite(null).all():
        return float("nan")
    reached = extreme * (null - value) >= -_TIE * (1 + abs(value))
    return float((1 + reached.sum()) / (1 + len(null)))


def grouped_jackknife(value: float, replicates: Float[ndarray, "group"]) -> tuple[float, float]:
    """95 % interval by the delete-a-group jackknife: `value ± t(g-1) sqrt((g-1)/g Σ(v_j - v̄)²)`.

    The delete-a-group jackknife of Kott 2001, J. Official Statistics 17(4), about the replicates'
    mean. In simulations with 54 and 100 queries it covers 94-96 % for CKA and Procrustes, and over
    98 % for shared neighbours and dimensions, which move in steps. NaN where a replicate is
    undefined."""
    g = len(replicates)
    if g < 2 or not np.isfinite(replicates).all():
        return float("nan"), float("nan")
    error = np.sqrt((g - 1) / g * ((replicates - replicates.mean()) ** 2).sum())
    half = float(student.ppf((1 + _LEVEL) / 2, g - 1) * error)
    return value - half, value + half


def all_but_one_group(n: int, seed: int) -> list[Int[ndarray, "_"]]:
    """The rows left, in order, without each of `_GROUPS` random groups of near equal size."""
    if not n:
        return []
    groups = np.array_split(np.random.default_rng(seed).permutation(n), min(_GROUPS, n))
    return [np.setdiff1d(np.arange(n), group) for group in groups]


def row_orders(n: int, permutations: int, seed: int) -> Int[ndarray, "permutation query"]:
    """Random orders of n rows; the same for the same n and seed, so layers and pairs share them."""
    rows = np.tile(np.arange(n), (permutations, 1))
    return np.random.default_rng(seed).permuted(rows, axis=1)


def orders_within(
    fold: Int[ndarray, "query"], permutations: int, seed: int
) -> Int[ndarray, "permutation query"]:
    """Random orders of rows that keep every row within its fold."""
    keys = np.random.default_rng(seed).random((permutations, len(fold)))
    shuffled = np.lexsort((keys, np.broadcast_to(fold, keys.shape)), axis=-1)
    orders = np.empty_like(shuffled)
    orders[:, np.argsort(fold, kind="stable")] = shuffled
    return orders
