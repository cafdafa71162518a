"""A few queries closely: the attention of every head under every condition, and what each says.

    kept = read_samples(subject, queries, ["base", "prompt", "lora"])
    kept.pattern(Head(5, 3), "lora", 0)

Kept within a budget of bytes: fewer queries first, then fewer conditions, then only the last rows.
A context with many tokens keeps a column for those that are attended to most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.capture import capture
from interp.heads import context_tokens, token_texts
from interp.measures import wide
from interp.names import Site
from interp.queries import Encoded
from interp.runs.samples import SampledContext, SampledQuery, Samples, segments_of
from interp.subject import Batch, Subject

BUDGET = 12 << 20
"""Bytes of patterns that a run keeps at most."""

SAMPLED, CONTEXT_COLUMNS, _LEAST, _TOP = 12, 96, 4, 5
"""Queries that are kept at most; columns of a context; queries kept while there is room for
all conditions; tokens that come first."""


class _Extent(NamedTuple):
    """What fits the budget: conditions, queries, and rows of each."""

    names: list[str]
    queries: Sequence[Encoded]
    rows: int


def read_samples(
    subject: Subject,
    queries: Sequence[Encoded],
    main: Sequence[str],
    patterns: bool = True,
    budget: int = BUDGET,
) -> Samples:
    """Patterns of the first queries and the tokens that come first; `main`: conditions that are
    kept where not all are, `patterns`: False where a model's cannot be read."""
    layers = list(subject.anatomy.layers("pattern")) if patterns else []
    extent = _extent(subject, queries[:SAMPLED], main, len(layers) * subject.n_heads, budget)
    contexts: dict[str, SampledContext] = {}
    blocks: dict[tuple[int, str], np.ndarray] = {}
    says: dict[str, list[list[tuple[str, float]]]] = {}
    for name in subject.settings:
        seen = _Seen(subject, name, extent)
        if layers and name in extent.names:
            contexts[name], own = seen.patterns(layers)
            blocks |= {(at, name): block for at, block in enumerate(own)}
        says[name] = seen.says()
    ordered = [blocks[at, name].ravel() for at in range(len(extent.queries)) for name in contexts]
    return Samples(
        queries=[_query(subject, at, one, extent.rows) for at, one in enumerate(extent.queries)],
        layers=layers,
        n_heads=subject.n_heads,
        contexts=contexts,
        says=says,
        packed=np.concatenate(ordered) if ordered else np.empty(0, np.uint8),
    )


def _extent(
    subject: Subject, queries: Sequence[Encoded], main: Sequence[str], heads: int, budget: int
) -> _Extent:
    everything = list(subject.settings)
    for names, least in ((everything, _LEAST), ([n for n in everything if n in main], 1)):
        for count in range(len(queries), min(least, len(queries)) - 1, -1):
            kept = queries[:count]
            if heads * sum(_cells(subject, names, kept)) <= budget:
                return _Extent(names, kept, max(len(query.ids) for query in kept))
    one = queries[:1]
    columns = sum(_width(subject, name) + len(one[0].ids) for name in names)
    return _Extent(names, one, max(1, budget // (heads * columns)))


def _cells(subject: Subject, names: Sequence[str], queries: Sequence[Encoded]) -> Iterator[int]:
    for name in names:
        for query in queries:
            yield len(query.ids) * (_width(subject, name) + len(query.ids))


def _width(subject: Subject, name: str) -> int:
    """Columns of a condition's context."""
    return min(subject.settings[name].n_prefix, CONTEXT_COLUMNS + 1)


def _query(subject: Subject, at: int, query: Encoded, rows: int) -> SampledQuery:
    length = len(query.ids)
    return SampledQuery(
        query=at,
        text=query.text,
        tokens=token_texts(subject, query.ids),
        segments=segments_of(query.segments, length),
        rows=min(rows, length),
        answer="".join(token_texts(subject, query.answer_ids)),
    )


# --- what is read --------------------------------------------------------------------------------


class _Seen:
    """One condition on the kept queries, in one run where that is enough."""

    def __init__(self, subject: Subject, name: str, extent: _Extent) -> None:
        self.subject, self.extent = subject, extent
        self.setting = subject.settings[name]
        self.cache = subject.prefill(self.setting)
        self.logits: Tensor | None = None

    def _run(self, read: Mapping[Site, Any]) -> dict[Site, Any]:
        """What readers return; the last tokens' logits are kept."""
        batch = Batch.of(self.extent.queries, self.subject.device)
        found = capture(self.subject, self.setting, batch, self.cache, read, last=True)
        self.logits = found.logits
        return found.values

    def says(self) -> list[list[tuple[str, float]]]:
        """The tokens of the largest probability after every query, largest first."""
        if self.logits is None:
            self._run({})
        assert self.logits is not None
        top = wide(self.logits).softmax(-1).topk(min(_TOP, self.logits.shape[-1]), dim=-1)
        return [
            list(zip(token_texts(self.subject, ids), map(float, weights), strict=True))
            for ids, weights in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]

    def patterns(self, layers: Sequence[int]) -> tuple[SampledContext, list[np.ndarray]]:
        """The context's columns, and per query uint8 `[layer, head, row, column]`."""
        names, count = context_tokens(self.subject, self.setting), self.setting.n_prefix
        kept = torch.arange(count) if count <= CONTEXT_COLUMNS + 1 else self._attended(layers)
        pack = partial(self._packed, kept=kept)
        sites = [Site("pattern", layer) for layer in layers]
        found = self._run(dict.fromkeys(sites, pack))
        blocks = [np.stack([found[s][at] for s in sites]) for at in range(len(self.extent.queries))]
        return SampledContext([names[i] for i in kept.tolist()], count - len(kept)), blocks

    def _attended(self, layers: Sequence[int]) -> Tensor:
        """The tokens of a long context that heads attend to most, in their order."""
        count = self.setting.n_prefix
        mass, lengths = torch.zeros(count), [len(query.ids) for query in self.extent.queries]

        def weigh(pattern: Tensor) -> None:
            context = _whole(pattern, count)[..., :count]
            for own, length in zip(context, lengths, strict=True):
                mass.add_(own[:, :length].sum((0, 1)))

        self._run({Site("pattern", layer): weigh for layer in layers})
        return mass.topk(CONTEXT_COLUMNS).indices.sort().values

    def _packed(self, pattern: Tensor, kept: Tensor) -> list[np.ndarray]:
        """Per query uint8 `[head, row, column]`."""
        count = self.setting.n_prefix
        whole = _whole(pattern, count)
        context, own = whole.split([count, whole.shape[-1] - count], -1)
        rest = own[..., :0]
        if len(kept) < count:
            rest = (context.sum(-1) - context[..., kept].sum(-1))[..., None]
        columns = torch.cat([rest, context[..., kept], own], -1)
        end = columns.shape[-1] - own.shape[-1]
        packed = (columns.clamp(0, 1).sqrt() * 255).round().to(torch.uint8).numpy()
        lengths = [len(query.ids) for query in self.extent.queries]
        return [
            packed[i, :, max(0, length - self.extent.rows) : length, : end + length]
            for i, length in enumerate(lengths)
        ]


def _whole(pattern: Tensor, n_prefix: int) -> Tensor:
    """`[batch, head, query_pos, prefix + query_pos]` float32 on the CPU; columns that a sliding
    window has left behind are 0."""
    found = pattern.detach().float().cpu()
    missing = n_prefix + found.shape[-2] - found.shape[-1]
    return torch.nn.functional.pad(found, (missing, 0)) if missing > 0 else found
