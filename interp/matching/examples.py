"""What a condition says on some queries, ready for others to match.

    wanted = examples(subject, subject.settings["lora"], queries, batch_size=64)
    wanted.kl(logits)                   # KL(lora ‖ logits) of every query, nats

Matched are the positions that predict a query's answer: its last token, and the answer's own but
the last. A query without an answer is matched at its last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.capture import Reader, capture, chunks, keep
from interp.conditions import Setting
from interp.measures.attention import read_rows
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
        """The same of some of the queries."""
        index = torch.as_tensor(chosen, device=self.rows.device)
        place = torch.full((len(self),), -1, device=index.device)
        place[index] = torch.arange(len(index), device=index.device)
        kept = place[self.rows] >= 0
        batch = Batch(self.batch.ids[index], self.batch.lengths[index])
        inside = {site: value[index] for site, value in self.inside.items()}
        return replace(
            self,
            batch=batch,
            rows=place[self.rows[kept]],
            columns=self.columns[kept],
            logits=self.logits[kept],
            share=self.share[kept],
            inside=inside,
        )


def examples(
    subject: Subject,
    setting: Setting,
    queries: Sequence[Encoded],
    batch_size: int,
    sites: Sequence[Site] = (),
) -> Examples:
    """What a setting says on some queries, and its values at `sites` of the query tokens."""
    whole = [replace(query, ids=(*query.ids, *query.answer_ids[:-1])) for query in queries]
    batch = Batch.of(whole, subject.device)
    spans = [range(len(q.ids) - 1, len(w.ids)) for q, w in zip(queries, whole, strict=True)]
    index = [(row, column) for row, span in enumerate(spans) for column in span]
    rows, columns = torch.tensor(index, device=subject.device).T
    count = torch.tensor([len(span) for span in spans], device=subject.device)
    said, inside = _observed(subject, setting, batch, batch_size, sites)
    return Examples(batch, rows, columns, said[rows, columns], 1 / count[rows].double(), inside)


def _observed(
    subject: Subject, setting: Setting, batch: Batch, size: int, sites: Sequence[Site]
) -> tuple[Tensor, dict[Site, Tensor]]:
    cache = subject.prefill(setting)
    read: dict[Site, Reader] = {s: content if s.name == "pattern" else keep for s in sites}
    parts = [
        capture(subject, setting, Batch(batch.ids[some], batch.lengths[some]), cache, read)
        for some in chunks(torch.arange(len(batch.ids), device=batch.ids.device), size)
    ]
    inside = {site: torch.cat([part.values[site] for part in parts]) for site in sites}
    return torch.cat([part.logits for part in parts]), inside


def content(pattern: Tensor) -> Tensor:
    """How rows divide what falls on the query's own tokens."""
    return read_rows(pattern).content
