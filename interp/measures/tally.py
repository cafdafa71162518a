"""Accumulators by what they hold, and how those of some queries are added to those of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from interp.moments import ShiftMoments
from interp.significance import DifferencesByQuery, SignFlip
from interp.statistics import Maximum, PerQuery, Ratio, SumsByQuery


class Key(NamedTuple):
    """What an accumulator holds."""

    measure: str
    condition: str
    reference: str
    site: str


Accumulator = (
    Ratio | SumsByQuery | PerQuery | Maximum | SignFlip | DifferencesByQuery | ShiftMoments
)
Tally = dict[Key, Accumulator]

_BY_ARRAY: dict[str, type[Accumulator]] = {
    "numerator": Ratio,
    "above": SumsByQuery,
    "index": PerQuery,
    "largest": Maximum,
    "sums": SignFlip,
    "difference": DifferencesByQuery,
    "tokens": ShiftMoments,
}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Accumulator:
    """Whichever accumulator these arrays are of."""
    kind = next(kind for name, kind in _BY_ARRAY.items() if name in arrays)
    return kind.from_arrays(arrays)


def test_of(key: Key) -> Key:
    """Where the test of a measure against its control is kept."""
    return key._replace(measure=f"test of {key.measure}")


Summing = Callable[[Accumulator], Accumulator]
"""From what is kept of some queries to what is kept of all."""


def as_it_is(accumulator: Accumulator) -> Accumulator:
    """Nothing is summed over queries."""
    return accumulator


def over_queries(weights: np.ndarray, signs: np.ndarray) -> Summing:
    """Sums of what is kept by query, under bootstrap `weights` `[query, replicate]` and the sign
    vectors `[query, signs]` of the tests; everything else stays as it is."""

    def summed(accumulator: Accumulator) -> Accumulator:
        if isinstance(accumulator, SumsByQuery):
            return accumulator.drawn(weights)
        if isinstance(accumulator, DifferencesByQuery):
            return accumulator.flipped(signs)
        return accumulator

    return summed


def absorb_(total: Tally, part: Tally, summed: Summing = as_it_is) -> None:
    """Move the queries of `part`, which is empty afterwards, into `total`, each accumulator as
    `summed` makes it.

    One accumulator at a time: a whole third tally beside the two would be the run's largest memory.
    """
    if total and total.keys() != part.keys():
        different = sorted(total.keys() ^ part.keys())
        raise ValueError(f"tallies of different measures: {different[0]}")
    for key in list(part):
        added = summed(part.pop(key))
        total[key] = total[key].merge(added) if key in total else added  # type: ignore[arg-type]
