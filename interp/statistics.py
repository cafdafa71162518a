"""Mergeable accumulators and their bootstrap intervals: nothing kept per query but a few numbers.

    weights = poisson_weights([query.key for query in queries], replicates=200, seed=0)
    total = Ratio.of(values, 1.0, weights, positions).merge(Ratio.of(...))
    estimate = total.compute()          # value, ci_low, ci_high, n per cell

An accumulator is a frozen dataclass with `empty`, `of`, `merge` (a new value, operands unchanged),
`compute`, `arrays` and `from_arrays`. Any split of the queries into shards gives the same result
as the whole (to rounding; the sweep merges in sorted order, so its results are the same bits).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from interp.positions import by_label

LEVEL = 0.95


def poisson_weights(
    keys: Sequence[str], replicates: int, seed: int
) -> Float[ndarray, "query replicate"]:
    """How often each query occurs in each bootstrap replicate; column 0 is the data itself.

    Poisson(1) counts stand in for resampling with replacement (Hanley & MacGibbon 2006); drawn
    from a generator seeded by (seed, key), they do not depend on how queries are sharded.
    """
    draws = [generator_of(f"{seed}:{key}").poisson(1.0, replicates) for key in keys]
    return np.stack([np.concatenate([[1.0], draw]) for draw in draws])


def generator_of(name: str) -> np.random.Generator:
    """A generator seeded by a name: what is drawn for a query depends on its key and not on its
    place."""
    digest = hashlib.sha256(name.encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


class Estimate(NamedTuple):
    """A value per cell, its 95 % interval over queries, and how many queries it rests on."""

    value: Float[ndarray, "*cell"]
    ci_low: Float[ndarray, "*cell"]
    ci_high: Float[ndarray, "*cell"]
    n: Int[ndarray, "*cell"]


@dataclass(frozen=True)
class Ratio:
    """A sum over a sum, under every bootstrap replicate of the queries.

    A mean is the ratio with denominator 1; numerators and denominators travel together and are
    divided once. Tokens where either is not finite count in neither. Cells have the shape
    `[*cell, label]`; `numerator` and `denominator` have the replicates in front. `denominator` and
    `n` may have length 1 where they are the same for all cells: they broadcast.
    """

    numerator: Float[ndarray, "*replicate_cell"]
    denominator: Float[ndarray, "*replicate_shared"]
    n: Int[ndarray, "*shared"]

    @classmethod
    def empty(cls) -> Ratio:
        """The identity of `merge`: scalar zeros, which broadcast."""
        return cls(np.zeros(()), np.zeros(()), np.zeros((), np.int64))

    @classmethod
    def of(
        cls,
        numerator: Float[ndarray, "query *cell query_pos"],
        denominator: Float[ndarray, "query *cell query_pos"] | float,
        weights: Float[ndarray, "query replicate"],
        positions: Float[ndarray, "query query_pos label"],
    ) -> Ratio:
        """Sum the tokens of some queries by position label, under every replicate."""
        return SumsByQuery.of(numerator, denominator, positions).drawn(weights)

    def merge(self, other: Ratio) -> Ratio:
        """The accumulator of both sets of queries."""
        return Ratio(
            self.numerator + other.numerator,
            self.denominator + other.denominator,
            self.n + other.n,
        )

    def compute(self) -> Estimate:
        """Value (replicate 0) and percentile interval; NaN where the denominator is 0."""
        if self.numerator.ndim == 0:
            raise ValueError("nothing was accumulated: no queries")
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(self.denominator == 0, np.nan, self.numerator / self.denominator)
        low, high = percentile_interval(values[1:])
        return Estimate(values[0], low, high, np.broadcast_to(self.n, values.shape[1:]))

    def arrays(self) -> dict[str, ndarray]:
        """What a shard file holds."""
        return {"numerator": self.numerator, "denominator": self.denominator, "n": self.n}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ndarray]) -> Ratio:
        """The inverse of `arrays`."""
        return cls(arrays["numerator"], arrays["denominator"], arrays["n"])


@dataclass(frozen=True)
class SumsByQuery:
    """What a `Ratio` is made of: every query's sums, in the order of the queries, before
    replicates are drawn.

    Cells have the shape `[query, *cell, label]`. `below` and `counted` (whether any token of the
    query counts) may have cells of length 1 where they are the same for all.
    """

    above: Float[ndarray, "query *cell label"]
    below: Float[ndarray, "query *shared label"]
    counted: Bool[ndarray, "query *shared label"]

    @classmethod
    def empty(cls) -> SumsByQuery:
        """The identity of `merge`: no query."""
        nothing = np.zeros((0, 1))
        return cls(nothing, nothing, nothing.astype(bool))

    @classmethod
    def of(
        cls,
        numerator: Float[ndarray, "query *cell query_pos"],
        denominator: Float[ndarray, "query *cell query_pos"] | float,
        positions: Float[ndarray, "query query_pos label"],
    ) -> SumsByQuery:
        """Sum the tokens of every query by position label."""
        valid = np.isfinite(numerator) & np.isfinite(denominator)
        above = by_label(np.where(valid, numerator, 0.0), positions)
        below = np.broadcast_to(np.asarray(denominator, np.float64), numerator.shape)
        below, valid = _once(below, valid)
        count = by_label(valid.astype(np.float64), positions)
        if np.ndim(denominator):
            return cls(above, by_label(np.where(valid, below, 0.0), positions), count > 0)
        return cls(above, denominator * count, count > 0)

    def merge(self, other: SumsByQuery) -> SumsByQuery:
        """These queries, then the others."""
        if not len(self.above) or not len(other.above):
            return self if len(self.above) else other
        pairs = ((own, other.arrays()[name]) for name, own in self.arrays().items())
        return SumsByQuery(*(_stacked(*pair) for pair in pairs))

    def drawn(self, weights: Float[ndarray, "query replicate"]) -> Ratio:
        """The sums over queries under every replicate."""
        return Ratio(
            np.tensordot(weights, self.above, axes=([0], [0])),
            np.tensordot(weights, self.below, axes=([0], [0])),
            self.counted.sum(0, dtype=np.int64),
        )

    def compute(self) -> Float[ndarray, "query *cell label"]:
        """Every query's own ratio; NaN where its denominator is 0."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(self.below == 0, np.nan, self.above / self.below)

    def arrays(self) -> dict[str, ndarray]:
        """What a shard file holds."""
        return {"above": self.above, "below": self.below, "counted": self.counted}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ndarray]) -> SumsByQuery:
        """The inverse of `arrays`."""
        return cls(arrays["above"], arrays["below"], arrays["counted"])


