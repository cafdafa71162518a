"""Mean states of a condition by query, layer and segment.

    seen = segment_means(subject, "lora", queries, cache, ("last", "query"), layers)
    seen.means[:, 0]                     # [query, layer, d_model]: at the last token

What a difference says is read from means over a segment's tokens, query by query, so that queries
can be resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.capture import capture
from interp.measures import wide
from interp.names import Site
from interp.positions import position_weights
from interp.queries import Encoded
from interp.subject import Batch, Subject


class SegmentMeans(NamedTuple):
    """Mean states of some queries, float64 (NaN where a query has no such token), and the token
    that each puts first behind its last."""

    means: Float[Tensor, "query label layer d_model"]
    top: Int[Tensor, " query"]


def token_shares(
    queries: Sequence[Encoded], labels: Sequence[str]
) -> Float[Tensor, "query query_pos label"]:
    """How much each token of `Batch.forced(queries)` counts in the mean of a label's tokens; NaN
    in all of them where a query has none."""
    counts = position_weights(
        [len(query.ids) for query in queries],
        max(len(query.forced) for query in queries),
        labels,
        [max(1, len(query.answer_ids)) for query in queries],
        [len(query.ids) if query.n_text is None else query.n_text for query in queries],
    )
    shares = torch.from_numpy(counts)
    return shares / shares.sum(1, keepdim=True)


def segment_means(
    subject: Subject,
    condition: str,
    queries: Sequence[Encoded],
    cache: Any,
    labels: Sequence[str],
    layers: Sequence[int],
) -> SegmentMeans:
    """The mean `resid_post` over the tokens of every label.

    `labels`: those of `interp.positions`; `cache`: `subject.prefill` of the condition. Tokens of a
    forced answer are among them.
    """
    batch = Batch.forced(queries, subject.device)
    shares = token_shares(queries, labels).to(subject.device)

    def mean(value: Tensor) -> Tensor:
        return torch.einsum("qpl,qpd->qld", shares.to(wide(value)), wide(value.detach()))

    sites = [Site("resid_post", layer) for layer in layers]
    found = capture(subject, subject.settings[condition], batch, cache, dict.fromkeys(sites, mean))
    means = torch.stack([found.values[site] for site in sites], dim=2)
    return SegmentMeans(means, batch.last.pick(found.logits).argmax(-1))
