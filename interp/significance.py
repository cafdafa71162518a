"""Tests over a map of cells: paired sign flips over queries, max-T and Benjamini-Hochberg.

    signs = sign_vectors([query.key for query in queries], replicates=999, seed=0)
    total = SignFlip.of(values, control, signs, positions).merge(SignFlip.of(...))
    p, p_max_t, n = total.compute()          # per cell
    q = benjamini_hochberg(p)

Every p-value counts the data among its own rearrangements, so none is 0, and equal statistics are
equal whatever their rounding. All cells of a map see the same rearrangements: the distribution of
their maximum then keeps the dependence between cells, and max-T the family-wise error (Westfall &
Young 1993, single step). `benjamini_hochberg` keeps the false discovery rate instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from interp.positions import by_label
from interp.statistics import generator_of

ALPHA = 0.05
"""The corrected p up to which a cell counts as different from its null."""

TIE = 1e-12
"""Statistics that differ by no more than this times (1 + the observed one) are equal."""

BLOCK_ENTRIES = 1 << 22
"""How many statistics are held at once."""


def sign_vectors(keys: Sequence[str], replicates: int, seed: int) -> Float[ndarray, "query signs"]:
    """+1 or -1 for every query in every replicate; column 0 is all +1: the data itself.

    Drawn from a generator seeded by (seed, key), so they do not depend on how queries are sharded;
    the stream is another than that of `interp.statistics.poisson_weights`.
    """
    flips = [generator_of(f"sign:{seed}:{key}").integers(0, 2, replicates) for key in keys]
    return np.stack([np.concatenate([[1.0], 2.0 * flip - 1]) for flip in flips])


class _Significance(NamedTuple):
    """Two-sided p per cell, its max-T correction over all cells, and how many queries count.

    p is in `[1 / (1 + R), 1]`, NaN where fewer than 2 queries count.
    """

    p: Float[ndarray, "*cell"]
    p_max_t: Float[ndarray, "*cell"]
    n: Int[ndarray, "*cell"]


@dataclass(frozen=True)
class SignFlip:
    """The paired permutation test over queries, as sums: `sum(s d)` under R sign vectors s.

    `d` is a query's value for a pair minus its value for the control pair, 0 where rounding alone
    could make it; where all are 0, p is 1. Were pair and control exchangeable, every sign of d
    would be equally likely (Fisher 1935, sec. 21). The statistic is
    `T = sum(s d) / sqrt(sum(d²))`, `|T| <= sqrt(n)`: its denominator does not change with the
    signs, and it grows with the paired t. Exact where pair and control are exchangeable, however
    skewed or heavy-tailed they are. As a test of the mean of a d that is itself skewed it is
    approximate: at 0.05, an exponential d is rejected in 0.08 of studies with 20 queries, 0.07
    with 50 and 0.053 with 200.

    Sums are float64: they cancel, and with few queries most sign vectors tie, which float32 could
    not tell from a difference; merging is then exact to rounding in any order. That is 8 (1 + R)
    bytes per cell, so a large map keeps few position labels (`last`, `mean`).
    """

    sums: Float[ndarray, "*signs_cell"]
    squares: Float[ndarray, "*cell"]
    n: Int[ndarray, "*cell"]

    @classmethod
    def empty(cls) -> SignFlip:
        """The identity of `merge`: scalar zeros, which broadcast."""
        return cls(np.zeros(()), np.zeros(()), np.zeros((), np.int64))

    @classmethod
    def of(
        cls,
        values: Float[ndarray, "query *cell query_pos"],
        control: Float[ndarray, "query *cell query_pos"],
        signs: Float[ndarray, "query signs"],
        positions: Float[ndarray, "query query_pos label"],
        floor: Float[ndarray, "query *cell query_pos"] | float = 0.0,
    ) -> SignFlip:
        """Sums of some queries under every sign vector: of `DifferencesByQuery.of`."""
        return DifferencesByQuery.of(values, control, positions, floor).flipped(signs)

    def merge(self, other: SignFlip) -> SignFlip:
        """The accumulator of both sets of queries."""
        return SignFlip(self.sums + other.sums, self.squares + other.squares, self.n + other.n)

    def compute(self) -> _Significance:
        """p per cell and max-T over all cells; 1 where every difference is exactly 0."""
        if self.sums.ndim == 0:
            raise ValueError("nothing was accumulated: no queries")
        scale = np.where(self.squares > 0, np.sqrt(self.squares), np.inf)
        observed = np.where(self.n >= 2, np.abs(self.sums[0]) / scale, np.nan)
        blocks = (np.abs(sums) / scale for sums in _blocks(self.sums))
        return _Significance(*permutation_p(observed, blocks), self.n)

    def arrays(self) -> dict[str, ndarray]:
        """What a shard file holds."""
        return {"sums": self.sums, "squares": self.squares, "n": self.n}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ndarray]) -> SignFlip:
        """The inverse of `arrays`."""
        return cls(arrays["sums"], arrays["squares"], arrays["n"])


@dataclass(frozen=True)
class DifferencesByQuery:
    """What a `SignFlip` is made of: every query's difference from the control, in the order of the
    queries, NaN where it has no token that counts."""

    difference: Float[ndarray, "query *cell label"]

    @classmethod
    def empty(cls) -> DifferencesByQuery:
        """The identity of `merge`: no query."""
        return cls(np.zeros((0, 1)))

    @classmethod
    def of(
        cls,
        values: Float[ndarray, "query *cell query_pos"],
        control: Float[ndarray, "query *cell query_pos"],
        positions: Float[ndarray, "query query_pos label"],
        floor: Float[ndarray, "query *cell query_pos"] | float = 0.0,
    ) -> DifferencesByQuery:
        """A query's difference is the mean over a label's tokens that are finite in both; without
        any, it does not count. A token's difference up to `floor`, which rounding alone can make
        (`interp.noise`), is 0."""
        with np.errstate(invalid="ignore", over="ignore"):
            difference = values - control
            small = np.abs(difference) <= floor
        valid = np.isfinite(difference)
        total = by_label(np.where(valid & ~small, difference, 0.0), positions)
        tokens = by_label(valid.astype(np.float64), positions)
        return cls(np.where(tokens > 0, total / np.maximum(tokens, 1), np.nan))

    def merge(self, other: DifferencesByQuery) -> DifferencesByQuery:
        """These queries, then the others."""
        if not len(self.difference) or not len(other.difference):
            return self if len(self.difference) else other
        return DifferencesByQuery(np.concatenate([self.difference, other.difference]))

    def flipped(self, signs: Float[ndarray, "query signs"]) -> SignFlip:
        """The sums over queries under every sign vector."""
        counted = np.isfinite(self.difference)
        d = np.where(counted, self.difference, 0.0)
        sums = np.tensordot(signs, d, axes=([0], [0]))
        return SignFlip(sums, (d**2).sum(0), counted.sum(0, dtype=np.int64))

    def compute(self) -> Float[ndarray, "query *cell label"]:
        """The differences."""
        return self.difference

    def arrays(self) -> dict[str, ndarray]:
        """What a shard file holds."""
        return {"difference": self.difference}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ndarray]) -> DifferencesByQuery:
        """The inverse of `arrays`."""
        return cls(arrays["difference"])


def _blocks(sums: ndarray) -> Iterator[ndarray]:
    step = rows_per_block(sums[0].size)
    return (sums[start : start + step] for start in range(0, len(sums), step))


def rows_per_block(cells: int) -> int:
    """How many rearrangements of a map are worked on at once."""
    return max(1, BLOCK_ENTRIES // max(1, cells))


def permutation_p(
    observed: Float[ndarray, "*cell"], blocks: Iterable[Float[ndarray, "_ *cell"]]
) -> tuple[Float[ndarray, "*cell"], Float[ndarray, "*cell"]]:
    """Share of the rearrangements (the data among them) whose statistic, and whose maximum over
    the map, is at least the observed one: p and max-T p, in `(0, 1]`.

    Cells observed as NaN are not tested: they get NaN and stay out of the maximum.
    """
    tested = ~np.isnan(observed)
    threshold = np.where(tested, observed - TIE * (1 + np.abs(observed)), np.inf)
    reached, maxima = np.zeros(observed.shape), []
    for block in blocks:
        reached += (block >= threshold).sum(0)
        maxima.append(block[:, tested].max(axis=1, initial=-np.inf))
    largest = np.sort(np.concatenate(maxima))
    above = len(largest) - np.searchsorted(largest, threshold)
    shares = (np.where(tested, count / len(largest), np.nan) for count in (reached, above))
    return next(shares), next(shares)


def benjamini_hochberg(p: Float[ndarray, "*cell"]) -> Float[ndarray, "*cell"]:
    """p adjusted over all cells: rejecting where it is at most q keeps the false discovery rate at
    q (Benjamini & Hochberg 1995; cells independent or positively dependent). NaN stays NaN and is
    not counted among the tests."""
    from scipy.stats import false_discovery_control  # most of a second, which readers do not need

    adjusted = np.full(np.shape(p), np.nan)
    tested = ~np.isnan(p)
    if tested.any():
        adjusted[tested] = false_discovery_control(p[tested])
    return adjusted


def differs_from_null(
    values: Float[ndarray, "*cell"],
    p: Float[ndarray, "*cell"],
    floor: Float[ndarray, "*cell"] | float,
) -> Bool[ndarray, "*cell"]:
    """Which cells of a map may be called large: those that differ from their null (p up to
    `ALPHA`); where no cell was tested, those that are more than rounding."""
    tested = ~np.isnan(p)
    return p <= ALPHA if tested.any() else np.abs(values) > floor
