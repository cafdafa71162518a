"""What a condition says on some queries, ready for others to match.

    target = examples(subject, subject.settings["lora"], queries, batch_size=64)
    said = target.logits_of(subject, setting, cache)
    target.divergence(said)             # KL(lora ‖ setting) of every query, nats
    bias = fit_answers(subject, target, setting, batch_size=64)     # brings its mean down

Matched are the positions that predict a query's answer: its last token, and the answer's own but
the last. A query without an answer is matched at its last token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.capture import Reader, capture, chunks, keep
from interp.conditions import Setting
from interp.logit_bias import TokenBiases, scaled_bias
from interp.measures import wide
from interp.measures.output import kl_divergence
from interp.names import Site
from interp.queries import Encoded
from interp.subject import Batch, Hook, Subject


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

    @property
    def asked(self) -> Int[Tensor, "query row"]:
        """The columns of every query's matched tokens, its last one again where it has fewer."""
        first = self.batch.ends - 1
        most = torch.arange(int(self.row.max()) + 1, device=first.device)
        return torch.minimum(first[:, None] + most, self.batch.lengths[:, None] - 1)

    @property
    def row(self) -> Int[Tensor, " token"]:
        """Which matched token of its query every one is."""
        return self.columns - (self.batch.ends - 1)[self.rows]

    def logits_of(
        self,
        subject: Subject,
        setting: Setting,
        cache: Any = None,
        hooks: Mapping[Site, Hook] | None = None,
        *,
        grad: bool = False,
        copies: int | None = None,
    ) -> Float[Tensor, "*copy token d_vocab"]:
        """What a setting says at the matched tokens, where alone logits are made; `copies`: of all
        queries behind so many prefixes in one `cache`."""
        times = copies or 1
        batch, columns = self.batch.repeat(times), self.asked.repeat(times, 1)
        logits = subject.run(setting, batch, cache, hooks, columns=columns, grad=grad)
        said = logits.unflatten(0, (times, len(self)))[:, self.rows, self.row]
        return said if copies else said[0]

    def divergence(
        self, said: Float[Tensor, "*prefix token d_vocab"]
    ) -> Float[Tensor, "*prefix query"]:
        """`KL(target ‖ said)` of every query, the mean over its matched tokens, in nats."""
        by_token = kl_divergence(self.logits.expand_as(said), said) * self.share
        total = by_token.new_zeros(*by_token.shape[:-1], len(self))
        return total.index_add(-1, self.rows, by_token)

    def kl(
        self, logits: Float[Tensor, "*prefix query query_pos d_vocab"]
    ) -> Float[Tensor, "*prefix query"]:
        """The `divergence` of what logits of all tokens say."""
        return self.divergence(logits[..., self.rows, self.columns, :])

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
    cache, batch = subject.prefill(setting), Batch.forced(queries, subject.device)
    count = batch.lengths - batch.ends + 1
    rows = torch.arange(len(queries), device=subject.device).repeat_interleave(count)
    row = torch.cat([torch.arange(int(n), device=subject.device) for n in count])
    columns = (batch.ends - 1)[rows] + row
    blank = torch.empty(len(rows), 0, device=subject.device)
    whole = Examples(batch, rows, columns, blank, 1 / wide(count[rows]))
    said, inside = [], []
    for chunk in chunks(range(len(queries)), batch_size):
        part = whole.of(chunk)
        got = capture(subject, setting, part.batch, cache, read, columns=part.asked)
        said.append(got.logits[part.rows, part.row])
        inside.append(got.values)
    values = {site: torch.cat([some[site] for some in inside]) for site in sites}
    return replace(whole, logits=torch.cat(said), inside=values)


def fit_answers(
    subject: Subject, target: Examples, own: Setting, batch_size: int, cache: Any = None
) -> TokenBiases:
    """The logit bias of `own` over all matched tokens, every query weighing the same: of all biases
    of so many tokens the one that brings the mean `target.kl` down to its least. `cache`: what
    precedes a query under `own`, where it is in no file."""
    cache, said = subject.prefill(own) if cache is None else cache, []
    for chunk in chunks(range(len(target)), batch_size):
        said.append(wide(target.of(chunk).logits_of(subject, own, cache)))
    return scaled_bias(torch.cat(said), wide(target.logits), target.share / len(target), subject)


_LEAST = 1e-30
"""Attention on the query's own tokens below which a row has no content: it could not be divided by
without leaving float32."""


def content(pattern: Tensor) -> Tensor:
    """How rows divide what falls on the query's own tokens; all 0 where nothing does, so that a
    search which has driven a head off the query goes on with finite gradients."""
    own = wide(pattern[..., -pattern.shape[-2] :])
    mass = own.sum(-1, keepdim=True)
    return own * (mass > _LEAST) / mass.where(mass > _LEAST, 1.0)
