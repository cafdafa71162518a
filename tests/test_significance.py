"""Sign flips obey the laws of an accumulator, and their p-values those of an exact test."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import permutation_test

from interp import significance
from interp.measures.tally import from_arrays
from interp.positions import position_weights
from interp.significance import (
    DifferencesByQuery,
    SignFlip,
    benjamini_hochberg,
    differs_from_null,
    permutation_p,
    sign_vectors,
)
from interp.statistics import poisson_weights

KEYS = [f"matched:{i}" for i in range(60)]
REPLICATES = 19
LABELS = ["last", "mean", "0"]


def every_sign(n: int) -> np.ndarray:
    """All 2^n sign vectors, the data first: with these the test is exact."""
    return np.array(list(product([1.0, -1.0], repeat=n))).T


def flips(d: np.ndarray, signs: np.ndarray) -> SignFlip:
    """The accumulator of differences `[query, cell]`, one token per query."""
    return SignFlip.of(d[..., None], np.zeros((*d.shape, 1)), signs, np.ones((len(d), 1, 1)))


def flat(d: np.ndarray, signs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p, max-T p and n per cell, without the label."""
    p, p_max_t, n = flips(d, signs).compute()
    return p[:, 0], p_max_t[:, 0], n[:, 0]


# Signs ------------------------------------------------------------------------------------------


@given(st.permutations(range(8)), st.integers(0, 8))
def test_signs_do_not_depend_on_shards(order: list[int], cut: int) -> None:
    whole = sign_vectors(KEYS[:8], 30, seed=0)
    parts = [p for p in (order[:cut], order[cut:]) if p]
    got = [sign_vectors([KEYS[i] for i in p], 30, seed=0) for p in parts]
    np.testing.assert_array_equal(np.concatenate(got), whole[order])


