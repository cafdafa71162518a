"""Routing of a mixture-of-experts layer, per query token (docs/reference/metrics.md).

router_js(a.shares, b.shares)            # nats, [batch, query_pos]
expert_overlap(a.chosen, b.chosen)       # share
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor

from interp.measures import wide
from interp.measures.output import js_of_rows

Shares = Float[Tensor, "batch *layer query_pos expert"]
Chosen = Bool[Tensor, "batch *layer query_pos expert"]


class Routing(NamedTuple):
    """What a router makes of every token: its distribution over all experts, and which it chose."""

    shares: Shares
    chosen: Chosen


def router_js(p: Shares, q: Shares) -> Float[Tensor, "batch *layer query_pos"]:
    """Jensen-Shannon divergence of two routers' distributions over all experts, chosen or not, in
    nats, `[0, ln 2]` (Lin 1991, doi:10.1109/18.61115)."""
    return js_of_rows(wide(p), wide(q))


def expert_overlap(a: Chosen, b: Chosen) -> Float[Tensor, "batch *layer query_pos"]:
    """The share of the chosen experts that two runs have in common, `|A ∩ B| / k`, `[0, 1]`. Two
    random choices of k out of n experts share k/n on average."""
    k = wide(a.sum(-1)).maximum(wide(b.sum(-1)))
    return wide((a & b).sum(-1)) / k
