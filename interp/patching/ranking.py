"""Which heads carry a behaviour, and are they the same under both conditions? Torch-free.

    shared = ranking_overlap(lost["prompt"], lost["lora"], layers, k=5, permutations=999, seed=0)
    shared.share, shared.p              # of the five strongest heads of each

Two questions per head: what is lost when base's output takes its place in a condition's run
(necessity), and what is won when the condition's output takes its place in base's (sufficiency).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from scipy.stats import rankdata

from interp.errors import ConfigError
from interp.names import Head
from interp.noise import settled
from interp.patching.effects import Effects, Resampling, matched
from interp.significance import TIE, permutation_p
from interp.statistics import generator_of

_FEWEST = 3
"""Strongest heads that are compared at least; otherwise a tenth of all."""


def necessity(
    own: Effects, queries: Bool[ndarray, " query"], scale: Resampling
) -> Float[ndarray, " cell"]:
    """Mean damage of every head's `z` over some queries, nats: its necessity where the source is
    base. What rounding alone makes or tells apart is 0 or equal (`interp.noise`)."""
    return settled("damage", scale.noise, own.at("z", heads=True).to_target[queries].mean(0))


def sufficiency(
    own: Effects, queries: Bool[ndarray, " query"], scale: Resampling
) -> Float[ndarray, " cell"]:
    """Recovery of every head's `z` over some queries: its sufficiency where the target is base. NaN
    where outputs are already matched. Rounding as in `necessity`."""
    there = own.at("z", heads=True)
    if matched(own, scale):
        return np.full(len(there.cells), np.nan)
    apart = there.apart[queries].mean()
    left = settled("damage", scale.noise, there.to_source[queries].mean(0), apart)
    return 1 - left / (apart or np.nan)


def heads_of_sweep(own: Effects) -> list[Head]:
    """The heads of a `z` sweep, in the order of `necessity` and `sufficiency`."""
    cells = own.at("z", heads=True).cells
    return [Head(cell.layer, cell.head) for cell in cells if cell.head is not None]


def strongest_heads(values: Float[ndarray, " head"], k: int) -> Int[ndarray, " found"]:
    """The `k` largest, the largest first; equal ones in their order. Fewer where not so many are
    defined."""
    order = np.argsort(-values, kind="stable")[:k]
    return order[~np.isnan(values[order])]


def important_heads(values: Float[ndarray, " head"], k: int) -> Int[ndarray, " found"]:
    """The `strongest_heads` among heads that carry anything at all: whose effect is above 0."""
    return strongest_heads(np.where(values > 0, values, np.nan), k)


def membership(values: Float[ndarray, " head"], k: int) -> Float[ndarray, " head"]:
    """How far every head is one of the `k` strongest: 1 or 0. Heads that tie for the last places
    (to rounding; many heads do nothing at all) get equal parts of them."""
    least = np.sort(values)[-k]
    rounding = TIE * (1 + abs(least))
    above = values > least + rounding
    tied = ~above & (values >= least - rounding)
    return above + tied * (k - above.sum()) / tied.sum()


def how_many(n_heads: int) -> int:
    """How many heads count as the strongest: a tenth, at least three."""
    return min(n_heads, max(_FEWEST, round(n_heads / 10)))


class _Overlap(NamedTuple):
    """What two rankings of the same heads share.

    `share` of the `k` strongest that are the same, in [0, 1] (ties at the last place: the share to
    expect were they broken by lot); `rank_correlation` of all (Spearman), NaN where a ranking is
    flat. Each with its p: how many of the rearrangements, the data among them, reach it. All NaN
    where a head's effect is undefined.
    """

    k: int
    share: float
    p: float
    rank_correlation: float
    rank_p: float


def ranking_overlap(
    x: Float[ndarray, " head"],
    y: Float[ndarray, " head"],
    layers: Sequence[int],
    k: int,
    permutations: int,
    seed: int,
) -> _Overlap:
    """Whether two rankings agree beyond what their layers explain: heads are permuted within their
    layers, so that late layers mattering under both is no evidence (and p is 1 where every layer
    has one head). ConfigError for a k that the heads do not have."""
    if not 1 <= k <= len(x):
        raise ConfigError(f"the {k} strongest of {len(x)} heads: choose 1 to {len(x)}")
    if np.isnan(x).any() or np.isnan(y).any():
        return _Overlap(k, np.nan, np.nan, np.nan, np.nan)
    place = np.asarray(layers)
    generator = generator_of(f"overlap:{seed}")
    orders = [np.arange(len(x))] + [_within(place, generator) for _ in range(permutations)]
    top, other = membership(x, k), membership(y, k)
    shares = np.array([(top * other[order]).sum() / k for order in orders])
    ranks_x, ranks_y = (rankdata(v) - (len(v) + 1) / 2 for v in (x, y))
    size = np.sqrt((ranks_x**2).sum() * (ranks_y**2).sum())
    if size == 0:
        return _Overlap(k, float(shares[0]), _p(shares), np.nan, np.nan)
    correlations = np.array([(ranks_x * ranks_y[order]).sum() / size for order in orders])
    return _Overlap(k, float(shares[0]), _p(shares), float(correlations[0]), _p(correlations))


def _p(found: Float[ndarray, " arrangement"]) -> float:
    """Share of the arrangements, the own one first, that reach it."""
    return float(permutation_p(found[0:1], [found[:, None]])[0][0])


def _within(layers: Int[ndarray, " head"], generator: np.random.Generator) -> Int[ndarray, " head"]:
    """An order of the heads that leaves every head in its layer."""
    return np.lexsort((generator.random(len(layers)), layers))[np.argsort(np.argsort(layers))]
