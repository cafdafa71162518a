"""Accumulators obey their laws, and the intervals cover what they say they cover."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from interp.measures.tally import Accumulator, from_arrays
from interp.moments import ShiftMoments
from interp.positions import SEGMENTS, answer_labels, position_labels, position_weights
from interp.statistics import (
    Maximum,
    PerQuery,
    Ratio,
    SumsByQuery,
    percentile_interval,
    poisson_weights,
)

REPLICATES = 25


# Laws of every accumulator ----------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """A few queries' tokens: what an accumulator is made of."""

    numerator: np.ndarray
    denominator: np.ndarray
    lengths: list[int]

    def __len__(self) -> int:
        return len(self.lengths)


def ratio(data: Data, rows: Sequence[int]) -> Ratio:
    rows = list(rows)
    labels = position_labels(4, 2)
    return Ratio.of(
        data.numerator[rows],
        data.denominator[rows],
        poisson_weights([f"q:{row}" for row in rows], REPLICATES, seed=1),
        position_weights([data.lengths[row] for row in rows], 4, labels),
    )


def mean(data: Data, rows: Sequence[int]) -> Ratio:
    rows = list(rows)
    weights = poisson_weights([f"q:{row}" for row in rows], REPLICATES, seed=1)
    positions = position_weights([data.lengths[row] for row in rows], 4, ["last", "mean"])
    return Ratio.of(data.numerator[rows], 1.0, weights, positions)


def per_query(data: Data, rows: Sequence[int]) -> PerQuery:
    return PerQuery.of(list(rows), data.numerator[list(rows)].reshape(len(rows), -1))


def moments(data: Data, rows: Sequence[int]) -> ShiftMoments:
    """Of all tokens of the rows; an undefined one lies at 1."""
    states, shifts = (np.nan_to_num(data.denominator[list(rows), i], nan=1.0) for i in (0, 1))
    return ShiftMoments.of(states, shifts)


def largest(data: Data, rows: Sequence[int]) -> Maximum:
    return Maximum.of(float(value) for value in data.numerator[list(rows)].ravel())


Maker = Callable[[Data, Sequence[int]], Accumulator]
ACCUMULATORS: dict[str, tuple[Maker, Accumulator]] = {
    "ratio": (ratio, Ratio.empty()),
    "mean": (mean, Ratio.empty()),
    "per query": (per_query, PerQuery.empty()),
    "largest": (largest, Maximum.empty()),
    "moments": (moments, ShiftMoments.empty()),
}
each_accumulator = pytest.mark.parametrize(
    ("make", "empty"), ACCUMULATORS.values(), ids=list(ACCUMULATORS)
)

NUMBERS = st.one_of(
    st.floats(-1e6, 1e6), st.sampled_from([0.0, float("nan"), float("inf"), -float("inf")])
)


@st.composite
def datasets(draw: st.DrawFn) -> Data:
    size = draw(st.integers(1, 6))
    shape = (size, 2, 4)
    below = draw(hnp.arrays(np.float64, shape, elements=st.floats(0.5, 100)))
    below[draw(hnp.arrays(np.bool_, shape))] = np.nan
    return Data(
        draw(hnp.arrays(np.float64, shape, elements=NUMBERS)),
        below,
        draw(st.lists(st.integers(1, 4), min_size=size, max_size=size)),
    )


@st.composite
def shardings(draw: st.DrawFn) -> tuple[Data, list[list[int]]]:
    """A dataset, and its rows cut into shards in some order."""
    data = draw(datasets())
    order = draw(st.permutations(range(len(data))))
    cuts = sorted(draw(st.sets(st.integers(1, len(data)), max_size=3)) | {0, len(data)})
    return data, [list(order[a:b]) for a, b in pairwise(cuts)]


def frozen(accumulator: Accumulator) -> dict[str, tuple[Any, ...]]:
    """Everything an accumulator holds, to the bit."""
    return {
        name: (array.shape, array.dtype.str, np.ascontiguousarray(array).tobytes())
        for name, array in accumulator.arrays().items()
    }


