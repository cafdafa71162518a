"""How strong is an emulation: what share of a condition's effect on the output does it give?

`strength = 1 - KL(target ‖ emulation) / KL(target ‖ base)`, a ratio of sums over queries: 1 is the
target itself, 0 as far from it as base, negative farther.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from interp.statistics import Ratio, percentile_interval, poisson_weights


class Strength(NamedTuple):
    """`kl`: mean `KL(target ‖ emulation)`, nats; `strength` with its 95 % interval (queries
    resampled); `ceiling`: base's mean KL; `n`: queries."""

    kl: float
    strength: float
    ci_low: float
    ci_high: float
    ceiling: float
    n: int

    def point(self, panel: str, series: str, x: float | str) -> dict[str, Any]:
        """A row of an experiment's table (`interp.plots.curves`)."""
        ends = {"ci_low": self.ci_low, "ci_high": self.ci_high, "n": self.n, "kl": self.kl}
        return {"panel": panel, "series": series, "x": x, "value": self.strength, **ends}


def strength(
    emulation: Float[ndarray, " query"],
    base: Float[ndarray, " query"],
    keys: Sequence[str],
    replicates: int,
    seed: int,
) -> Strength:
    """From every query's KL to the target; `keys` name the queries (they seed the resampling)."""
    weights = poisson_weights(keys, replicates, seed)
    ones = np.ones((len(keys), 1, 1))
    total = Ratio.of((base - emulation)[:, None], base[:, None], weights, ones)
    value, low, high, _ = (float(np.ravel(x)[0]) for x in total.compute())
    return Strength(float(emulation.mean()), value, low, high, float(base.mean()), len(keys))


class ScoredFit(NamedTuple):
    """One fit of several, scored: `keys` name the queries, `kl` and `base` are their divergences
    from the target under the emulation and under base, nats."""

    keys: Sequence[str]
    kl: Float[ndarray, " query"]
    base: Float[ndarray, " query"]


def over_draws(draws: Sequence[ScoredFit], replicates: int, seed: int) -> Strength:
    """The strength over several fits; its interval resamples fits and queries both."""
    values = by_replicate(draws, replicates, seed)
    low, high = map(float, percentile_interval(values[1:]))
    kl, base = (np.concatenate([draw[i] for draw in draws]).mean() for i in (1, 2))
    n = len({key for draw in draws for key in draw.keys})
    return Strength(float(kl), float(values[0]), low, high, float(base), n)


def by_replicate(
    draws: Sequence[ScoredFit], replicates: int, seed: int
) -> Float[ndarray, " replicate"]:
    """Strength under every replicate; the first is the data itself. A query counts as often as its
    fit times as often as itself (Owen & Eckles 2012, bootstrap of crossed factors), and as the
    weights depend on keys alone, replicates of different scores may be subtracted."""
    fits = np.ones((len(draws), replicates + 1))
    if len(draws) > 1:
        fits = poisson_weights([f"draw:{i}" for i in range(len(draws))], replicates, seed)
    parts = [
        fit * (poisson_weights(draw.keys, replicates, seed).T @ np.stack([draw.kl, draw.base]).T).T
        for fit, draw in zip(fits, draws, strict=True)
    ]
    kl, base = np.sum(parts, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(base > 0, 1 - kl / base, np.nan)


def strength_lost(
    seen: Sequence[ScoredFit], unseen: Sequence[ScoredFit], replicates: int, seed: int
) -> tuple[float, float, float]:
    """Strength lost from some queries to others, with its interval."""
    fall = by_replicate(seen, replicates, seed) - by_replicate(unseen, replicates, seed)
    low, high = percentile_interval(fall[1:])
    return float(fall[0]), float(low), float(high)
