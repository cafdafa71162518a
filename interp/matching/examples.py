"""What a condition says on some queries, ready for others to match.

    wanted = examples(subject, subject.settings["lora"], queries, batch_size=64)
    wanted.kl(logits)                   # KL(lora ‖ logits) of every query, nats

Matched are the positions that predict a query's answer: its last token, and the answer's own but
the last. A query without an answer is matched at its last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.capture import Reader, capture, chunks, keep
from interp.conditions import Setting
from interp.measures import wide
from interp.measures.output import kl_divergence
from interp.names import Site
from interp.queries import Encoded
from interp.subject import Batch, Subject


@dataclass(frozen=True)
class Examples:
    """Queries with their answers, and what a condition says of them.

    `rows`, `columns`: where in `batch` the matched tokens are; `logits`: what the condition says
    there; `share`: their weights, which sum to 1 for every query. `inside`: the condition's own
    values at some sites (patterns: content rows), `[query, ..., query_pos, ...]`.
    """

    batch: Batch
    rows: Int[Tensor, " token"]
    columns: Int[Tensor, " token"]
    logits: Float[Tensor, "token d_vocab"]
    share: Float[Tensor, " token"]
    inside: Mapping[Site, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.batch.ids)

    def kl(
        self, logits: Float[Tensor, "*prefix query query_pos d_vocab"]
    ) -> Float[Tensor, "*prefix query"]:
        """`KL(wanted ‖ said)` of every query, the mean over its matched tokens, in nats."""
        said = logits[..., self.rows, self.columns, :]
        by_token = kl_divergence(self.logits.expand_as(said), said) * self.share
        total = by_token.new_zeros(*by_token.shape[:-1], len(self))
        return total.index_add(-1, self.rows, by_token)

    def of(self, chosen: Sequence[int]) -> Examples:
        """The same of some of the queries, in this order."""
        index = torch.as_tensor(chosen, dtype=torch.long, device=self.rows.device)
        rows, token = (index[:, None] == self.rows).nonzero(as_tuple=True)
        return Examples(
            self.batch.of_queries(index),
            rows,
            self.columns[token],
            self.logits[token],
            self.share[token],
            {site: value[index] for site, value in self.inside.items()},
        )


def examples(
    subject: Subject,
    setting: Setting,
    queries: Sequence[Encoded],
    batch_size: int,
    sites: Sequence[Site] = (),
) -> Examples:
    """What a setting says on some queries, and its values at `sites` of the query tokens."""
    read: dict[Site, Reader] = {s: content if s.name == "pattern" else keep for s in sites}
    cache = subject.prefill(setting)
    batch, spans = _with_answers(queries, subject.device)
    said, inside = [], []
    for chunk in chunks(range(len(queries)), batch_size):
        part = batch.of_queries(list(chunk))
        got = capture(subject, setting, part, cache, read)
        said += [row[spans[i]] for i, row in zip(chunk, got.logits, strict=True)]
        inside.append(got.values)
    count = torch.tensor([len(row) for row in said], device=subject.device)
    rows = torch.arange(len(said), device=subject.device).repeat_interleave(count)
    return Examples(
        batch,
        rows,
        columns=torch.cat([torch.arange(s.start, s.stop) for s in spans]).to(subject.device),
        logits=torch.cat(said),
        share=1 / wide(count[rows]),
        inside={site: torch.cat([values[site] for values in inside]) for site in sites},
    )


def _with_answers(
    queries: Sequence[Encoded], device: torch.device
) -> tuple[Batch, Sequence[slice]]:
    """Queries with their answers but the last token, and where every query is matched."""
    spans = [slice(len(query.ids) - 1, len(query.forced)) for query in queries]
    return Batch.forced(queries, device), spans


LEAST = 1e-30
"""Attention on the query's own tokens below which a row has no content: it could not be divided by
without leaving float32."""


def content(pattern: Tensor) -> Tensor:
    """How rows divide what falls on the query's own tokens; all 0 where nothing does, so that a
    search which has driven a head off the query goes on with finite gradients."""
    own = wide(pattern[..., -pattern.shape[-2] :])
    mass = own.sum(-1, keepdim=True)
    return own * (mass > LEAST) / mass.where(mass > LEAST, 1.0)