def test_signs_are_fair_and_independent_and_column_0_is_the_data() -> None:
    signs = sign_vectors(KEYS, 1000, seed=3)
    assert signs.shape == (60, 1001)
    assert (signs[:, 0] == 1).all()
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs[:, 1:].mean()) < 5 / np.sqrt(60 * 1000)
    assert np.abs(np.corrcoef(signs[:, 1:])[np.triu_indices(60, 1)]).max() < 0.16  # 5 errors
    other = sign_vectors(KEYS, 1000, seed=4)
    assert abs((signs * other)[:, 1:].mean()) < 5 / np.sqrt(60 * 1000)
    counts = poisson_weights(KEYS, 1000, seed=3)[:, 1:]
    assert abs(np.corrcoef(counts.ravel(), signs[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(60 * 1000)


# Laws of an accumulator -------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, float("nan"), float("inf"), -float("inf")])
)
Data = tuple[np.ndarray, np.ndarray, list[int]]


@st.composite
def datasets(draw: st.DrawFn) -> Data:
    """Values, control values `[query, cell, query_pos]` and lengths."""
    size = draw(st.integers(1, 6))
    shape = (size, 2, 4)
    values, control = (draw(hnp.arrays(np.float64, shape, elements=NUMBERS)) for _ in range(2))
    return values, control, draw(st.lists(st.integers(1, 4), min_size=size, max_size=size))


@st.composite
def shardings(draw: st.DrawFn) -> tuple[Data, list[list[int]]]:
    data = draw(datasets())
    order = draw(st.permutations(range(len(data[2]))))
    cuts = sorted(draw(st.sets(st.integers(1, len(order)), max_size=3)) | {0, len(order)})
    return data, [list(order[a:b]) for a, b in pairwise(cuts)]


def make(data: Data, rows: Sequence[int]) -> SignFlip:
    values, control, lengths = data
    rows = list(rows)
    return SignFlip.of(
        values[rows],
        control[rows],
        sign_vectors([KEYS[row] for row in rows], REPLICATES, seed=1),
        position_weights([lengths[row] for row in rows], 4, LABELS),
    )


def frozen(total: SignFlip) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    return {k: (a.shape, a.dtype.str, a.tobytes()) for k, a in total.arrays().items()}


def assert_same(a: SignFlip, b: SignFlip) -> None:
    for name, array in a.arrays().items():
        other = b.arrays()[name]
        assert array.shape == other.shape
        scale = np.abs(array).max(initial=1)
        np.testing.assert_allclose(other, array, rtol=1e-12, atol=1e-12 * scale)


@given(shardings())
@settings(max_examples=50)
def test_laws_of_the_accumulator(sharding: tuple[Data, list[list[int]]]) -> None:
    data, shards = sharding
    whole, empty = make(data, range(len(data[2]))), SignFlip.empty()
    pieces = [make(data, rows) for rows in shards]
    before = [frozen(piece) for piece in pieces]
    assert_same(whole, reduce(SignFlip.merge, pieces))
    assert_same(whole, reduce(lambda a, b: b.merge(a), pieces))
    assert [frozen(piece) for piece in pieces] == before
    assert frozen(empty.merge(whole)) == frozen(whole.merge(empty)) == frozen(whole)
    assert frozen(SignFlip.from_arrays(whole.arrays())) == frozen(whole)


@given(datasets())
@settings(max_examples=20)
def test_merging_does_not_share_memory(data: Data) -> None:
    one, other = make(data, [0]), make(data, [0])
    merged = one.merge(other)
    before = frozen(merged)
    for array in other.arrays().values():
        array += 1
    assert frozen(merged) == before
    assert frozen(one) == frozen(make(data, [0]))


@given(sharding=shardings())
def test_differences_by_query_are_joined_in_their_order_and_flipped_afterwards(
    sharding: tuple[Data, list[list[int]]],
) -> None:
    data, shards = sharding
    values, control, lengths = data
    order = [row for rows in shards for row in rows]
    pieces = [
        DifferencesByQuery.of(
            values[rows], control[rows], position_weights([lengths[i] for i in rows], 4, LABELS)
        )
        for rows in shards
    ]
    joined = reduce(DifferencesByQuery.merge, pieces, DifferencesByQuery.empty())
    signs = sign_vectors([KEYS[row] for row in order], REPLICATES, seed=1)
    assert_same(make(data, order), joined.flipped(signs))
    again = from_arrays(joined.arrays())
    assert isinstance(again, DifferencesByQuery)
    np.testing.assert_array_equal(again.compute(), joined.compute())


def test_nothing_accumulated_has_no_value() -> None:
    with pytest.raises(ValueError, match="no queries"):
        SignFlip.empty().compute()


@given(datasets())
def test_the_sums_equal_their_restatement_query_by_query(data: Data) -> None:
    values, control, lengths = data
    got, signs = make(data, range(len(lengths))), sign_vectors(KEYS, REPLICATES, seed=1)
    for cell, (column, label) in product(range(2), enumerate(LABELS)):
        found = []
        for query, length in enumerate(lengths):
            places = {"last": [length - 1], "mean": range(length), "0": [0]}[label]
            pairs = [(values[query, cell, i], control[query, cell, i]) for i in places]
            kept = [(v, c) for v, c in pairs if np.isfinite(v) and np.isfinite(c)]
            if kept:
                found.append((query, np.mean([v for v, _ in kept]) - np.mean([c for _, c in kept])))
        assert got.n[cell, column] == len(found)
        d = np.array([value for _, value in found])
        rows = signs[[query for query, _ in found]]
        scale = np.abs(d).sum() + np.abs(np.nan_to_num(values, posinf=0, neginf=0)).max()
        np.testing.assert_allclose(got.sums[:, cell, column], d @ rows, atol=1e-9 * scale)
        np.testing.assert_allclose(got.squares[cell, column], d @ d, atol=1e-9 * scale**2)


# p-values ---------------------------------------------------------------------------------------


@given(st.lists(st.integers(-4, 4), min_size=2, max_size=8))
def test_p_over_all_signs_is_that_of_scipy(whole: list[int]) -> None:
    """Small integers, so that ties are the rule."""
    d = np.array(whole, float)
    exact = permutation_test(
        (d,), np.sum, permutation_type="samples", n_resamples=np.inf, vectorized=False
    )
    p, _, n = flat(d[:, None], every_sign(len(d)))
    assert n.tolist() == [len(d)]
    assert p[0] == pytest.approx(min(1.0, exact.pvalue), abs=1e-12)


def test_p_over_random_signs_is_near_that_over_all() -> None:
    d = np.random.default_rng(5).normal(0.5, 1.0, (12, 4))
    exact, exact_max, _ = flat(d, every_sign(12))
    p, p_max, _ = flat(d, sign_vectors(KEYS[:12], 9999, seed=2))
    errors = 5 * np.sqrt(exact * (1 - exact) / 9999) + 1e-4
    assert (np.abs(p - exact) <= errors).all()
    assert (np.abs(p_max - exact_max) <= 5 * np.sqrt(0.25 / 9999)).all()
    assert len({round(value, 3) for value in exact}) == 4


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=7), st.permutations(range(7)))
def test_ties_survive_rounding_and_the_order_of_queries(whole: list[int], order: list[int]) -> None:
    """0.1 + 0.2 is not 0.3 in binary; as statistics they tie."""
    d = np.array(whole, float)[:, None]
    signs = every_sign(len(whole))
    rows = [row for row in order if row < len(whole)]
    shards = [flips(0.1 * d[[row]], signs[[row]]) for row in rows]
    got = reduce(SignFlip.merge, shards).compute()
    assert got.p.tolist() == flips(d, signs).compute().p.tolist()


