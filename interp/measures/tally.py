"""Accumulators by what they hold, and how those of some queries are added to those of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from interp.significance import SignFlip
from interp.statistics import Maximum, PerQuery, Ratio


class Key(NamedTuple):
    """What an accumulator holds."""

    measure: str
    condition: str
    reference: str
    site: str


Accumulator = Ratio | PerQuery | Maximum | SignFlip
Tally = dict[Key, Accumulator]

_BY_ARRAY: dict[str, type[Accumulator]] = {
    "numerator": Ratio,
    "index": PerQuery,
    "largest": Maximum,
    "sums": SignFlip,
}


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Accumulator:
    """Whichever accumulator these arrays are of."""
    kind = next(kind for name, kind in _BY_ARRAY.items() if name in arrays)
    return kind.from_arrays(arrays)


def test_of(key: Key) -> Key:
    """Where the test of a measure against its control is kept."""
    return key._replace(measure=f"test of {key.measure}")


def absorb_(total: Tally, part: Tally) -> None:
    """Move the queries of `part`, which is empty afterwards, into `total`.

    One accumulator at a time: a whole third tally beside the two would be the run's largest memory.
    """
    if total and total.keys() != part.keys():
        different = sorted(total.keys() ^ part.keys())
        raise ValueError(f"tallies of different measures: {different[0]}")
    for key in list(part):
        added = part.pop(key)
        total[key] = total[key].merge(added) if key in total else added  # type: ignore[arg-type]
