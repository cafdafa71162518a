"""What is replaced at once in a sweep. Torch-free."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Cell(NamedTuple):
    """A place of an interchange.

    `site`: a name of `interp.names.HOOKS`; `head`: None for the whole site, a key/value head for
    `k` and `v`; `position`: `all` query tokens, `last`, or an index within the query counted from
    its start (`0`, `1`, ...).
    """

    site: str
    layer: int
    head: int | None
    position: str


class Place(Protocol):
    """Where a row of a run's table was measured; `layer` None: outside the blocks."""

    @property
    def site(self) -> str: ...
    @property
    def layer(self) -> int | None: ...
    @property
    def head(self) -> int | None: ...
    @property
    def position(self) -> str: ...
