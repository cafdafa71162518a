"""What a condition answers: tokens written one by one through the hooked, prefix-cached model.

    answers = generate(subject, subject.settings["lora"], queries, 16, Sampling())
    answers[0]                      # token ids; the last ends the model's turn, or there are 16

Queries are read with those of their length, without padding: a key that is masked in the middle of
a sequence is not exact under every kind of attention. What is written after them is written for all
lengths together, the caches padded on the left, where every kind of attention leaves them out; the
states of recurrences have no such place. The logits are the model's own: greedy is
`PeftModel.generate(do_sample=False)` of a generation configuration without penalties.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from interp.batch import Batch
from interp.capture import by_length, chunks
from interp.conditions import Setting
from interp.measures import wide
from interp.queries import Encoded
from interp.statistics import generator_of
from interp.subject import Subject
from interp.subject.subject import repeat_

_ROWS, _HELD = 64, 1 << 30
"""Queries that are written together at most, and bytes of what precedes them in their caches."""


class Sampling(NamedTuple):
    """`temperature` 0 is greedy; otherwise every query draws from its own generator, seeded by
    (seed, key), whatever is written beside it."""

    temperature: float = 0.0
    seed: int = 0


def generate(
    subject: Subject,
    setting: Setting,
    queries: Sequence[Encoded],
    n_tokens: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - immutable
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[int, ...]]:
    """The answer of every query, at most `n_tokens` token ids, an end-of-turn token among them."""
    cache = subject.prefill(setting)
    found: dict[int, tuple[int, ...]] = {}
    for some in _together(subject, queries, cache):
        asked = [queries[i] for i in some]
        draws = [TokenDraw(query.key, sampling) for query in asked]
        alike = by_length(asked, len(asked))
        batches = [Batch.of([asked[i] for i in same], subject.device) for same in alike]
        answers = _write(subject, setting, batches, cache, n_tokens, draws)
        found |= zip(some, answers, strict=True)
        progress(len(some))
    return [found[i] for i in range(len(queries))]


def _together(subject: Subject, queries: Sequence[Encoded], cache: Any) -> Iterator[Sequence[int]]:
    """Numbers of queries that are written together, the shortest first; `cache` holds what precedes
    each."""
    rows = _rows(cache)
    if subject.anatomy.layers("mixer_out"):
        return by_length(queries, rows)
    return chunks(sorted(range(len(queries)), key=lambda i: len(queries[i].ids)), rows)


def _rows(cache: Any) -> int:
    """How many copies of a cache are held at once."""
    keys = [getattr(layer, "keys", None) for layer in getattr(cache, "layers", ())]
    size = sum(2 * held.numel() * held.element_size() for held in keys if held is not None)
    return max(1, min(_ROWS, _HELD // max(1, size)))


def ends(model: Any) -> set[int]:
    """The tokens that end an answer, as a plain model's generation configuration names them."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    return {int(token) for token in np.atleast_1d([] if eos is None else eos)}


class TokenDraw:
    """How one query's next token is chosen; `key` is the query's."""

    def __init__(self, key: str, sampling: Sampling) -> None:
        self.temperature = sampling.temperature
        self.generator = generator_of(f"answer:{sampling.seed}:{key}")

    def __call__(self, logits: Tensor) -> int:
        """The next token of these logits `[d_vocab]`."""
        if not self.temperature:
            return int(logits.argmax())
        shares = (wide(logits) / self.temperature).softmax(-1).cumsum(-1)
        drawn = self.generator.random() * float(shares[-1])
        return min(int((shares <= drawn).sum()), len(shares) - 1)


def _write(
    subject: Subject,
    setting: Setting,
    batches: Sequence[Batch],
    cache: Any,
    n_tokens: int,
    draws: Sequence[TokenDraw],
) -> list[tuple[int, ...]]:
    """The answers of queries, those of every batch of one length, the shortest first."""
    stop = ends(subject.hf_model)
    answers: list[list[int]] = [[] for _ in draws]
    caches = [_repeated(subject, cache, len(batch.ids)) for batch in batches]
    begun = [
        subject.extend(setting, batch, own, torch.zeros_like(batch.ends))
        for batch, own in zip(batches, caches, strict=True)
    ]
    logits, held = torch.cat(begun), _joined(caches)
    lengths = torch.cat([batch.ends for batch in batches])
    for written in range(n_tokens):
        tokens = [draw(row) for draw, row in zip(draws, logits, strict=True)]
        for answer, token in zip(answers, tokens, strict=True):
            if not (answer and answer[-1] in stop):
                answer.append(token)
        if written == n_tokens - 1 or all(answer[-1] in stop for answer in answers):
            break
        ids = torch.tensor(tokens, device=lengths.device)[:, None]
        step = Batch(ids, torch.ones_like(lengths), lengths)
        logits = subject.extend(setting, step, held, lengths + written)
    return [tuple(answer) for answer in answers]


def _joined(caches: Sequence[Any]) -> Any:
    """One cache of the rows of several, padded on the left to the last one's length."""
    for *shorter, longest in zip(*(cache.layers for cache in caches), strict=True):
        if shorter and getattr(longest, "keys", None) is not None:
            for name in ("keys", "values"):
                held = [getattr(layer, name) for layer in (*shorter, longest)]
                width = held[-1].shape[-2]
                rows = [F.pad(own, (0, 0, width - own.shape[-2], 0)) for own in held]
                setattr(longest, name, torch.cat(rows))
    return caches[-1]


def _repeated(subject: Subject, cache: Any, size: int) -> Any:
    """A copy of a prefix's cache for so many queries; an empty one where nothing stands before."""
    if cache is None:
        from transformers import DynamicCache

        return DynamicCache(config=subject.text_config)
    cache = copy.deepcopy(cache)
    repeat_(cache.layers, size)
    return cache
