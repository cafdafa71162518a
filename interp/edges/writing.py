"""What every node writes to the residual stream, under the live weights of a condition.

    written = what_is_written(subject, setting, batch, cache)
    written.values[3]                   # [batch, query_pos, d_model] of senders_of(...)[3]
    written.error                       # how far their sum is from the last state

A head's write is the live output projection of its `z` alone (no weight matrix is read: a LoRA on
it acts), through the norm behind attention where there is one, its scale as it is in the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.capture import capture, keep
from interp.conditions import Setting
from interp.edges.nodes import Sender
from interp.influence import Frozen
from interp.names import Site
from interp.subject import Batch, Subject

_PARTS = {"mixer": "mixer_out", "mlp": "mlp_out"}
"""Part -> the site where it is seen."""


def senders_of(subject: Subject, settings: Sequence[Setting]) -> list[Sender]:
    """Everything that any of these settings writes, in computing order."""
    steered = {layer for setting in settings for layer, _ in subject.steering(setting)}
    anatomy = subject.anatomy
    found = [Sender("embed")]
    for layer in range(subject.n_layers):
        if Site("z", layer) in anatomy.points:
            found += [Sender("head", layer, head) for head in range(subject.n_heads)]
            found += [Sender("bias", layer)] if _has_bias(subject, layer) else []
        found += [
            Sender(part, layer)
            for part, site in _PARTS.items()
            if Site(site, layer) in anatomy.points
        ]
        found += [Sender("steering", layer)] if layer in steered else []
    return found


def _has_bias(subject: Subject, layer: int) -> bool:
    return getattr(subject.blocks[layer].attn.o.original_component, "bias", None) is not None


class Written(NamedTuple):
    """What senders wrote at the query tokens, and the largest difference of their sum from the last
    state, over that state's largest entry."""

    values: Float[Tensor, "sender batch query_pos d_model"]
    error: float


def what_is_written(
    subject: Subject, setting: Setting, batch: Batch, cache: Any, senders: Sequence[Sender]
) -> Written:
    """One run of a condition, taken apart."""
    last = Site("resid_post", subject.n_layers - 1)
    names = ("z", "attn_out", *_PARTS.values())
    sites = [Site("resid_pre", 0), last]
    sites += [site for name in names for site in subject.anatomy.sites(name)]
    own = capture(subject, setting, batch, cache, dict.fromkeys(sites, keep)).values
    steering: dict[int, Tensor] = {}
    for layer, vector in subject.steering(setting):
        steering[layer] = steering.get(layer, torch.zeros_like(vector)) + vector
    nothing = torch.zeros_like(own[last])
    found: dict[Sender, Tensor] = {Sender("embed"): own[Site("resid_pre", 0)]}
    with torch.no_grad(), subject.weights.of(setting):
        for layer in subject.anatomy.layers("z"):
            found |= _attention(subject, layer, own)
    factors = subject.anatomy.written
    for sender in senders:
        if sender.part in _PARTS:
            site = Site(_PARTS[sender.part], sender.layer)
            found[sender] = own[site] * factors.get(site, 1.0)
        elif sender.part == "steering":
            found[sender] = nothing + steering.get(sender.layer, 0.0)
    values = torch.stack([found[sender] for sender in senders])
    missing = (values.double().sum(0) - own[last].double()).abs().max()
    return Written(values, float(missing / own[last].abs().max()))


def _attention(subject: Subject, layer: int, own: dict[Site, Tensor]) -> dict[Sender, Tensor]:
    """The writes of a layer's heads, and what is left of attention's."""
    z, out = own[Site("z", layer)], own[Site("attn_out", layer)]
    block, factors = subject.blocks[layer], subject.anatomy.written
    project = block.attn.o.original_component
    rows = z.transpose(1, 2).flatten(2)
    nothing = project(torch.zeros_like(rows[:1, :1]))
    post = getattr(block, "ln1_post", None)
    norm = None if post is None else Frozen.at(post, project(rows).flatten(0, 1))
    factor = factors.get(Site("attn_out", layer), 1.0)
    left = out * factor
    found = {}
    for head in range(z.shape[1]):
        alone = torch.zeros_like(z)
        alone[:, head] = z[:, head]
        write = project(alone.transpose(1, 2).flatten(2)) - nothing
        if norm is not None:
            write = norm.push(write.flatten(0, 1)).to(write.dtype).view_as(write)
        write = write * (factor * factors.get(Site("z", layer), 1.0))
        found[Sender("head", layer, head)] = write
        left = left - write
    return {**found, Sender("bias", layer): left}
