"""What a table of rows is about, and what it is made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .conditions import Condition
from .numbers import top1
from .running import States

UNKNOWABLE = 0.01
"""A value that rounding alone may move by more than this is not compared."""


@dataclass(frozen=True)
class Value:
    """A row's value, on how many queries it stands, how far float32 rounding may move it (much,
    where it is computed from a change that is hardly more than rounding), the size that errors are
    relative to (1: absolute), and between what its p is, where it can be enumerated."""

    value: float
    n: int
    rounding: float = 0.0
    scale: float = 1.0
    p: tuple[float, float] | None = None

    @property
    def meaningful(self) -> bool:
        return self.rounding <= UNKNOWABLE


Key = tuple[str, str, str | None, str, int | None, int | None, str]
KEY = ("measure", "condition", "reference", "site", "layer", "head", "position")
"""What a row is about."""
Table = dict[Key, Value]


@dataclass(frozen=True)
class Study:
    """All that the rows of one group of queries depend on.

    `answers`: token ids or None; `headline`: the pair whose reference stands in for missing
    answers; `families`: name -> conditions; `geometry`: pairs with such rows, for probes of the
    queries' `labels` over these `folds`.
    """

    conditions: Mapping[str, Condition]
    observed: Mapping[str, Sequence[States]]
    pairs: Sequence[tuple[str, str]]
    answers: Sequence[int | None]
    max_positions: int
    headline: tuple[str, str]
    families: Mapping[str, Sequence[str]]
    geometry: Sequence[tuple[str, str]] = ()
    labels: Sequence[str] = ()
    folds: Sequence[int] = ()

    def together(self, *names: str) -> Iterator[tuple[States, ...]]:
        """The same query under several conditions, query after query."""
        return zip(*(self.observed[name] for name in names), strict=True)

    def moves(self, name: str) -> bool:
        """Whether a condition computes anything else than base."""
        return self.conditions[name].computation != self.conditions["base"].computation

    @property
    def has_bos(self) -> bool:
        return bool(self.conditions["base"].prefix)

    @property
    def targets(self) -> list[int]:
        """Every query's answer; without one, what the headline's reference puts first."""
        known = self.observed[self.headline[1]]
        return [
            int(top1(states.logits[-1])) if answer is None else answer
            for answer, states in zip(self.answers, known, strict=True)
        ]
