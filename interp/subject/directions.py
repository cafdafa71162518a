"""A mounted LoRA's update as singular directions, and the model with some of them only.

    with truncated(subject.weights, "adapter_0", {"model.layers.0.self_attn.q_proj": keep}):
        ...                         # this module's update has the directions where `keep` is True

The factors are replaced, not the model's weights, and put back to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor

from interp.errors import SubjectError
from interp.subject.weights import Weights


class Directions(NamedTuple):
    """`B A = U diag(S) V`, largest singular value first; the adapter's scaling is not in it."""

    u: Float[Tensor, "d_out rank"]
    s: Float[Tensor, " rank"]
    v: Float[Tensor, "rank d_in"]


def ranks(weights: Weights, adapter: str | None) -> dict[str, int]:
    """Module -> rank of a plain LoRA on it. Left out: updates of DoRA, with a bias, of embeddings
    and experts, and of a LoRA that rewrites base below it."""
    rewriting = {weights.adapters[own] for own, changed in weights.rewritten.items() if changed}
    if adapter is None or adapter in rewriting:
        return {}
    return {
        name: int(layer.r[adapter])
        for name, layer in weights.layers.items()
        if isinstance(layer, LoraLayer)
        and not isinstance(layer, AdaLoraLayer | ParamWrapper)
        and adapter in layer.lora_A
        and not (layer.use_dora.get(adapter) or layer.lora_bias.get(adapter))
    }


def decomposed(weights: Weights, module: str, adapter: str | None) -> Directions:
    """The thin singular value decomposition of an update, in float64, from its factors alone: a
    matrix as large as the module is never made."""
    if module not in ranks(weights, adapter):
        raise SubjectError(f"{module} has no plain LoRA whose directions could be taken apart")
    layer = weights.layers[module]
    factors = (getattr(layer, name)[adapter].weight for name in ("lora_A", "lora_B"))
    down, up = (factor.detach().double() for factor in factors)
    return of_product(up, down)


def of_product(up: Float[Tensor, "d_out rank"], down: Float[Tensor, "rank d_in"]) -> Directions:
    """The thin singular value decomposition of `up @ down`, which is not multiplied out."""
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    u, s, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
    return Directions(q_up @ u, s, v @ q_down.T)


@contextmanager
def truncated(
    weights: Weights, adapter: str | None, kept: Mapping[str, Bool[Tensor, " rank"]]
) -> Iterator[None]:
    """The update of every named module keeps the directions where its mask is True."""
    before: list[tuple[Any, Tensor]] = []
    try:
        for module, mask in kept.items():
            u, s, v = decomposed(weights, module, adapter)
            layer = weights.layers[module]
            for name, value in (("lora_A", v), ("lora_B", u * (s * mask.to(s)))):
                parameter = getattr(layer, name)[adapter].weight
                before.append((parameter, parameter.data))
                parameter.data = value.to(parameter.dtype)
        yield
    finally:
        for parameter, data in reversed(before):
            parameter.data = data
