"""Batches and their chosen tokens, against loops over single queries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from interp.batch import Batch, Tokens
from interp.conditions import Setting
from interp.queries import Encoded

Lengths = list[tuple[int, int]]
LENGTHS = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=5)
"""Tokens of every query and of its answer."""
BIASES = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.floats(-2, 2),
        st.none() | st.lists(st.integers(-6, 8), max_size=3).map(tuple),
    ),
    max_size=3,
).map(tuple)


def queries_of(lengths: Lengths) -> list[Encoded]:
    """Ids are 1, 2, ...; padding is 0."""
    return [
        Encoded(f"q:{i}", "it", tuple(range(1, n + 1)), tuple(range(n + 1, n + k + 1)))
        for i, (n, k) in enumerate(lengths)
    ]


def values_of(batch: Batch, *rest: int) -> Tensor:
    """A number of its own for every cell."""
    shape = (*batch.ids.shape, *rest)
    return torch.arange(int(np.prod(shape))).reshape(shape).to(torch.float32)


@given(LENGTHS)
def test_a_batch_holds_its_queries_padded_on_the_right(lengths: Lengths) -> None:
    queries = queries_of(lengths)
    for batch, rows in (
        (Batch.of(queries), [query.ids for query in queries]),
        (Batch.forced(queries), [query.ids + query.answer_ids[:-1] for query in queries]),
    ):
        assert batch.ids.shape == (len(rows), max(map(len, rows)))
        assert batch.lengths.tolist() == [len(row) for row in rows]
        assert batch.ends.tolist() == [n for n, _ in lengths]
        for row, ids in zip(batch.ids.tolist(), rows, strict=True):
            assert row == [*ids, *[0] * (len(row) - len(ids))]


@given(LENGTHS, st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_rows_of_tokens_come_back_where_they_were_picked(
    lengths: Lengths, columns: list[int]
) -> None:
    """NaN where a query has no such token; `last` and `answer` are such rows."""
    batch = Batch.forced(queries_of(lengths))
    ends = np.array([n for n, _ in lengths])[:, None]
    most = max(max(1, k) for _, k in lengths)
    asked: list[tuple[Tokens, np.ndarray]] = [
        (
            batch.rows(torch.tensor(columns).expand(len(lengths), -1)),
            np.tile(columns, (len(ends), 1)),
        ),
        (batch.last, ends - 1),
        (batch.answer, ends - 1 + np.arange(most)),
    ]
    for tokens, wanted in asked:
        for rest in ((), (2,), (2, 3)):
            values = values_of(batch, *rest)
            picked = tokens.pick(values)
            found = tokens.spread(picked)
            assert found.dtype == torch.float64
            assert found.shape == (len(lengths), *rest, wanted.shape[1])
            present = 0
            for query, row in np.ndindex(wanted.shape):
                own, column = found[query, ..., row], int(wanted[query, row])
                if column < int(batch.lengths[query]):
                    assert torch.equal(own, values[query, column].double())
                    present += 1
                else:
                    assert own.isnan().all()
            assert present == len(tokens) == len(picked)


@given(LENGTHS)
def test_the_answer_s_rows_are_its_segment(lengths: Lengths) -> None:
    queries = queries_of(lengths)
    tokens = Batch.forced(queries).answer
    for number, query in enumerate(queries):
        own = tokens.query == number
        assert tokens.column[own].tolist() == list(query.segments["answer"])
        assert tokens.row[own].tolist() == list(range(len(query.segments["answer"])))
    alone = Batch.of(queries)  # without answers the only row is the last
    assert alone.answer.column.tolist() == alone.last.column.tolist() == [n - 1 for n, _ in lengths]


@given(LENGTHS, BIASES)
def test_a_bias_is_what_is_added_at_its_positions(
    lengths: Lengths, bias: tuple[tuple[int, float, tuple[int, ...] | None], ...]
) -> None:
    """Negative positions count from a query's end, its answer left aside; what is named twice is
    added twice."""
    queries, setting = queries_of(lengths), Setting(bias=bias)
    batch = Batch.forced(queries)
    whole = batch.biased(torch.zeros(*batch.ids.shape, 4, dtype=torch.float64), setting)
    for query, column in np.ndindex(*batch.ids.shape):
        end = len(queries[query].ids)
        for token in range(4):
            added = sum(
                value * (1 if at is None else sum((end + p if p < 0 else p) == column for p in at))
                for word, value, at in bias
                if word == token
            )
            assert float(whole[query, column, token]) == pytest.approx(added, abs=1e-6)
    tokens = batch.answer
    own = torch.zeros(len(tokens), 4, dtype=torch.float64)
    for token, amount in tokens.bias(setting):
        own[:, token] += amount
    torch.testing.assert_close(own, tokens.pick(whole), atol=1e-6, rtol=0)
    some = batch.ends[:, None] - 1
    picked = batch.biased(torch.zeros(len(queries), 1, 4, dtype=torch.float64), setting, some)
    torch.testing.assert_close(picked[:, 0], batch.last.pick(whole), atol=1e-6, rtol=0)


@given(LENGTHS, st.integers(1, 3))
def test_a_repeated_batch_is_its_queries_again(lengths: Lengths, copies: int) -> None:
    queries = queries_of(lengths)
    batch, whole = Batch.forced(queries), Batch.forced(queries * copies)
    again = batch.repeat(copies)
    backwards = whole.of_queries(torch.arange(len(whole.ids)).flip(0))
    for name in ("ids", "lengths", "ends"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
        assert torch.equal(getattr(backwards, name), getattr(whole, name).flip(0))
