"""What a run need not compute: blocks below an edit, and the unembedding of what nobody asks for.

with skipped(bridge.blocks[:3]), only_at(bridge.unembed, batch.ends[:, None] - 1):
    ...                         # the model passes through three blocks untouched
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def skipped(blocks: Iterable[nn.Module], wrapped: bool) -> Iterator[None]:
    """These blocks return what they are given (`wrapped`: in a tuple, as the model's blocks return
    what they compute), and leave the key/value cache alone.

    The model still makes masks and positions itself, so that no architecture needs a case here. A
    bridge's block hands attributes on to the module it wraps: `forward` goes into its `__dict__`.
    """
    with _instead(blocks, _through_wrapped if wrapped else _through):
        yield


@contextmanager
def silent(projections: Iterable[nn.Module], width: int) -> Iterator[None]:
    """These projections return zeros of `width` numbers a token."""

    def nothing(rows: Tensor, *_: Any, **__: Any) -> Tensor:
        return rows.new_zeros(*rows.shape[:-1], width)

    with _instead(projections, nothing):
        yield


@contextmanager
def _instead(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    changed = list(modules)
    try:
        for module in changed:
            module.__dict__["forward"] = forward
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def _through(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _through_wrapped(hidden_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor]:
    return (hidden_states,)


@contextmanager
def only_at(unembed: nn.Module, columns: Tensor | None) -> Iterator[None]:
    """The unembedding sees these `columns` `[batch, row]` of every query alone; None: all."""
    if columns is None:
        yield
        return
    rows = torch.arange(len(columns), device=columns.device)
    with picked(unembed, (rows[:, None], columns)):
        yield


@contextmanager
def picked(unembed: nn.Module, index: tuple[Tensor, Tensor]) -> Iterator[None]:
    """The unembedding sees the states of these (queries, columns) alone, in the index's shape."""

    def chosen(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states, *rest = inputs
        return states[index], *rest

    handle = unembed.register_forward_pre_hook(chosen)
    try:
        yield
    finally:
        handle.remove()
