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
from itertools import groupby
from typing import Any, TypeVar

from einops import rearrange
from torch import Tensor

from interp.conditions import Setting
from interp.edits import Edit, PlacedEdit, hooks
from interp.names import Site
from interp.queries import Encoded
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


def by_length(queries: Sequence[Encoded], size: int) -> Iterator[Sequence[int]]:
    """Numbers of at most `size` queries that have as many tokens."""
    lengths = [len(query.ids) for query in queries]
    order = sorted(range(len(queries)), key=lengths.__getitem__)
    for _, same in groupby(order, key=lengths.__getitem__):
        yield from chunks(list(same), size)


def chunk_size(subject: Subject, longest: int, budget: float) -> int:
    """How many queries fit a budget of bytes, with every condition's states in memory at once."""
    return max(1, int(budget / bytes_per_query(subject, longest)))


MEMORY_MODEL_FACTOR = 2.0
"""What one more query takes is within this factor of `bytes_per_query`, either way."""


def bytes_per_query(subject: Subject, longest: int) -> float:
    """Memory of one more query of `longest` tokens in a chunk, all conditions together.

    Of every condition, residual-sized states (its own run's, those at pinned inputs, and the wide
    copies that are compared), patterns and scores over the query's own keys, and logits. Of two
    conditions at a time, keys and values; of one, a layer's patterns with their prefix.

    Measured over estimated, with all default measures in float32 on a CPU: few layers 0.7, many
    layers 1.0, a prompt of 1,500 tokens 1.2, the reference of the benchmarks 0.6. A vocabulary of
    60,000 took 0.8 in one process and 4 in another: the C library keeps what is freed.
    """
    n_conditions = len(subject.settings)
    prefix = max(setting.n_prefix for setting in subject.settings.values())
    states = 14 * subject.n_layers * longest * subject.d_model
    patterns = 8 * subject.n_layers * subject.n_heads * longest * longest
    outputs = longest * subject.d_vocab
    keys = 4 * subject.n_layers * subject.d_model * (prefix + longest)
    rows = 4 * subject.n_heads * longest * (prefix + longest)
    return 4.0 * (n_conditions * (states + patterns + outputs) + keys + rows + 2 * outputs)
