"""What a layer's state would say (docs/reference/metrics.md): numbers of the logit lens.

    lens_kl(final, said)                        # [token], nats; both a `Distribution`
    answer_information(said, target)            # [token], nats
    decision_depth(lens_top1, final_top1)       # [token], a layer

The lens logits themselves come from `interp.readout.lens`; the divergence between two conditions'
lenses is `Distribution.js` of them.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.measures.output import Distribution


def lens_kl(final: Distribution, said: Distribution) -> Float[Tensor, " token"]:
    """`KL(own final output ‖ lens)` in nats, `[0, inf)`: what the lens of a layer still lacks of
    the same condition's output; 0 at the last layer (Belrose et al. 2303.08112, section 2)."""
    return final.kl(said)


def answer_information(
    said: Distribution, target: Int[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """`ln d_vocab + ln p_lens(target)` in nats, `(-inf, ln d_vocab]`: how far the lens has raised
    the target token above the uniform distribution, at which it is 0 (the pointwise form of
    V-information with the uniform prior, Xu et al. 2002.10689). NaN where there is no target
    (a negative id)."""
    chosen = said.log_p.gather(-1, target.clamp(min=0)[:, None])[:, 0]
    return (chosen + math.log(said.log_p.shape[-1])).masked_fill(target < 0, math.nan)


def decision_depth(
    lens_top1: Int[Tensor, "batch layer"], final_top1: Int[Tensor, " batch"]
) -> Int[Tensor, " batch"]:
    """The first layer from which on the lens puts first what the output puts first: for every
    later layer the top-1 stays. `0 .. n_layers - 1`; the lens of the last layer *is* the output,
    so that layer agrees by definition."""
    agrees = lens_top1 == final_top1[:, None]
    agrees = torch.cat([agrees[:, :-1], torch.ones_like(agrees[:, -1:])], dim=1)
    settled = agrees.flip(-1).cumprod(-1).sum(-1)
    return lens_top1.shape[1] - settled
