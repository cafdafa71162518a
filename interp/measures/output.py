"""Divergence of next-token distributions: logits in, nats per token out.

Definitions: docs/reference/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.measures import wide

_BLOCK = 1 << 22
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


def js_of_rows(
    p: Float[Tensor, "*row choice"], q: Float[Tensor, "*row choice"]
) -> Float[Tensor, "*row"]:
    """The same of rows of probabilities; NaN where one is no distribution."""
    middle = (p + q) / 2
    terms = torch.special.xlogy(p, p / middle) + torch.special.xlogy(q, q / middle)
    undefined = p.sum(-1) * 0.0 + q.sum(-1) * 0.0
    return (0.5 * terms.where(middle > 0, 0.0).sum(-1)).clamp(min=0) + undefined


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


class Between(NamedTuple):
    """Two conditions' outputs, token by token: `kl` and `js` (nats), and whether both put the same
    token first."""

    kl: Float[Tensor, "*token"]
    js: Float[Tensor, "*token"]
    same: Bool[Tensor, "*token"]


def between(
    logits: Mapping[str, Float[Tensor, "*token d_vocab"]], pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], Between]:
    """All three for many pairs of conditions; every condition's distribution is made once."""
    pairs = list(dict.fromkeys(pairs))
    shape = next(iter(logits.values())).shape
    size = max(1, _BLOCK // (shape[-1] * len(logits)))
    blocks = zip(*(x.reshape(-1, shape[-1]).split(size) for x in logits.values()), strict=True)
    found: dict[tuple[str, str], list[Between]] = {pair: [] for pair in pairs}
    for block in blocks:
        said = {name: Distribution.of(rows) for name, rows in zip(logits, block, strict=True)}
        for a, b in pairs:
            one = Between(_kl(said[a], said[b]), _js(said[a], said[b]), said[a].top == said[b].top)
            found[a, b].append(one)
    return {
        pair: Between(*(torch.cat(part).reshape(shape[:-1]) for part in zip(*parts, strict=True)))
        for pair, parts in found.items()
    }


@dataclass(frozen=True)
class Distribution:
    """Softmaxed logits in float64, and their first token."""

    logits: Float[Tensor, "token d_vocab"]
    log_p: Float[Tensor, "token d_vocab"]
    p: Float[Tensor, "token d_vocab"]
    top: Int[Tensor, " token"]

    @classmethod
    def of(cls, logits: Float[Tensor, "token d_vocab"]) -> Distribution:
        log_p = wide(logits).log_softmax(-1)
        return cls(logits, log_p, log_p.exp(), logits.argmax(-1))


def _kl(a: Distribution, b: Distribution) -> Tensor:
    terms = a.p * (a.log_p - b.log_p)
    return terms.sum(-1).clamp(min=0).masked_fill((a.logits == b.logits).all(-1), 0.0)


def _js(a: Distribution, b: Distribution) -> Tensor:
    log_m = torch.logaddexp(a.log_p, b.log_p) - torch.log(torch.tensor(2.0, dtype=a.p.dtype))
    terms = a.p * (a.log_p - log_m) + b.p * (b.log_p - log_m)
    return (0.5 * terms.sum(-1)).clamp(min=0).masked_fill((a.logits == b.logits).all(-1), 0.0)


def _blockwise(
    function: Callable[[Distribution, Distribution], Tensor], p: Tensor, q: Tensor
) -> Tensor:
    rows_p, rows_q = p.reshape(-1, p.shape[-1]), q.reshape(-1, q.shape[-1])
    size = max(1, _BLOCK // p.shape[-1])
    blocks = [
        function(Distribution.of(a), Distribution.of(b))
        for a, b in zip(rows_p.split(size), rows_q.split(size), strict=True)
    ]
    return torch.cat(blocks).reshape(p.shape[:-1])
