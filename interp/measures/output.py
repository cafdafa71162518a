"""Divergence of next-token distributions (METRICS.md, section 1). Logits in, nats per token out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.measures import wide

BLOCK = 1 << 22
"""Logits turned into float64 at a time: bounds the memory of large vocabularies."""


def kl_divergence(
    p: Float[Tensor, "*token d_vocab"], q: Float[Tensor, "*token d_vocab"]
) -> Float[Tensor, "*token"]:
    """`KL(p ‖ q) = sum p (log p - log q)` of softmaxed logits, in nats, `[0, inf)`."""
    return _blockwise(_kl, p, q)


def js_divergence(
    p: Float[Tensor, "*token d_vocab"], q: Float[Tensor, "*token d_vocab"]
) -> Float[Tensor, "*token"]:
    """`½KL(p‖m) + ½KL(q‖m)`, `m = (p+q)/2`, of softmaxed logits, in nats, `[0, ln 2]`
    (Lin 1991, doi:10.1109/18.61115, eq. 3.7 with equal weights)."""
    return _blockwise(_js, p, q)


def top1_agreement(
    p: Float[Tensor, "*token d_vocab"], q: Float[Tensor, "*token d_vocab"]
) -> Bool[Tensor, "*token"]:
    """Whether both put the same token first."""
    return p.argmax(-1) == q.argmax(-1)


def log_odds(
    logits: Float[Tensor, "*token d_vocab"], answer: Int[Tensor, "*token"]
) -> Float[Tensor, "*token"]:
    """`log p - log(1 - p)` of the answer, in nats: its logit's lead over all others together, which
    no number added to every logit changes."""
    chosen = answer[..., None]
    rest = wide(logits).scatter(-1, chosen, -torch.inf).logsumexp(-1)
    return wide(logits.gather(-1, chosen)[..., 0]) - rest


def _kl(p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)


def _js(p: Tensor, q: Tensor) -> Tensor:
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, dtype=p.dtype))
    terms = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return (0.5 * terms.sum(-1)).clamp(min=0)


def _blockwise(function: Callable[[Tensor, Tensor], Tensor], p: Tensor, q: Tensor) -> Tensor:
    rows_p, rows_q = p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1])
    size = max(1, BLOCK // p.shape[-1])
    blocks = [
        function(wide(a), wide(b)).masked_fill((a == b).all(-1), 0.0)
        for a, b in zip(rows_p.split(size), rows_q.split(size), strict=True)
    ]
    return torch.cat(blocks).reshape(p.shape[:-1])