def result(accumulator: Accumulator) -> dict[str, np.ndarray]:
    """What is read off an accumulator; rows are in the order of the query file."""
    if not isinstance(accumulator, PerQuery):
        return accumulator.arrays()
    return {"index": np.sort(accumulator.index), "rows": accumulator.compute()}


def assert_same(a: Accumulator, b: Accumulator) -> None:
    for name, array in result(a).items():
        other = result(b)[name]
        assert array.shape == other.shape
        finite = np.abs(array[np.isfinite(array)])
        np.testing.assert_allclose(
            other, array, rtol=1e-12, atol=1e-12 * finite.max(initial=1), equal_nan=True
        )


@each_accumulator
@given(sharding=shardings())
@settings(max_examples=50)
def test_laws_of_an_accumulator(
    make: Maker, empty: Accumulator, sharding: tuple[Data, list[list[int]]]
) -> None:
    data, shards = sharding
    whole = make(data, range(len(data)))
    pieces = [make(data, rows) for rows in shards]
    before = [frozen(piece) for piece in pieces]
    assert_same(whole, reduce(lambda a, b: a.merge(b), pieces))  # type: ignore[arg-type]
    assert_same(whole, reduce(lambda a, b: b.merge(a), pieces))  # type: ignore[arg-type]
    assert [frozen(piece) for piece in pieces] == before
    assert frozen(empty.merge(whole)) == frozen(whole)  # type: ignore[arg-type]
    assert frozen(whole.merge(empty)) == frozen(whole)  # type: ignore[arg-type]
    assert frozen(type(whole).from_arrays(whole.arrays())) == frozen(whole)
    assert frozen(from_arrays(whole.arrays())) == frozen(whole)
    assert type(from_arrays(whole.arrays())) is type(whole)


@given(sharding=shardings())
@settings(max_examples=50)
def test_sums_by_query_are_joined_in_their_order_and_drawn_afterwards(
    sharding: tuple[Data, list[list[int]]],
) -> None:
    data, shards = sharding
    order = [row for rows in shards for row in rows]
    labels = position_labels(4, 2)

    def by_query(rows: list[int], below: np.ndarray | float) -> SumsByQuery:
        positions = position_weights([data.lengths[row] for row in rows], 4, labels)
        return SumsByQuery.of(data.numerator[rows], below, positions)

    weights = poisson_weights([f"q:{row}" for row in order], REPLICATES, seed=1)
    positions = position_weights([data.lengths[row] for row in order], 4, labels)
    for below in (data.denominator, 1.0):
        cut = [by_query(r, below[r] if isinstance(below, np.ndarray) else below) for r in shards]
        before = [frozen(piece) for piece in cut]
        joined = reduce(SumsByQuery.merge, cut, SumsByQuery.empty())
        under = below[order] if isinstance(below, np.ndarray) else below
        assert_same(
            Ratio.of(data.numerator[order], under, weights, positions), joined.drawn(weights)
        )
        assert [frozen(piece) for piece in cut] == before
        assert frozen(from_arrays(joined.arrays())) == frozen(joined)
        assert type(from_arrays(joined.arrays())) is SumsByQuery
        for number, row in enumerate(order):
            alone = by_query([row], below[[row]] if isinstance(below, np.ndarray) else below)
            np.testing.assert_array_equal(alone.compute()[0], joined.compute()[number])


@each_accumulator
@given(data=datasets())
@settings(max_examples=20)
def test_merging_does_not_share_memory(make: Maker, empty: Accumulator, data: Data) -> None:
    one = make(data, [0])
    merged = one.merge(make(data, range(1, len(data)))) if len(data) > 1 else one
    before = frozen(merged)
    other = make(data, [0])
    for array in other.arrays().values():
        array += 1
    assert frozen(merged) == before
    assert frozen(one) == frozen(make(data, [0]))


