"""What a condition answers: tokens written one by one through the hooked, prefix-cached model.

    answers = generate(subject, subject.settings["lora"], queries, 16, Sampling())
    answers[0]                      # token ids; the last ends the model's turn, or there are 16

Queries of one length are written together, without padding: a key that is masked in the middle of
a sequence is not exact under every kind of attention. The logits are the model's own: greedy is
`PeftModel.generate(do_sample=False)` of a generation configuration without penalties.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.batch import Batch
from interp.conditions import Setting
from interp.measures import wide
from interp.queries import Encoded
from interp.statistics import generator_of
from interp.subject import Subject

_ROWS = 64
"""Queries that are written together at most."""


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
    for some in _by_length(queries):
        draws = [TokenDraw(queries[i].key, sampling) for i in some]
        batch = Batch.of([queries[i] for i in some], subject.device)
        answers = _write(subject, setting, batch, cache, n_tokens, draws)
        found |= zip(some, answers, strict=True)
        progress(len(some))
    return [found[i] for i in range(len(queries))]


def ends(model: Any) -> set[int]:
    """The tokens that end an answer, as a plain model's generation configuration names them."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    return {int(token) for token in np.atleast_1d([] if eos is None else eos)}


def _by_length(queries: Sequence[Encoded]) -> list[list[int]]:
    """Numbers of queries of one length, at most `_ROWS` at once."""
    lengths: dict[int, list[int]] = {}
    for number, query in enumerate(queries):
        lengths.setdefault(len(query.ids), []).append(number)
    return [same[i : i + _ROWS] for same in lengths.values() for i in range(0, len(same), _ROWS)]


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
    batch: Batch,
    cache: Any,
    n_tokens: int,
    draws: Sequence[TokenDraw],
) -> list[tuple[int, ...]]:
    """The answers of queries of one length."""
    stop = ends(subject.hf_model)
    answers: list[list[int]] = [[] for _ in draws]
    cache = _repeated(subject, cache, len(draws))
    step, start = batch, 0
    for _ in range(n_tokens):
        logits = subject.extend(setting, step, cache, start)
        tokens = [draw(row) for draw, row in zip(draws, logits, strict=True)]
        for answer, token in zip(answers, tokens, strict=True):
            if not (answer and answer[-1] in stop):
                answer.append(token)
        if all(answer[-1] in stop for answer in answers):
            break
        start += step.ids.shape[1]
        ids = torch.tensor(tokens, device=batch.ids.device)[:, None]
        step = Batch(ids, torch.ones_like(ids[:, 0]), batch.ends)
    return [tuple(answer) for answer in answers]


def _repeated(subject: Subject, cache: Any, size: int) -> Any:
    """A copy of a prefix's cache for so many queries; an empty one where nothing stands before."""
    if cache is None:
        from transformers import DynamicCache

        return DynamicCache(config=subject.text_config)
    cache = copy.deepcopy(cache)
    cache.batch_repeat_interleave(size)
    return cache
