"""What is replaced at once in a sweep. Torch-free."""

from __future__ import annotations

from typing import NamedTuple


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
