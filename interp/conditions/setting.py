"""A condition made exact for one tokenizer: what precedes the query, and what is changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from interp.conditions.controls import Untrained


class Randomised(NamedTuple):
    """Stands in a setting's adapters for the random adapter that is like the one in `folder`."""

    folder: str
    seed: int


class Added(NamedTuple):
    """A vector file, times `scale`, added to the residual stream after block `layer`."""

    vector: str
    layer: int
    scale: float


class Virtual(NamedTuple):
    """An adapter's virtual tokens: the folder, how many, and whether they are keys and values of
    every layer (`Prefix`) or embeddings (`SoftPrompt`)."""

    adapter: str
    length: int
    cached: bool


@dataclass(frozen=True)
class Setting:
    """A condition made exact for one tokenizer.

    `prefix`: token ids before the query. `shift`: how far the query's positions lie beyond the
    prefix (0 except for `Shifted`). `adapters`: (folder, scale) of the active LoRAs. `model`:
    other weights, or None. `bias`: (token id, value, positions or None for all). `virtual`: virtual
    tokens, which stand before `prefix`. `steering`: what is added to the residual stream.
    """

    prefix: tuple[int, ...] = ()
    shift: int = 0
    adapters: tuple[tuple[str | Randomised, float], ...] = ()
    model: str | Untrained | None = None
    bias: tuple[tuple[int, float, tuple[int, ...] | None], ...] = ()
    virtual: Virtual | None = None
    steering: tuple[Added, ...] = ()

    @property
    def n_prefix(self) -> int:
        """How many keys stand before the query: the virtual tokens and the token ids."""
        return len(self.prefix) + (self.virtual.length if self.virtual else 0)

    @property
    def weights(self) -> tuple[Any, ...]:
        """What identifies the state of the weights."""
        return (self.model, self.adapters)