@each_accumulator
def test_nothing_accumulated_has_no_value(make: Maker, empty: Accumulator) -> None:
    with pytest.raises(ValueError, match="no queries"):
        empty.compute()


def test_the_same_query_twice_is_an_error() -> None:
    rows = PerQuery.of([0, 1], np.zeros((2, 1)))
    with pytest.raises(ValueError, match="twice"):
        rows.merge(PerQuery.of([1], np.zeros((1, 1))))


def test_rows_come_in_the_order_of_the_query_file() -> None:
    rows = PerQuery.of([4, 0], np.array([[4.0], [0.0]])).merge(PerQuery.of([2], np.array([[2.0]])))
    assert rows.compute().tolist() == [[0.0], [2.0], [4.0]]
    alone = PerQuery.of([4, 0], np.array([[4.0], [0.0]]))
    assert alone.compute().tolist() == [[0.0], [4.0]]


# Bootstrap weights ------------------------------------------------------------------------------

KEYS = [f"matched:{i}" for i in range(40)]


@given(st.permutations(range(8)), st.integers(0, 8))
def test_weights_do_not_depend_on_shards_or_order(order: list[int], cut: int) -> None:
    whole = poisson_weights(KEYS[:8], REPLICATES, seed=0)
    parts = [order[:cut], order[cut:]]
    got = [poisson_weights([KEYS[i] for i in p], REPLICATES, seed=0) for p in parts if p]
    np.testing.assert_array_equal(np.concatenate(got), whole[order])


def test_weights_differ_by_seed_and_by_query() -> None:
    one, two = (poisson_weights(KEYS, REPLICATES, seed) for seed in (0, 1))
    assert not np.array_equal(one[:, 1:], two[:, 1:])
    assert len({row.tobytes() for row in one}) == len(KEYS)


def test_weights_are_poisson_counts_and_column_0_is_the_data() -> None:
    weights = poisson_weights([f"q:{i}" for i in range(300)], 300, seed=5)
    counts = weights[:, 1:]
    assert weights.shape == (300, 301)
    assert (weights[:, 0] == 1).all()
    assert (counts == counts.astype(int)).all()
    assert counts.mean() == pytest.approx(1, abs=0.02)  # 6 standard errors of 90,000 draws
    assert counts.var() == pytest.approx(1, abs=0.04)
    assert (counts == 0).mean() == pytest.approx(np.exp(-1), abs=0.01)
    between = np.corrcoef(counts[:20])[np.triu_indices(20, 1)]
    assert np.abs(between).max() < 0.3  # queries are independent: 5 standard errors


# Positions --------------------------------------------------------------------------------------


def test_labels_of_positions() -> None:
    assert position_labels(3, 32) == ["last", "mean", "0", "1", "2"]
    assert position_labels(40, 2) == ["last", "mean", "0", "1"]
    assert position_labels(5, 0) == ["last", "mean"]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 6))
def test_weights_of_positions(lengths: list[int], limit: int) -> None:
    labels = position_labels(6, limit)
    weights = position_weights(lengths, 6, labels)
    assert weights.shape == (len(lengths), 6, len(labels))
    for row, length in zip(weights, lengths, strict=True):
        assert np.flatnonzero(row[:, 0]).tolist() == [length - 1]
        assert np.flatnonzero(row[:, 1]).tolist() == list(range(length))
        for column, label in enumerate(labels[2:], 2):
            index = int(label)
            assert np.flatnonzero(row[:, column]).tolist() == [index] * (index < length)
    assert set(np.unique(weights)) <= {0.0, 1.0}


def test_labels_of_segments_and_answers() -> None:
    labels = position_labels(2, 32, ["query", "answer"], 3)
    tokens = [f"answer_{i}" for i in range(3)]
    assert labels == ["last", "mean", "query", "answer", "0", "1", *tokens]
    assert position_labels(9, 1, SEGMENTS, 9) == ["last", "mean", *SEGMENTS, "0", "answer_0"]
    assert answer_labels(labels) == ["last", "answer", "answer_0", "answer_1", "answer_2"]