@given(hnp.arrays(np.float64, (6, 3), elements=st.integers(-5, 5)), st.floats(0.1, 1e4))
def test_axioms_of_the_p_values(d: np.ndarray, scale: float) -> None:
    signs = sign_vectors(KEYS[:6], 39, seed=8)
    p, p_max, _ = flat(d, signs)
    assert (p >= 1 / 40).all()
    assert (p <= p_max).all()
    assert (p_max <= 1).all()
    for other in (scale * d, -d, d[:, ::-1]):
        again = flat(other, signs)
        step = -1 if other.base is d else 1
        np.testing.assert_array_equal(again[0][::step], p)
        np.testing.assert_array_equal(again[1][::step], p_max)
    twice = flat(np.concatenate([d, d], 1), signs)
    np.testing.assert_array_equal(twice[1], np.concatenate([p_max, p_max]))
    alone = flat(d[:, :1], signs)
    assert alone[1][0] == alone[0][0] == p[0]


def test_max_t_equals_its_restatement() -> None:
    d = np.random.default_rng(0).normal(size=(15, 5)) + np.array([1.5, 0.8, 0.3, 0, 0])
    signs = sign_vectors(KEYS[:15], 199, seed=0)
    p, p_max, _ = flat(d, signs)
    t = [[abs(s @ column) / np.sqrt(column @ column) for column in d.T] for s in signs.T]
    for cell in range(5):
        single = sum(row[cell] >= t[0][cell] for row in t[1:])
        largest = sum(max(row) >= t[0][cell] for row in t[1:])
        assert p[cell] == pytest.approx((1 + single) / 200)
        assert p_max[cell] == pytest.approx((1 + largest) / 200)
    assert p_max[0] < 0.05 < p_max[4]


def test_equal_pairs_have_p_1_and_a_single_query_none() -> None:
    values = np.zeros((3, 4, 1))
    values[:, 1, 0] = np.nan
    values[1:, 2, 0] = np.nan
    values[:, 3, 0] = [3.0, 4.0, 5.0]
    control = np.zeros((3, 4, 1))
    p, p_max, n = SignFlip.of(values, control, every_sign(3), np.ones((3, 1, 1))).compute()
    np.testing.assert_array_equal(n[:, 0], [3, 0, 1, 3])
    np.testing.assert_allclose(p[:, 0], [1, np.nan, np.nan, 0.25])
    np.testing.assert_allclose(p_max[:, 0], [1, np.nan, np.nan, 0.25])  # a NaN cell is no test


