"""Measures of all layers, worked out a few layers at a time.

by_layer(router_js, a.shares, b.shares)                     # [batch, layer, query_pos]
found = LayerParts()
for x, y in layer_groups(a.content, b.content):
    found.add(key, content_js(x, y))
yield from found.whole()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from interp.measures.tally import Key

Values = tuple[Key, Tensor, Tensor | float]
"""What is measured, and its numerator and denominator by token, `[batch, (layer,) (head,)
query_pos]`; 1.0 is the denominator of a mean."""


def by_layer(function: Callable[..., Tensor], *layers: Sequence[Tensor]) -> Tensor:
    """`function` of every layer's tensors, stacked as `[batch, layer, (head,) query_pos]`."""
    return torch.cat([function(*tensors) for tensors in layer_groups(*layers)], dim=1)


GROUP = 1 << 18
"""Numbers of a condition that are worked on at once."""


def layer_groups(*layers: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Every condition's tensors `[batch, layer, ...]`, a few layers at a time: many where they are
    small, so that a small model does not wait for Python, and one where they are large. Layers of
    different shapes (Gemma 4 has heads of two widths) are never in one."""
    shapes, start = [own.shape for own in layers[0]], 0
    while start < len(shapes):
        most = start + max(1, GROUP // max(1, shapes[start].numel()))
        end = start + 1
        while end < min(most, len(shapes)) and shapes[end] == shapes[start]:
            end += 1
        yield [torch.stack(list(own[start:end]), dim=1) for own in layers]
        start = end


class LayerParts:
    """Values of consecutive layers, put together at the end."""

    def __init__(self) -> None:
        self._found: dict[Key, list[tuple[Tensor, Tensor | None]]] = {}

    def add(self, key: Key, numerator: Tensor, denominator: Tensor | None = None) -> None:
        """Those of the next layers, `[batch, layer, ...]`; without a denominator, a mean's."""
        self._found.setdefault(key, []).append((numerator, denominator))

    def whole(self) -> Iterator[Values]:
        """Those of all layers."""
        for key, parts in self._found.items():
            above = torch.cat([part for part, _ in parts], dim=1)
            below = [part for _, part in parts if part is not None]
            yield key, above, torch.cat(below, dim=1) if below else 1.0
