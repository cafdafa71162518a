"""Attention of one layer's heads, per query row (METRICS.md, section 3).

    rows = read_rows(pattern)                    # inside the forward pass: [batch, head, query_pos]
    content_js(rows.content, other.content)

`pattern` is `[batch, head, query_pos, prefix + query_pos]`: the last `query_pos` keys are the
query's own (content), everything before is prefix, BOS included. Divergences are nats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.measures import wide

MASKED = -1e30
"""Scores below are masked keys (TransformerLens holds them at about -3.4e38, not -inf)."""

Pattern = Float[Tensor, "batch head query_pos key_pos"]
Content = Float[Tensor, "batch head query_pos query_pos"]
Rows = Float[Tensor, "batch head query_pos"]


class AttentionRows(NamedTuple):
    """What is kept of a pattern; the prefix columns are not."""

    prefix_mass: Rows
    entropy: Rows
    content_entropy: Rows
    content: Content


def read_rows(pattern: Pattern) -> AttentionRows:
    """Prefix mass `[0, 1]`, entropy of the full and of the content row (nats, `[0, ln keys]`),
    and the content pattern: the query's own keys, renormalised (NaN where they have no mass)."""
    length = pattern.shape[-2]
    own = wide(pattern[..., -length:])
    prefix = pattern[..., :-length]
    prefix_mass = prefix.sum(-1, dtype=own.dtype)
    content = own / own.sum(-1, keepdim=True)
    full = _entropy(own) + _entropy(wide(prefix))
    return AttentionRows(prefix_mass, full, _entropy(content), content)


def content_js(p: Content, q: Content) -> Rows:
    """Jensen-Shannon divergence of two content patterns, row by row, nats, `[0, ln 2]`."""
    middle = (p + q) / 2
    terms = torch.special.xlogy(p, p / middle) + torch.special.xlogy(q, q / middle)
    return (0.5 * terms.where(middle > 0, 0.0).sum(-1)).clamp(min=0) + _undefined(p, q)


def read_scores(scores: Pattern) -> Content:
    """Pre-softmax scores of the query's own keys; -inf where a key is masked."""
    own = scores[..., -scores.shape[-2] :].detach()
    return own.masked_fill(own < MASKED, -torch.inf)


def sim_am(a: Content, b: Content) -> Rows:
    """Cosine of two rows of pre-softmax scores over the query's keys, `[-1, 1]` (Dai et al.
    2212.10559, sec. 4.2, SimAM); NaN where a row is all zero."""
    x, y = (wide(scores).masked_fill(scores == -torch.inf, 0.0) for scores in (a, b))
    norms = x.square().sum(-1).sqrt() * y.square().sum(-1).sqrt()
    cosine = (x * y).sum(-1) / norms.where(norms != 0, 1.0)
    return torch.where(norms != 0, cosine.clamp(-1, 1), torch.nan)


def sim_am_delta(a: Content, b: Content, base: Content, noise: float = 0.0) -> Rows:
    """`sim_am` of the differences from base (after Deutch et al. 2311.07772), `[-1, 1]`; NaN where
    one condition leaves the row's scores as they are, up to `noise` times their norm (as in the
    first block of a rotary model, whose scores do not depend on what precedes the query)."""
    before = wide(base).masked_fill(base == -torch.inf, 0.0)
    floor = noise * before.square().sum(-1, keepdim=True).sqrt()

    def change(scores: Tensor) -> Tensor:
        delta = (wide(scores) - before).masked_fill(scores == -torch.inf, 0.0)
        still = delta.square().sum(-1, keepdim=True).sqrt() <= floor
        return delta.masked_fill(still, 0.0)

    return sim_am(change(a), change(b))


def weight_driven(
    content: Content, base: Content, base_inputs: Content, base_weights: Content
) -> Rows:
    """The part of `content_js(content, base)` that is due to a condition's weights, in nats.

    `base_inputs`: the content pattern of the condition's weights at base's inputs; `base_weights`:
    of base's weights at the condition's inputs. With `v` the JS to base, the Shapley value of the
    weights over both orders: `½[v(base_inputs) + v(content) - v(base_weights)]` (Shapley 1953).
    Summed over tokens and divided by the summed `content_js`, it is `rewiring_share`: 0 for a
    prompt, which changes inputs only; about 1 where weights alone move the attention. Interactions
    are shared equally, so it can leave `[0, 1]`.
    """
    total = content_js(content, base)
    return 0.5 * (content_js(base_inputs, base) + total - content_js(base_weights, base))


def _entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum(-1)


def _undefined(*patterns: Tensor) -> Tensor:
    """0, or NaN where a row is not a distribution."""
    return sum(pattern.sum(-1) * 0.0 for pattern in patterns)  # type: ignore[return-value]