def test_no_cell_with_two_queries_is_all_nan() -> None:
    p, p_max, _ = flat(np.array([[1.0, 2.0]]), every_sign(1))
    assert np.isnan([p, p_max]).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    total = flips(np.random.default_rng(1).normal(size=(10, 7)), sign_vectors(KEYS[:10], 99, 0))
    whole = total.compute()
    monkeypatch.setattr(significance, "BLOCK_ENTRIES", 21)
    for a, b in zip(whole, total.compute(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_share_of_rearrangements() -> None:
    observed = np.array([2.0, 1.0, np.nan])
    rows = np.array([[2.0, 1.0, 9.0], [1.0, 2.5, 9.0], [0.0, 0.0, 9.0], [2.0, 0.0, 9.0]])
    p, p_max = permutation_p(observed, [rows[:1], rows[1:]])
    np.testing.assert_array_equal(p, [0.5, 0.5, np.nan])
    np.testing.assert_array_equal(p_max, [0.75, 0.75, np.nan])


# Benjamini-Hochberg -----------------------------------------------------------------------------

P_VALUES = hnp.arrays(
    np.float64,
    hnp.array_shapes(max_dims=2, max_side=6),
    elements=st.one_of(st.floats(0, 1), st.just(float("nan"))),
)


@given(P_VALUES)
def test_benjamini_hochberg_equals_its_restatement(p: np.ndarray) -> None:
    adjusted = benjamini_hochberg(p)
    assert adjusted.shape == p.shape
    tests = sorted(value for value in p.ravel() if not np.isnan(value))
    for value, got in zip(p.ravel(), adjusted.ravel(), strict=True):
        if np.isnan(value):
            assert np.isnan(got)
            continue
        steps = [q * len(tests) / rank for rank, q in enumerate(tests, 1) if q >= value]
        assert got == pytest.approx(min(1.0, *steps, 1.0))
        assert got >= value
        assert len(tests) > 1 or got == value


def test_nothing_to_adjust_is_nan() -> None:
    assert np.isnan(benjamini_hochberg(np.full((2, 3), np.nan))).all()


# Rounding ---------------------------------------------------------------------------------------


def test_differences_that_rounding_can_make_have_p_1_and_others_keep_theirs() -> None:
    """Twelve queries, all of one sign: without a floor every cell has the smallest p there is."""
    d = np.array([[1.0, 1e-9, 1.0]] * 12)
    d[::2, 2] = 1e-9
    signs, floor = every_sign(12), np.full((12, 3, 1), 1e-8)
    total = SignFlip.of(d[..., None], np.zeros((12, 3, 1)), signs, np.ones((12, 1, 1)), floor)
    p, p_max_t, n = (x[:, 0] for x in total.compute())
    np.testing.assert_allclose(flat(d, signs)[0][:2], 2 / 4096)
    np.testing.assert_allclose(p, [2 / 4096, 1, 2 / 2**6])
    assert p_max_t[1] == benjamini_hochberg(p)[1] == 1
    assert (n == 12).all()


def test_a_floor_is_per_token_and_hides_nothing_that_is_undefined() -> None:
    values = np.array([[[1e-9, 1.0, np.nan]], [[np.inf, 1e-9, 2.0]]])
    floor = np.where(np.isfinite(values), 1e-8, np.inf)
    total = SignFlip.of(values, np.zeros_like(values), np.ones((2, 1)), np.ones((2, 3, 1)), floor)
    np.testing.assert_allclose(total.sums.ravel(), [0.5 + 1.0])
    np.testing.assert_array_equal(total.n.ravel(), [2])


def test_only_cells_that_differ_stand_and_without_a_test_those_above_the_floor() -> None:
    values, p = np.array([3.0, 2.0, np.nan, 1e-9]), np.array([0.2, 0.05, np.nan, 0.001])
    assert differs_from_null(values, p, 1e-8).tolist() == [False, True, False, True]
    untested = np.full(4, np.nan)
    assert differs_from_null(values, untested, 1e-8).tolist() == [True, True, False, False]
