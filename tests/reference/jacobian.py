"""The Jacobian lens by its definition: plain Hugging Face, autograd, one output number at a time.

J of a layer is the mean over texts of the mean over tokens t of the sum over later tokens t' (t
itself among them) of d h_last[t'] / d h_layer[t]; the first tokens of a text and its last one count
on neither side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .models import blocks
from .numbers import Array, double


def mean_jacobians(model: Any, texts: Sequence[Sequence[int]], layer: int, skip: int) -> Array:
    """`[d_model, d_model]`, over texts that are token ids."""
    return np.mean([_of_text(model, ids, layer, skip) for ids in texts], axis=0)


def _of_text(model: Any, ids: Sequence[int], layer: int, skip: int) -> Array:
    counted = range(skip, len(ids) - 1)
    with _watched(model, layer) as seen:
        model(torch.tensor([list(ids)]))
        source, target = seen["source"], seen["target"]
        width = target.shape[-1]
        pairs = np.zeros((len(counted), width, len(ids), width))
        for row, later in enumerate(counted):
            for number in range(width):
                (slope,) = torch.autograd.grad(target[0, later, number], source, retain_graph=True)
                pairs[row, number] = double(slope[0])
    found = np.zeros((width, width))
    for t in counted:
        for row, later in enumerate(counted):
            if later >= t:
                found += pairs[row, :, t]
    return found / len(counted)


@contextmanager
def _watched(model: Any, layer: int) -> Iterator[dict[str, torch.Tensor]]:
    """The output of a block, from where the graph begins, and that of the last block."""
    seen: dict[str, torch.Tensor] = {}
    flags = [(p, p.requires_grad) for p in model.parameters()]

    def begin(module: Any, given: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        seen["source"] = hidden.detach().clone().requires_grad_()
        return (seen["source"], *output[1:]) if isinstance(output, tuple) else seen["source"]

    def end(module: Any, given: Any, output: Any) -> None:
        seen["target"] = output[0] if isinstance(output, tuple) else output

    handles = [
        blocks(model)[layer].register_forward_hook(begin),
        blocks(model)[-1].register_forward_hook(end),
    ]
    try:
        for p, _ in flags:
            p.requires_grad_(False)
        yield seen
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
        for handle in handles:
            handle.remove()
