"""Live slices for fused projections (GPT-2 `c_attn`, NeoX and Falcon `query_key_value`, Phi-3
`qkv_proj`, MPT `Wqkv`).

TransformerBridge splits a fused projection once, by copying its weight: a LoRA mounted on the
fused module, or weights swapped later, never reach the copies and there is no error. `mend`
replaces every copy by a slice of the live fused module's output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_Split = Callable[[Tensor], tuple[Tensor, ...]]

MLP_SPLITS: dict[str, _Split] = {"gate_up_proj": lambda y: y.chunk(2, dim=-1)}
"""Fused module name -> how its output splits into gate and up."""


class _Shared:
    """The live fused module; computes once for the parts that are asked for the same input."""

    def __init__(self, module: nn.Module, split: _Split) -> None:
        self.module, self.split = module, split
        self.input: Tensor | None = None
        self.waiting: dict[int, Tensor] = {}

    def part(self, index: int, x: Tensor) -> Tensor:
        if self.input is not x or index not in self.waiting:
            self.input, self.waiting = x, dict(enumerate(self.split(self.module(x))))
        value = self.waiting.pop(index)
        if not self.waiting:
            self.input = None
        return value


class Slice(nn.Module):
    """One part (q, k, v, gate or up) of a fused projection's live output."""

    def __init__(self, shared: _Shared, index: int) -> None:
        super().__init__()
        self._shared, self._index = shared, index

    @property
    def whole(self) -> nn.Module:
        """The live fused module."""
        return self._shared.module

    def forward(self, x: Tensor) -> Tensor:
        return self._shared.part(self._index, x)


def mend(bridge: Any) -> None:
    """Replace the copied parts of every fused projection of a booted bridge by live slices. Their
    heads also keep the last pattern, which nobody reads: those of all layers, of a whole prefix."""
    for block in bridge.blocks:
        attention: Any = getattr(block, "attn", None)
        if "_pattern" in vars(attention or object):
            attention.register_forward_hook(_forget)
        mlp: Any = getattr(block, "mlp", None)
        hf = getattr(attention, "original_component", None)
        for name, split in attention_splits(bridge.cfg).items():
            if (module := getattr(hf, name, None)) is not None:
                _replace([attention.q, attention.k, attention.v], module, split)
        for name, split in MLP_SPLITS.items():
            if (
                module := getattr(getattr(mlp, "original_component", None), name, None)
            ) is not None:
                _replace([mlp.gate, getattr(mlp, "in")], module, split)


def _forget(attention: Any, *_: Any) -> None:
    attention._pattern = None


def _replace(components: list[Any], module: nn.Module, split: _Split) -> None:
    shared = _Shared(module, split)
    for index, component in enumerate(components):
        component.set_original_component(Slice(shared, index))


def attention_splits(cfg: Any) -> dict[str, _Split]:
    """Fused module name -> how its output splits into q, k, v (flat over heads)."""
    n_kv = cfg.n_key_value_heads or cfg.n_heads
    q_size, kv_size = cfg.n_heads * cfg.d_head, n_kv * cfg.d_head

    def by_group(y: Tensor) -> tuple[Tensor, ...]:
        """Per key/value head: the queries that share it, its key, its value."""
        group = y.unflatten(-1, (n_kv, cfg.n_heads // n_kv + 2, cfg.d_head))
        q, k, v = group.split((cfg.n_heads // n_kv, 1, 1), dim=-2)
        return q.flatten(-3), k.flatten(-3), v.flatten(-3)

    def stacked(y: Tensor) -> tuple[Tensor, ...]:
        return torch.split(y, [q_size, kv_size, kv_size], dim=-1)

    stacks = dict.fromkeys(("c_attn", "qkv_proj", "Wqkv"), stacked)
    return {**stacks, "query_key_value": by_group}