SHAPES = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=5
)
"""Tokens before the answer, rows that predict it, tokens of the query's own text."""


@given(SHAPES, st.integers(0, 3))
def test_every_label_counts_its_own_rows(shapes: list[tuple[int, int, int]], more: int) -> None:
    """Row by row; segments share out every row but padding, once."""
    lengths, answers, texts = zip(*shapes, strict=True)
    width = max(n + k - 1 for n, k, _ in shapes) + more
    labels = position_labels(width, width, SEGMENTS, width)
    weights = position_weights(lengths, width, labels, answers, texts)
    for query, (length, answer, text) in enumerate(shapes):
        for row in range(width):
            after = row - (length - 1)  # 0: predicts the answer's first token
            real = after < answer
            expected = {
                "last": after == 0,
                "mean": after <= 0,
                "query": after < 0 and row < text,
                "template": after < 0 and row >= text,
                "answer": after >= 0 and real,
            }
            for index in range(width):
                expected[str(index)] = row == index and after <= 0
                expected[f"answer_{index}"] = after == index and real
            found = dict(zip(labels, weights[query, row], strict=True))
            assert found == {label: float(value) for label, value in expected.items()}
            assert sum(found[name] for name in SEGMENTS) == real
    alone = ["last", "mean", "0"]  # without answers, as before there were any
    np.testing.assert_array_equal(
        position_weights(lengths, width, alone), weights[..., [labels.index(x) for x in alone]]
    )


# Ratios -----------------------------------------------------------------------------------------


@given(datasets())
def test_a_ratio_equals_its_restatement_token_by_token(data: Data) -> None:
    estimate = ratio(data, range(len(data))).compute()
    for cell in range(2):
        for column, label in enumerate(position_labels(4, 2)):
            above, below, queries = 0.0, 0.0, set()
            for query, length in enumerate(data.lengths):
                places = {"last": [length - 1], "mean": range(length)}.get(label)
                for place in places if places is not None else [int(label)]:
                    x, y = data.numerator[query, cell, place], data.denominator[query, cell, place]
                    if place < length and np.isfinite(x) and np.isfinite(y):
                        above, below = above + x, below + y
                        queries.add(query)
            expected = above / below if below else np.nan
            scale = np.nanmax(np.abs(np.nan_to_num(data.numerator, posinf=0, neginf=0)), initial=1)
            assert estimate.value[cell, column] == pytest.approx(
                expected, rel=1e-12, abs=1e-12 * scale, nan_ok=True
            )
            assert estimate.n[cell, column] == len(queries)


def test_a_token_that_is_not_finite_counts_in_neither_sum() -> None:
    bad = np.array([[1.0, np.nan, 3.0, np.inf]])
    got = Ratio.of(
        bad, np.array([[10.0, 20, np.nan, 40]]), np.ones((1, 1)),
        position_weights([4], 4, ["last", "mean", "0"]),
    )  # fmt: skip
    assert got.numerator[0].tolist() == [0.0, 1.0, 1.0]
    assert got.denominator[0].tolist() == [0.0, 10.0, 10.0]
    assert got.n.tolist() == [0, 1, 1]
    value = got.compute().value
    assert np.isnan(value[0])
    assert value[1:].tolist() == [0.1, 0.1]


def test_padding_never_counts_whatever_it_holds() -> None:
    values = np.array([[1.0, 2.0, 1e300], [5.0, np.nan, np.inf]])
    weights, positions = np.ones((2, 1)), position_weights([2, 1], 3, ["last", "mean"])
    got = Ratio.of(values, 1.0, weights, positions).compute()
    assert got.value.tolist() == [3.5, 8 / 3]
    assert got.n.tolist() == [2, 2]


