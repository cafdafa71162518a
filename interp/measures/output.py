"""Divergence of next-token distributions: logits in, nats per token out.

Definitions: docs/reference/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.measures import wide

_BLOCK = 1 << 16
"""Logits of a condition that are turned into float64 at a time: few enough to stay in a core's
cache, which is six times as fast as all at once, and memory does not grow with the vocabulary."""


def kl_divergence(
    p: Float[Tensor, "*token d_vocab"], q: Float[Tensor, "*token d_vocab"]
) -> Float[Tensor, "*token"]:
    """`KL(p ‖ q) = sum p (log p - log q)` of softmaxed logits, in nats, `[0, inf)`."""
    return _blockwise(Distribution.kl, p, q)


def js_divergence(
    p: Float[Tensor, "*token d_vocab"], q: Float[Tensor, "*token d_vocab"]
) -> Float[Tensor, "*token"]:
    """`½KL(p‖m) + ½KL(q‖m)`, `m = (p+q)/2`, of softmaxed logits, in nats, `[0, ln 2]`
    (Lin 1991, doi:10.1109/18.61115, eq. 3.7 with equal weights)."""
    return _blockwise(Distribution.js, p, q)


def js_of_rows(
    p: Float[Tensor, "*row choice"],
    q: Float[Tensor, "*row choice"],
    known: tuple[Tensor, Tensor] | None = None,
) -> Float[Tensor, "*row"]:
    """The same of rows of probabilities; NaN where one is no distribution. `known`: `p_log_p` of
    both, where it is known: then one logarithm per choice is left.

    `½ sum(p ln p + q ln q - 2 m ln m)`, cancelled choice by choice: equal rows give exactly 0, and
    near-equal ones keep their digits.
    """
    own, other = (p_log_p(p), p_log_p(q)) if known is None else known
    terms = (own + other).sub_(p_log_p((p + q).mul_(0.5)), alpha=2)
    return terms.sum(-1).mul_(0.5).clamp_(min=0)


def p_log_p(p: Tensor) -> Tensor:
    """`p ln p`, 0 where p is 0."""
    return p.clamp(min=torch.finfo(p.dtype).tiny).log_().mul_(p)


def entropy(p: Float[Tensor, "*row choice"]) -> Float[Tensor, "*row"]:
    """`-sum p ln p` of every row, in nats."""
    return -p_log_p(p).sum(-1)


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
    shape = next(iter(logits.values())).shape[:-1]
    found: dict[tuple[str, str], list[Between]] = {pair: [] for pair in pairs}
    for said in distributions(logits):
        for a, b in pairs:
            found[a, b].append(_between(said[a], said[b]))
    return {
        pair: Between(*(torch.cat(part).reshape(shape) for part in zip(*parts, strict=True)))
        for pair, parts in found.items()
    }


def distributions(
    logits: Mapping[str, Float[Tensor, "*token d_vocab"]],
) -> Iterator[dict[str, Distribution]]:
    """Every condition's distributions at a few tokens, then at the next ones: so few at a time that
    they stay in a core's cache, and that memory does not grow with the number of tokens."""
    flat = {name: x.reshape(-1, x.shape[-1]) for name, x in logits.items()}
    for rows in token_blocks(next(iter(flat.values()))):
        yield {name: Distribution.of(x[rows]) for name, x in flat.items()}


def token_blocks(logits: Float[Tensor, "token *rest d_vocab"]) -> list[slice]:
    """A few tokens, then the next ones."""
    size = max(1, _BLOCK // logits.shape[-1])
    return [slice(start, start + size) for start in range(0, max(1, len(logits)), size)]


@dataclass(frozen=True)
class Distribution:
    """Softmaxed logits in float64; of equal logits they are equal to the bit, and 0 apart."""

    logits: Float[Tensor, "token d_vocab"]
    log_p: Float[Tensor, "token d_vocab"]
    p: Float[Tensor, "token d_vocab"]

    @classmethod
    def of(cls, logits: Float[Tensor, "token d_vocab"]) -> Distribution:
        log_p = wide(logits).log_softmax(-1)
        return cls(logits, log_p, log_p.exp())

    @cached_property
    def top(self) -> Int[Tensor, " token"]:
        """The first token. On a CPU numpy finds it in a tenth of the time."""
        if self.logits.device.type != "cpu":
            return self.logits.argmax(-1)
        return torch.from_numpy(np.argmax(self.logits.float().numpy(), axis=-1))

    @cached_property
    def p_log_p(self) -> Float[Tensor, "token d_vocab"]:
        """By the logarithm that `js_of_rows` takes of the mean: equal rows cancel."""
        return p_log_p(self.p)

    def kl(self, other: Distribution) -> Float[Tensor, " token"]:
        """`kl_divergence` of the two."""
        return (self.log_p - other.log_p).mul_(self.p).sum(-1).clamp(min=0)

    def js(self, other: Distribution) -> Float[Tensor, " token"]:
        """`js_divergence` of the two."""
        return js_of_rows(self.p, other.p, (self.p_log_p, other.p_log_p))


def _between(a: Distribution, b: Distribution) -> Between:
    return Between(a.kl(b), a.js(b), a.top == b.top)


def _blockwise(
    function: Callable[[Distribution, Distribution], Tensor], p: Tensor, q: Tensor
) -> Tensor:
    """The function of two distributions, token by token."""
    blocks = [function(said["p"], said["q"]) for said in distributions({"p": p, "q": q})]
    return torch.cat(blocks).reshape(p.shape[:-1])