def _stacked(first: ndarray, second: ndarray) -> ndarray:
    """Queries one after the other; cells kept once in one of them are repeated."""
    cells = np.broadcast_shapes(first.shape[1:], second.shape[1:])
    parts = [np.broadcast_to(part, (len(part), *cells)) for part in (first, second)]
    return np.concatenate(parts)


def _once(below: ndarray, valid: ndarray) -> tuple[ndarray, ndarray]:
    """A denominator that is the same in every cell, as it is for most means, is kept once."""
    cells = tuple(range(1, below.ndim - 1))
    first = (slice(None), *[slice(0, 1)] * len(cells))
    if (valid == valid[first]).all() and (below == below[first]).all():
        return below[first], valid[first]
    return below, valid


def pooled(
    above: Float[ndarray, "query *cell"],
    below: Float[ndarray, "query *cell"] | float,
    keys: Sequence[str],
    replicates: int,
    seed: int,
) -> Estimate:
    """The sum over queries of `above` over that of `below` (1: the mean), with its interval."""
    weights, one = poisson_weights(keys, replicates, seed), np.ones((len(keys), 1, 1))
    under = below if isinstance(below, int | float) else below[..., None]
    return Estimate(*(x[..., 0] for x in Ratio.of(above[..., None], under, weights, one).compute()))


