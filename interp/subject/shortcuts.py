"""What a run need not compute: blocks below an edit, and the unembedding of all but the last token.

with skipped(bridge.blocks[:3]), only_last(bridge.unembed, batch.lengths):
    ...                         # the model passes through three blocks untouched
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def skipped(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """These blocks return what they are given, and leave the key/value cache alone.

    The model still makes masks and positions itself, so that no architecture needs a case here. A
    bridge's block hands attributes on to the module it wraps: `forward` goes into its `__dict__`.
    """
    passed = list(blocks)
    try:
        for block in passed:
            block.__dict__["forward"] = _through
        yield
    finally:
        for block in passed:
            block.__dict__.pop("forward", None)


def _through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


@contextmanager
def only_last(unembed: nn.Module, lengths: Tensor | None) -> Iterator[None]:
    """The unembedding sees the last token of every query, `[batch, 1, d_model]`; None: all."""
    if lengths is None:
        yield
        return

    def last(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states, *rest = inputs
        rows = torch.arange(len(lengths), device=states.device)
        return states[rows, lengths - 1][:, None], *rest

    handle = unembed.register_forward_pre_hook(last)
    try:
        yield
    finally:
        handle.remove()
