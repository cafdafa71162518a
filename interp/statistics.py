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
from einops import einsum
from jaxtyping import Float, Int
from numpy import ndarray

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


SEGMENTS = ("query", "template", "answer")
"""The query's text, the template's tokens after it, and the rows that predict the answer's tokens:
the first of these is the last token before it."""

POOLED = ("last", "mean", *SEGMENTS)
"""Labels that stand for the same thing in every query; others are an index."""


def position_labels(
    longest: int, limit: int, segments: Sequence[str] = (), answer: int = 0
) -> list[str]:
    """`last`, `mean`, the segments, then every index within the query and every token of the answer
    (`answer_0`, ...), up to `limit` of each."""
    labels = ["last", "mean", *segments]
    labels += map(str, range(min(longest, limit)))
    return labels + [f"answer_{i}" for i in range(min(answer, limit))]


def answer_labels(labels: Sequence[str]) -> list[str]:
    """Those of the rows that predict an answer's tokens."""
    return [label for label in labels if label == "last" or label.startswith("answer")]


def position_weights(
    lengths: Sequence[int],
    width: int,
    labels: Sequence[str],
    answers: Sequence[int] | None = None,
    texts: Sequence[int] | None = None,
) -> Float[ndarray, "query query_pos label"]:
    """1 where a token counts towards a label. `lengths`: tokens before the answer; `answers`: how
    many rows predict one (none: one); `texts`: tokens of the query's text (none: all)."""
    index = np.arange(width)
    length = np.asarray(lengths)[:, None]
    answer = index - (length - 1)
    answered = answer < (np.asarray(answers)[:, None] if answers is not None else 1)
    text = index < np.minimum(
        np.asarray(texts)[:, None] if texts is not None else length, length - 1
    )
    known = {
        "last": answer == 0,
        "mean": answer <= 0,
        "query": text,
        "template": ~text & (answer < 0),
        "answer": (answer >= 0) & answered,
    }

    def chosen(label: str) -> ndarray:
        if label in known:
            return known[label]
        if label.startswith("answer_"):
            return (answer == int(label.removeprefix("answer_"))) & answered
        return (index == int(label)) & (answer <= 0)

    columns = [chosen(label) for label in labels]
    return np.stack(np.broadcast_arrays(*columns), axis=-1).astype(np.float64)


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
        below = np.broadcast_to(np.asarray(denominator, np.float64), numerator.shape)
        valid = np.isfinite(numerator) & np.isfinite(below)
        above = by_label(np.where(valid, numerator, 0.0), positions)
        below, valid = _once(below, valid)
        below, count = (by_label(np.where(valid, v, 0.0), positions) for v in (below, 1.0))
        return cls(
            np.tensordot(weights, above, axes=([0], [0])),
            np.tensordot(weights, below, axes=([0], [0])),
            (count > 0).sum(0, dtype=np.int64),
        )

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


def _once(below: ndarray, valid: ndarray) -> tuple[ndarray, ndarray]:
    """A denominator that is the same in every cell, as it is for most means, is kept once."""
    cells = tuple(range(1, below.ndim - 1))
    first = (slice(None), *[slice(0, 1)] * len(cells))
    if (valid == valid[first]).all() and (below == below[first]).all():
        return below[first], valid[first]
    return below, valid


def by_label(values: ndarray, positions: ndarray) -> ndarray:
    """Sums over the tokens of every position label, `[query, ..., label]`."""
    return einsum(values, positions, "query ... pos, query pos label -> query ... label")


def percentile_interval(
    replicates: Float[ndarray, "replicate *cell"],
) -> tuple[Float[ndarray, "*cell"], Float[ndarray, "*cell"]]:
    """The central 95 % of the replicates; NaN with fewer than 20 of them defined.

    Bounds are the order statistics at `(B + 1) q`: numpy's default, at `(B - 1) q + 1`, covers only
    (B - 1) / (B + 1) of the level (0.940 of 200 replicates).
    """
    interval = np.full((2, *replicates.shape[1:]), np.nan)
    finite = np.isfinite(replicates)
    defined = finite.sum(0)
    whole = (defined == len(replicates)) & (defined >= 20)
    partly = ~whole & (defined >= 20)
    if whole.any():
        interval[:, whole] = np.quantile(replicates[:, whole], _TAILS, axis=0, method="weibull")
    if partly.any():
        known = np.where(finite[:, partly], replicates[:, partly], np.inf)
        interval[:, partly] = [_order_statistic(known, defined[partly], q) for q in _TAILS]
    return interval[0, ...], interval[1, ...]  # arrays also where there is one cell


_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)


def _order_statistic(values: ndarray, count: ndarray, q: float) -> ndarray:
    """The value at `(count + 1) q` among the `count` smallest of every column, between two values
    in proportion: `np.nanquantile` goes through the columns one by one."""
    ordered = np.sort(values, axis=0)
    place = np.clip((count + 1) * q - 1, 0, count - 1)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, count - 1)
    a, b = (np.take_along_axis(ordered, i[None], axis=0)[0] for i in (below, above))
    return a + (b - a) * (place - below)


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
