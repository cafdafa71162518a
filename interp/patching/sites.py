"""What is replaced at once in a sweep, and at which rows of a query. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from interp.queries import Encoded


class PatchSite(NamedTuple):
    """A place of an interchange.

    `site`: a name of `interp.names.HOOKS`; `head`: None for the whole site, a key/value head for
    `k` and `v`; `position`: `all` tokens of query and answer; a segment (`query`, `template`,
    `answer`); `last`, the token before the answer; or an index within the query's text counted
    from its start (`0`, `1`, ...).
    """

    site: str
    layer: int
    head: int | None
    position: str


class MeasuredAt(Protocol):
    """Where a row of a run's table was measured; `layer` None: outside the blocks."""

    @property
    def site(self) -> str: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def head(self) -> int | None: ...
    @property
    def position(self) -> str: ...


def _rows_at(query: Encoded, position: str) -> range:
    """The rows of `query.forced` at a position; empty where the query has none."""
    before = len(query.ids)
    if position == "all":
        return range(len(query.forced))
    if position == "last":
        return range(before - 1, before)
    if position in query.segments:
        return query.segments[position]
    text = range(before if query.n_text is None else query.n_text)
    return text[int(position) :][:1]


def reached(queries: Sequence[Encoded], position: str) -> Bool[ndarray, "query query_pos"]:
    """The rows of every query at a position, padded as in `Batch.forced`."""
    found = np.zeros((len(queries), max(len(query.forced) for query in queries)), dtype=bool)
    for mask, query in zip(found, queries, strict=True):
        mask[_rows_at(query, position)] = True
    return found


def counterparts(query: Encoded, other: Encoded) -> list[int]:
    """For every row of a query a row of another one, in the same segment: the answer's counted from
    its start, those before it from their segment's end. What has no counterpart takes the nearest.
    """
    found: list[int] = []
    for name, own in query.segments.items():
        theirs = other.segments[name]
        shift = theirs.start - own.start if name == "answer" else theirs.stop - own.stop
        last = max(theirs.start, theirs.stop - 1)
        found += [min(max(row + shift, theirs.start), last) for row in own]
    return found