def test_no_valid_token_is_nan_and_n_is_0_and_without_replicates_no_interval() -> None:
    weights = poisson_weights(KEYS[:2], REPLICATES, 0)
    got = Ratio.of(np.full((2, 1), np.nan), 1.0, weights, np.ones((2, 1, 1))).compute()
    assert np.isnan([got.value[0], got.ci_low[0], got.ci_high[0]]).all()
    assert got.n.tolist() == [0]
    alone = Ratio.of(np.ones((2, 1)), 1.0, np.ones((2, 1)), np.ones((2, 1, 1))).compute()
    assert alone.value.tolist() == [1.0]
    assert np.isnan([alone.ci_low[0], alone.ci_high[0]]).all()


def test_the_interval_resamples_queries_not_tokens() -> None:
    """Repeating every token of a query changes no interval: the query is the unit."""
    values = np.random.default_rng(0).normal(size=(40, 1))
    weights = poisson_weights(KEYS, 200, 0)
    once = Ratio.of(values, 1.0, weights, np.ones((40, 1, 1))).compute()
    often = Ratio.of(values.repeat(9, 1), 1.0, weights, np.ones((40, 9, 1))).compute()
    np.testing.assert_allclose(often.ci_low, once.ci_low, rtol=1e-12)
    np.testing.assert_allclose(often.ci_high, once.ci_high, rtol=1e-12)


# Intervals --------------------------------------------------------------------------------------


@given(
    hnp.arrays(
        np.float64,
        st.tuples(st.integers(15, 40), st.integers(1, 3)),
        elements=st.one_of(st.floats(-1e3, 1e3), st.just(float("nan"))),
    )
)
def test_a_percentile_interval_equals_its_restatement(replicates: np.ndarray) -> None:
    low, high = percentile_interval(replicates)
    for cell, column in enumerate(replicates.T):
        defined = np.sort(column[~np.isnan(column)])
        if len(defined) < 20:
            assert np.isnan([low[cell], high[cell]]).all()
            continue
        for bound, share in ((low, 0.025), (high, 0.975)):
            place = min(max(share * (len(defined) + 1) - 1, 0), len(defined) - 1)
            below, above = defined[int(place)], defined[min(int(place) + 1, len(defined) - 1)]
            expected = below + (place - int(place)) * (above - below)
            assert bound[cell] == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_the_interval_holds_the_value_where_replicates_are_equal() -> None:
    low, high = percentile_interval(np.full((20, 1), 3.0))
    assert low.tolist() == high.tolist() == [3.0]


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.normal(1.0, 2.0, shape)


def skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.exponential(1.0, shape)


@pytest.mark.parametrize("draw", [normal, skewed])
def test_intervals_of_a_mean_cover_its_true_value(draw: Callable[..., np.ndarray]) -> None:
    """300 studies of 200 queries each, as the cells of one accumulator."""
    values = draw(np.random.default_rng(7), (200, 300, 1))
    weights = poisson_weights([f"q:{i}" for i in range(200)], 200, seed=11)
    got = Ratio.of(values, 1.0, weights, np.ones((200, 1, 1))).compute()
    covered = (got.ci_low[:, 0] <= 1) & (got.ci_high[:, 0] >= 1)
    assert 0.90 <= covered.mean() <= 0.98
    width = (got.ci_high - got.ci_low).mean()
    assert width == pytest.approx(2 * 1.96 * values.std() / np.sqrt(200), rel=0.1)


def test_intervals_of_a_ratio_of_sums_cover_its_true_value() -> None:
    """Queries of unequal length, tokens within a query alike: what resampling tokens would miss."""
    generator = np.random.default_rng(3)
    lengths = generator.integers(1, 5, 200)
    positions = position_weights(lengths.tolist(), 4, ["last", "mean"])
    values = 1 + generator.normal(size=(200, 300, 1)) + 0.1 * generator.normal(size=(200, 300, 4))
    weights = poisson_weights([f"q:{i}" for i in range(200)], 200, seed=2)
    got = Ratio.of(values, 1.0, weights, positions).compute()
    covered = ((got.ci_low <= 1) & (got.ci_high >= 1)).mean(0)
    assert ((covered >= 0.90) & (covered <= 0.98)).all()
