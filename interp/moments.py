"""Normal equations of every map from a state to another one, summed token by token.

    total = ShiftMoments.of(x, y - x).merge(ShiftMoments.of(more, shifts))
    equations = total.compute()         # means and centred sums: what all least squares need

A map is fitted from these alone, so that states need not stay in memory; they are kept of the
state and of the *difference* to the other one, which a sum over both would lose in rounding.
All sums are float64, centred and merged by Chan et al. (1983). Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray


class NormalEquations(NamedTuple):
    """Of `n` tokens: means of the states and of their shifts, and sums of products around them:
    `xx` of states with states, `xd` of states with shifts, `dd` of shifts with themselves (the
    trace alone)."""

    n: int
    mean: Float[ndarray, " d_model"]
    mean_shift: Float[ndarray, " d_model"]
    xx: Float[ndarray, "d_model d_model"]
    xd: Float[ndarray, "d_model d_model"]
    dd: float

    def around(self, other: NormalEquations) -> NormalEquations:
        """The same sums around the means of others, as a map that was fitted there meets them."""
        state, shift = self.mean - other.mean, self.mean_shift - other.mean_shift
        return self._replace(
            mean=other.mean,
            mean_shift=other.mean_shift,
            xx=self.xx + self.n * np.outer(state, state),
            xd=self.xd + self.n * np.outer(state, shift),
            dd=self.dd + self.n * float(shift @ shift),
        )


@dataclass(frozen=True)
class ShiftMoments:
    """An accumulator of `NormalEquations`; `tokens` is how many there are."""

    tokens: Int[ndarray, "1"]
    mean: Float[ndarray, " d_model"]
    mean_shift: Float[ndarray, " d_model"]
    xx: Float[ndarray, "d_model d_model"]
    xd: Float[ndarray, "d_model d_model"]
    dd: Float[ndarray, "1"]

    @classmethod
    def empty(cls, width: int = 0) -> ShiftMoments:
        """The identity of `merge`: no token."""
        row, square = np.zeros(width), np.zeros((width, width))
        return cls(np.zeros(1, np.int64), row, row.copy(), square, square.copy(), np.zeros(1))

    @classmethod
    def of(
        cls, states: Float[ndarray, "token d_model"], shifts: Float[ndarray, "token d_model"]
    ) -> ShiftMoments:
        """Of some tokens: their states, and what leads from these to the other condition's."""
        if not len(states):
            return cls.empty(states.shape[1])
        mean, mean_shift = states.mean(0), shifts.mean(0)
        x, d = states - mean, shifts - mean_shift
        return cls(
            np.array([len(x)]), mean, mean_shift, x.T @ x, x.T @ d, np.array([float((d * d).sum())])
        )

    def merge(self, other: ShiftMoments) -> ShiftMoments:
        """The accumulator of both sets of tokens."""
        if not self.tokens[0] or not other.tokens[0]:
            return self if self.tokens[0] else other
        tokens = self.tokens + other.tokens
        state, shift = other.mean - self.mean, other.mean_shift - self.mean_shift
        share = float(other.tokens[0]) / float(tokens[0])
        apart = float(self.tokens[0]) * share
        return ShiftMoments(
            tokens,
            self.mean + share * state,
            self.mean_shift + share * shift,
            self.xx + other.xx + apart * np.outer(state, state),
            self.xd + other.xd + apart * np.outer(state, shift),
            self.dd + other.dd + apart * float(shift @ shift),
        )

    def compute(self) -> NormalEquations:
        """The sums of all tokens."""
        if not self.tokens[0]:
            raise ValueError("nothing was accumulated: no queries")
        numbers = (self.mean, self.mean_shift, self.xx, self.xd)
        return NormalEquations(int(self.tokens[0]), *numbers, float(self.dd[0]))

    def arrays(self) -> dict[str, ndarray]:
        """What a shard file holds."""
        return {
            "tokens": self.tokens,
            "mean": self.mean,
            "mean_shift": self.mean_shift,
            "xx": self.xx,
            "xd": self.xd,
            "dd": self.dd,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ndarray]) -> ShiftMoments:
        """The inverse of `arrays`."""
        return cls(**{name: arrays[name] for name in cls.__dataclass_fields__})
