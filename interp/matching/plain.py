"""Plain Hugging Face (and peft) models on many sequences behind one prefix: no hooked model.

    answers = generate_answers(model, prefix, queries, 24, Sampling())        # token ids, greedy
    got = read_sequences(model, prefix, [(query.forced, first), ...])
    got.logits                                                     # [token, d_vocab]

The prefix is run once and its keys and values are repeated; the unembedding sees the rows that are
asked for alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from interp.capture import chunks
from interp.config import Loading
from interp.generating import Sampling, TokenDraw, ends
from interp.queries import Encoded
from interp.subject.insertions import blocks
from interp.subject.loading import device_of, pretrained, quiet
from interp.subject.shortcuts import picked
from interp.subject.subject import repeat_

ROWS_PER_PASS = 32
"""Sequences in one forward pass without gradients."""

_Ids = Sequence[int]


def open_plain_model(model: str, how: Loading) -> Any:
    """A plain model on its device, opened in silence."""
    with quiet():
        return pretrained(model, how.dtype, how.hub, device_of(how.device), how.quantization)


class _Read(NamedTuple):
    """What is read of some tokens: their logits, and the residual stream after every block."""

    logits: Float[Tensor, "token d_vocab"]
    states: Float[Tensor, "layer token d_model"] | None = None


def read_sequences(
    model: Any, prefix: _Ids, sequences: Sequence[tuple[_Ids, int]], *, states: bool = False
) -> _Read:
    """Every sequence (ids after the prefix) from its row `first` on, one after another; autograd
    follows where it is on. `states`: the residual stream too."""
    device = next(model.parameters()).device
    rows = [torch.tensor(ids, device=device) for ids, _ in sequences]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # on the right: never seen
    columns = torch.arange(padded.shape[1], device=device)
    begins = torch.tensor([first for _, first in sequences], device=device)[:, None]
    lengths = torch.tensor([len(ids) for ids, _ in sequences], device=device)[:, None]
    query, column = ((columns >= begins) & (columns < lengths)).nonzero(as_tuple=True)
    mask = torch.ones(len(rows), len(prefix) + padded.shape[1], device=device, dtype=torch.long)
    past = {"past_key_values": _repeated(model, prefix, len(rows), device)} if prefix else {}
    streams: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(picked(model.get_output_embeddings(), (query, column)))
        if states:
            stack.enter_context(_kept(streams, model, (query, column)))
        logits = model(padded, attention_mask=mask, **past).logits
    return _Read(logits, torch.stack(streams) if states else None)


@contextmanager
def _kept(streams: list[Tensor], model: Any, index: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Every block's output at these (sequences, columns) is added to `streams`."""

    def keep(_module: Any, _inputs: Any, out: Any) -> None:
        streams.append((out[0] if isinstance(out, tuple) else out)[index])

    handles = [block.register_forward_hook(keep) for block in blocks(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _repeated(model: Any, prefix: _Ids, size: int, device: torch.device) -> Any:
    """The prefix's keys and values, so many times."""
    ids = torch.tensor([list(prefix)], device=device)
    nothing = torch.zeros(0, dtype=torch.long, device=device)
    with picked(model.get_output_embeddings(), (nothing, nothing)):
        cache = model(ids, use_cache=True).past_key_values
    repeat_(cache.layers, size)
    return cache


def generate_answers(
    model: Any,
    prefix: _Ids,
    queries: Sequence[Encoded],
    n_tokens: int,
    sampling: Sampling,
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[int, ...]]:
    """The model's own answer to every query, at most `n_tokens` ids, an end-of-turn token among
    them: `generate` of the whole sequences, padded on the left, without any penalty."""
    found: dict[int, tuple[int, ...]] = {}
    order = sorted(range(len(queries)), key=lambda i: len(queries[i].ids))
    for some in chunks(order, ROWS_PER_PASS):
        whole = [(*prefix, *queries[i].ids) for i in some]
        draws = [TokenDraw(queries[i].key, sampling) for i in some]
        found |= zip(some, _generate(model, whole, n_tokens, draws), strict=True)
        progress(len(some))
    return [found[i] for i in range(len(queries))]


class _Drawn(LogitsProcessor):
    """Leaves every sequence the one token that it has drawn."""

    def __init__(self, draws: Sequence[TokenDraw]) -> None:
        self.draws = draws

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = [draw(row) for draw, row in zip(self.draws, scores, strict=True)]
        index = torch.tensor(tokens, device=scores.device)[:, None]
        return torch.full_like(scores, -torch.inf).scatter(1, index, 0.0)


def _generate(
    model: Any, whole: Sequence[_Ids], n_tokens: int, draws: Sequence[TokenDraw]
) -> list[tuple[int, ...]]:
    device, width = next(model.parameters()).device, max(map(len, whole))
    ids = torch.tensor([[*[0] * (width - len(row)), *row] for row in whole], device=device)
    seen = [[0] * (width - len(row)) + [1] * len(row) for row in whole]
    with _plainly(model, n_tokens) as (generate, stop):
        written = generate(
            ids,
            attention_mask=torch.tensor(seen, device=device),
            logits_processor=LogitsProcessorList([_Drawn(draws)]),
        )
    return [_ended(row, stop) for row in written[:, width:].tolist()]


@contextmanager
def _plainly(model: Any, n_tokens: int) -> Iterator[tuple[Callable[..., Tensor], set[int]]]:
    """`generate`, and the tokens that end an answer; of the model's own generation configuration,
    which would fill in what is left open, nothing else counts."""
    plain: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    own, stop = plain.generation_config, ends(plain)
    plain.generation_config = GenerationConfig(
        max_new_tokens=n_tokens, do_sample=False, eos_token_id=sorted(stop) or None, pad_token_id=0
    )
    try:
        yield plain.generate, stop
    finally:
        plain.generation_config = own


def _ended(answer: list[int], stop: set[int]) -> tuple[int, ...]:
    """An answer up to the first token that ends it."""
    end = next((i for i, token in enumerate(answer) if token in stop), len(answer))
    return tuple(answer[: end + 1])