def percentile_interval(
    replicates: Float[ndarray, "replicate *cell"],
) -> tuple[Float[ndarray, "*cell"], Float[ndarray, "*cell"]]:
    """The central 95 % of the replicates; NaN with fewer than 20 of them defined.

    Bounds are the order statistics at `(B + 1) q`: numpy's default, at `(B - 1) q + 1`, covers only
    (B - 1) / (B + 1) of the level (0.940 of 200 replicates).
    """
    if len(replicates) < 20:
        unknown = np.full(replicates.shape[1:], np.nan)
        return unknown, unknown.copy()
    finite = np.isfinite(replicates)
    known = replicates if finite.all() else np.where(finite, replicates, np.inf)
    ordered, defined = np.sort(known, axis=0), np.asarray(finite.sum(0))
    low, high = (_order_statistic(ordered, defined, q) for q in _TAILS)
    few = defined < 20
    return np.where(few, np.nan, low), np.where(few, np.nan, high)


_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


def _order_statistic(ordered: ndarray, count: ndarray, q: float) -> ndarray:
    """The value at `(count + 1) q` among the `count` first of every column, between two values in
    proportion: numpy's `weibull`, to the bit, at a quarter of the cost (a sort is vectorised, a
    partition is not), and with columns of different counts."""
    place = np.clip(count * q + q - 1, 0, np.maximum(count - 1, 0))
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, np.maximum(count - 1, 0))
    a, b = (np.take_along_axis(ordered, i[None], axis=0)[0] for i in (below, above))
    share = place - below
    with np.errstate(invalid="ignore"):  # of columns without a number
        return np.where(share < 0.5, a + (b - a) * share, b - (b - a) * (1 - share))


@dataclass(frozen=True)
class PerQuery:
    """A number, or a row of them, per query (a certificate needs a percentile, which no sum
    gives)."""

    index: Int[ndarray, "query"]
    values: Float[ndarray, "query ..."]

    @classmethod
    def empty(cls) -> PerQuery:
        """The identity of `merge`."""
        return cls(np.zeros(0, np.int64), np.zeros((0, 0)))

    @classmethod
    def of(cls, index: Sequence[int], values: Float[ndarray, "query ..."]) -> PerQuery:
        """Rows of some queries, by their number in the query file."""
        return cls(np.asarray(index, np.int64), values)

    def merge(self, other: PerQuery) -> PerQuery:
        """Rows of both, sorted by query; the same query twice is an error."""
        if not len(self.index) or not len(other.index):
            return self if len(self.index) else other
        index = np.concatenate([self.index, other.index])
        if len(np.unique(index)) != len(index):
            raise ValueError("the same query was accumulated twice")
        order = np.argsort(index)
        return PerQuery(index[order], np.concatenate([self.values, other.values])[order])

    def compute(self) -> Float[ndarray, "query ..."]:
        """The rows, in the order of the query file."""
        if not len(self.index):
            raise ValueError("nothing was accumulated: no queries")
        return self.values[np.argsort(self.index)]

    def arrays(self) -> dict[str, ndarray]:
        """What a shard file holds."""
        return {"index": self.index, "values": self.values}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ndarray]) -> PerQuery:
        """The inverse of `arrays`."""
        return cls(arrays["index"], arrays["values"])


@dataclass(frozen=True)
class Maximum:
    """The largest of some numbers: how far an identity is from closing. NaN where one is."""

    value: Float[ndarray, "1"]

    @classmethod
    def empty(cls) -> Maximum:
        """The identity of `merge`."""
        return cls(np.array([-np.inf]))

    @classmethod
    def of(cls, values: Iterable[float]) -> Maximum:
        """The largest of these."""
        return cls(np.max([-np.inf, *values], keepdims=True))

    def merge(self, other: Maximum) -> Maximum:
        """The larger of both."""
        return Maximum(np.maximum(self.value, other.value))

    def compute(self) -> float:
        """The number."""
        if self.value[0] == -np.inf:
            raise ValueError("nothing was accumulated: no queries")
        return float(self.value[0])

    def arrays(self) -> dict[str, ndarray]:
        """What a shard file holds."""
        return {"largest": self.value}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ndarray]) -> Maximum:
        """The inverse of `arrays`."""
        return cls(arrays["largest"])
