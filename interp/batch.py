"""Queries as tensors: padded on the right, with their forced answers or without.

batch = Batch.forced(queries)
batch.answer.pick(logits)           # [token, d_vocab]: what predicts the answers' tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.conditions import Setting
from interp.queries import Encoded


@dataclass(frozen=True)
class Batch:
    """Queries padded on the right: `ids` `[batch, query_pos]`, every query's `lengths` with its
    forced answer, and `ends`, its length without."""

    ids: Tensor
    lengths: Tensor
    ends: Tensor

    @classmethod
    def of(cls, queries: Sequence[Encoded], device: torch.device | str = "cpu") -> Batch:
        """Queries alone."""
        return cls._padded([query.ids for query in queries], queries, device)

    @classmethod
    def forced(cls, queries: Sequence[Encoded], device: torch.device | str = "cpu") -> Batch:
        """Queries with their answers but the last token."""
        return cls._padded([query.forced for query in queries], queries, device)

    @classmethod
    def _padded(
        cls, ids: Sequence[Sequence[int]], queries: Sequence[Encoded], device: torch.device | str
    ) -> Batch:
        """Pad with token 0; causal attention keeps every real row from seeing it."""
        rows = [torch.tensor(row) for row in ids]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        ends = torch.tensor([len(query.ids) for query in queries], device=device)
        return cls(padded.to(device), lengths, ends)

    def repeat(self, copies: int) -> Batch:
        """The whole batch, so many times."""
        return Batch(self.ids.repeat(copies, 1), self.lengths.repeat(copies),
                     self.ends.repeat(copies))  # fmt: skip

    def of_queries(self, numbers: Any) -> Batch:
        """Some of the queries."""
        return Batch(self.ids[numbers], self.lengths[numbers], self.ends[numbers])

    def bias_at(self, setting: Setting, columns: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Token, and what a setting's bias adds to its logit at some `columns` `[batch, row]`;
        negative positions of a bias count from the query's end, its answer not included."""
        for token, value, positions in setting.bias:
            times = torch.ones_like(columns)
            if positions is not None:
                places = torch.tensor(positions, device=columns.device)
                found = self.ends[:, None] * (places < 0) + places
                times = (found[:, None] == columns[..., None]).sum(-1)
            yield token, value * times

    @property
    def last(self) -> Tokens:
        """Every query's last token before its answer."""
        return self.rows(self.ends[:, None] - 1)

    @property
    def answer(self) -> Tokens:
        """All tokens from the last before the answer on: those that predict it."""
        most = int((self.lengths - self.ends).max()) + 1
        return self.rows(self.ends[:, None] - 1 + torch.arange(most, device=self.ends.device))

    def rows(self, columns: Tensor) -> Tokens:
        """The tokens at `columns` `[batch, row]`, as far as the queries reach."""
        query, row = (columns < self.lengths[:, None]).nonzero(as_tuple=True)
        return Tokens(self, query, row, columns[query, row], columns.shape[1])

    def biased(self, logits: Tensor, setting: Setting, columns: Tensor | None = None) -> Tensor:
        """`logits` `[batch, row, d_vocab]` of some `columns` (none: of all tokens) with a setting's
        bias added in place."""
        if columns is None:
            columns = torch.arange(logits.shape[1], device=logits.device).expand(logits.shape[:2])
        for token, amount in self.bias_at(setting, columns):
            logits[..., token] += amount
        return logits


@dataclass(frozen=True)
class Tokens:
    """Some tokens of a batch, one after the other: number of their `query`, the `row` they have
    among those asked for (of `n_rows`), their `column` in the batch."""

    batch: Batch
    query: Int[Tensor, " token"]
    row: Int[Tensor, " token"]
    column: Int[Tensor, " token"]
    n_rows: int

    def __len__(self) -> int:
        return len(self.query)

    def some(self, which: slice) -> Tokens:
        """Consecutive ones of them."""
        return replace(
            self, query=self.query[which], row=self.row[which], column=self.column[which]
        )

    @property
    def columns(self) -> Int[Tensor, "batch row"]:
        """Where they stand, for `Subject.run`; 0 where a query has no such row."""
        found = self.query.new_zeros(len(self.batch.ids), self.n_rows)
        found[self.query, self.row] = self.column
        return found

    def pick(self, values: Float[Tensor, "batch query_pos *rest"]) -> Float[Tensor, "token *rest"]:
        """Their values."""
        return values[self.query, self.column]

    def pick_rows(self, values: Float[Tensor, "batch row *rest"]) -> Float[Tensor, "token *rest"]:
        """Their values among those read at `columns`."""
        return values[self.query, self.row]

    def total(self, values: Float[Tensor, " token"]) -> Float[Tensor, " batch"]:
        """Sums over every query's tokens."""
        return values.new_zeros(len(self.batch.ids)).index_add(0, self.query, values)

    def bias(self, setting: Setting) -> Iterator[tuple[int, Float[Tensor, " token"]]]:
        """Token id, and what a setting's bias adds to its logit at each of them."""
        own = self.batch.of_queries(self.query)
        for token, amount in own.bias_at(setting, self.column[:, None]):
            yield token, amount[:, 0]

    def spread(self, values: Float[Tensor, "token *rest"]) -> Float[Tensor, "batch *rest row"]:
        """Values by query and row, float64; NaN where a query has no such row."""
        shape = (len(self.batch.ids), self.n_rows, *values.shape[1:])
        found = torch.full(shape, torch.nan, dtype=torch.float64, device=values.device)
        found[self.query, self.row] = values.to(torch.float64)
        return found.movedim(1, -1)
