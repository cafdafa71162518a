"""Capture: the values at chosen sites, on the aligned query tokens of one condition.

    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    got = capture(subject, subject.settings["lora"], batch, caches["lora"], {Site("z", 3): keep})
    got.values[Site("z", 3)]            # [batch, head, query_pos, d_head]

Only the requested sites are hooked; a reader may reduce a value inside the forward pass. `edits`
change values instead. Hooks are gone when the call returns, also after an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from einops import rearrange
from torch import Tensor

from interp.conditions import Setting
from interp.edits import Edit, PlacedEdit, hooks
from interp.names import Site
from interp.subject import Batch, Subject

Reader = Callable[[Tensor], Any]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Captured:
    """What one condition did with one batch: `logits` `[batch, query_pos, d_vocab]` (or those of
    the last tokens, `[batch, d_vocab]`), and what the readers returned."""

    logits: Tensor
    values: dict[Site, Any]


def keep(value: Tensor) -> Tensor:
    """The value itself, in storage of its own; heads stand before positions."""
    kept = value.detach()
    return (rearrange(kept, "b s h d -> b h s d") if kept.ndim == 4 else kept).clone()


def capture(
    subject: Subject,
    setting: Setting,
    batch: Batch,
    cache: Any,
    read: Mapping[Site, Reader],
    edits: Sequence[Edit] = (),
    *,
    start: int = 0,
    end: int | None = None,
    last: bool = False,
    columns: Tensor | None = None,
    attention_only: bool = False,
) -> Captured:
    """Run a batch of queries under a setting and read (or edit) sites of the query rows.

    `cache` is `subject.prefill(setting)`; `start`: blocks below it do not run, an edit of its
    `resid_pre` says what enters it; `end`, `last`, `columns`, `attention_only`: as of
    `Subject.run`.
    """
    values: dict[Site, Any] = {}

    def reading(site: Site, reader: Reader) -> Callable[[Tensor], None]:
        def hook(value: Tensor) -> None:
            values[site] = reader(value)

        return hook

    changed: dict[Site, Callable[[Tensor], Tensor | None]] = {**hooks(map(PlacedEdit, edits))}
    if both := changed.keys() & read.keys():
        raise ValueError(f"{min(both)} cannot be read and edited in one run")
    readers = {site: reading(site, reader) for site, reader in read.items()}
    hooked = changed | readers
    logits = subject.run(
        setting,
        batch,
        cache,
        hooked,
        start=start,
        end=end,
        last=last,
        columns=columns,
        attention_only=attention_only,
    )
    return Captured(logits, values)


def chunks(queries: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    """Consecutive runs of at most `size` queries (or of their numbers)."""
    for start in range(0, len(queries), size):
        yield queries[start : start + size]


def chunk_size(subject: Subject, longest: int, budget: float) -> int:
    """How many queries fit a budget of bytes, with every condition's states in memory at once.

    Counts logits, residual-sized states, patterns with their prefix, and the repeated key/value
    cache; the transient working set of a forward pass is taken to be as large again.
    """
    n_conditions = len(subject.settings)
    prefix = max(setting.n_prefix for setting in subject.settings.values())
    states = 6 * subject.n_layers * longest * subject.d_model
    patterns = 4 * subject.n_layers * subject.n_heads * longest * longest
    outputs = longest * subject.d_vocab
    cache = 2 * subject.n_layers * subject.d_model * (prefix + longest)
    rows = 2 * subject.n_heads * longest * (prefix + longest)
    numbers = n_conditions * (states + 2 * patterns + outputs) + 2 * (cache + rows + outputs)
    return max(1, int(budget / (4 * numbers)))
