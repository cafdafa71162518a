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

from interp.finding import DecidingEstimate
from interp.statistics import Ratio, poisson_weights


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

    def against(self, threshold: float, what: str) -> DecidingEstimate:
        """The number that decides, in words `what`, beside how much counts."""
        return DecidingEstimate(what, self.strength, self.ci_low, self.ci_high, threshold)


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
