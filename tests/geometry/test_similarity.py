"""Similarity of two conditions against the formulas written out, and the axioms it obeys."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes
from scipy.spatial import procrustes
from scipy.spatial.distance import cosine
from scipy.stats import ortho_group

from interp.geometry import linear_cka, mutual_knn, procrustes_distance

MEASURES = [linear_cka, procrustes_distance, mutual_knn]
Measure = Callable[[np.ndarray, np.ndarray], float]


@st.composite
def pairs(draw: st.DrawFn, count: int = 2, fewest: int = 5) -> list[np.ndarray]:
    """Conditions `[query, d_model]` that have something in common, off the origin."""
    n, d = draw(st.integers(fewest, 24)), draw(st.integers(2, 30))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    common = rng.normal(size=(n, d))
    return [
        common * rng.uniform(0, 2) + rng.normal(size=(n, d)) + 3 * rng.normal(size=d)
        for _ in range(count)
    ]


def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """docs/reference/metrics.md, with 1 written out."""
    n, one = len(k), np.ones(len(k))
    return (
        np.trace(k @ l)
        + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        - 2 * (one @ k @ l @ one) / (n - 2)
    ) / (n * (n - 3))


def cka_by_formula(x: np.ndarray, y: np.ndarray) -> float:
    k, l = (m @ m.T - np.diag((m**2).sum(1)) for m in (x, y))  # noqa: E741
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def nearest(x: np.ndarray, i: int, k: int) -> set[int]:
    others = [j for j in range(len(x)) if j != i]
    return set(sorted(others, key=lambda j: cosine(x[i], x[j]))[:k])


# References -------------------------------------------------------------------------------------


@given(pairs())
def test_cka_equals_the_formula(xy: list[np.ndarray]) -> None:
    assert linear_cka(*xy) == pytest.approx(cka_by_formula(*xy), abs=1e-8)


@given(pairs())
def test_procrustes_equals_scipy_s_rotation_and_its_disparity(xy: list[np.ndarray]) -> None:
    a, b, disparity = procrustes(*xy)
    value = procrustes_distance(*xy)
    centred = [m - m.mean(0) for m in xy]
    x, y = (m / np.linalg.norm(m) for m in centred)
    rotation, nuclear = orthogonal_procrustes(y, x)
    assert value == pytest.approx(np.linalg.norm(x - y @ rotation), abs=1e-8)
    assert value == pytest.approx(np.sqrt(2 - 2 * nuclear), abs=1e-8)
    assert 1 - disparity == pytest.approx((1 - value**2 / 2) ** 2, abs=1e-8)
    assert np.linalg.norm(a) == pytest.approx(1)
    assert np.linalg.norm(b) <= 1 + 1e-9


@given(pairs(), st.integers(1, 12))
def test_neighbours_equal_a_sorted_list(xy: list[np.ndarray], k: int) -> None:
    x, y = xy
    fewer = min(k, (len(x) - 1) // 4)
    shared = [len(nearest(x, i, fewer) & nearest(y, i, fewer)) / fewer for i in range(len(x))]
    assert mutual_knn(x, y, k) == pytest.approx(np.mean(shared), abs=1e-8)


def test_values_by_hand() -> None:
    square = np.array([[1.0, 1], [-1, 1], [-1, -1], [1, -1]])
    line = np.array([[1.0], [-1], [-1], [1]]) * [1, 0]  # its first coordinate alone
    assert procrustes_distance(square, line) == pytest.approx(np.sqrt(2 - np.sqrt(2)))
    angle = np.radians([0, 10, 25, 45, 70, 100])
    x = np.stack([np.cos(angle), np.sin(angle)], 1)  # nearest: 1 0 1 2 3 4
    assert mutual_knn(x, x[[1, 0, 2, 3, 4, 5]]) == pytest.approx(5 / 6)  # 1 0 0 2 3 4


# Axioms -----------------------------------------------------------------------------------------


@given(pairs(count=1))
def test_a_condition_is_like_itself(alone: list[np.ndarray]) -> None:
    x = alone[0]
    assert linear_cka(x, x.copy()) == pytest.approx(1, abs=1e-12)
    assert mutual_knn(x, x.copy()) == 1
    assert procrustes_distance(x, x.copy()) == pytest.approx(0, abs=1e-12)


@given(pairs())
def test_symmetry_and_bounds(xy: list[np.ndarray]) -> None:
    for measure, low, high in zip(MEASURES, (-1, 0, 0), (1, 2**0.5, 1), strict=True):
        value = measure(*xy)
        assert low <= value <= high + 1e-12
        assert measure(*xy[::-1]) == pytest.approx(value, abs=1e-10)


@given(pairs(count=3))
def test_procrustes_obeys_the_triangle_inequality(xyz: list[np.ndarray]) -> None:
    x, y, z = xyz
    detour = procrustes_distance(x, y) + procrustes_distance(y, z)
    assert procrustes_distance(x, z) <= detour + 1e-10


@given(pairs(), st.integers(0, 99), st.floats(0.01, 100))
def test_rotation_and_scale_change_nothing(xy: list[np.ndarray], seed: int, scale: float) -> None:
    x, y = xy
    turned = scale * y @ ortho_group.rvs(y.shape[1], random_state=seed)
    for measure in MEASURES:
        assert measure(x, turned) == pytest.approx(measure(x, y), abs=1e-9)
    assert procrustes_distance(y, turned) == pytest.approx(0, abs=1e-9)


@given(pairs(), st.integers(0, 99))
def test_translation_changes_neither_cka_nor_procrustes(xy: list[np.ndarray], seed: int) -> None:
    x, y = xy
    moved = y + 1000 * np.random.default_rng(seed).normal(size=y.shape[1])
    for measure in (linear_cka, procrustes_distance):
        assert measure(x, moved) == pytest.approx(measure(x, y), abs=1e-7)


@given(pairs(), st.integers(0, 99))
def test_the_order_of_queries_changes_nothing(xy: list[np.ndarray], seed: int) -> None:
    x, y = xy
    order = np.random.default_rng(seed).permutation(len(x))
    for measure in MEASURES:
        assert measure(x[order], y[order]) == pytest.approx(measure(x, y), abs=1e-10)


@given(pairs(), st.integers(1, 3), st.integers(0, 99))
def test_the_order_of_tied_queries_changes_nothing(
    xy: list[np.ndarray], copies: int, seed: int
) -> None:
    x, y = (np.concatenate([m, *(m[:3] / (i + 3) for i in range(copies))]) for m in xy)
    order = np.random.default_rng(seed).permutation(len(x))
    assert mutual_knn(x[order], y[order]) == pytest.approx(mutual_knn(x, y), abs=1e-9)
    assert mutual_knn(x, x) == pytest.approx(1, abs=1e-12)


def test_directions_that_are_equal_but_for_rounding_are_tied() -> None:
    """Each query has 7 others of its direction for 5 places: 5/7 of each, in both conditions."""
    rng = np.random.default_rng(0)
    directions = np.repeat(rng.normal(size=(3, 7)), 8, axis=0)
    x, y = (directions * rng.uniform(0.1, 10, (24, 1)) for _ in range(2))
    assert mutual_knn(x, y) == pytest.approx(1, abs=1e-12)


def test_tied_neighbours_share_their_places() -> None:
    """Queries 1-3 are the same to query 0, of whom one place is theirs: a third each."""
    x = np.array([[1.0, 0], [1, 1], [1, 1], [1, 1], [-1, 3], [-1, 2.9], [-1, -1]])
    y = x.copy()
    y[1] = [1, 0.9]  # the nearest alone; 1 loses its ties, 2 and 3 keep each other
    k = 1
    assert (len(x) - 1) // 4 == k
    # 0: 1/3.  1: y's 2, 3 tie as in x, 1.  2: x has 1, 3 by half, y has 3: 1/2, as has 3.
    expected = (1 / 3 + 1 + 1 / 2 + 1 / 2 + 3) / 7
    assert mutual_knn(x, y) == pytest.approx(expected)


# By chance --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(12, 40), (40, 12)])
def test_cka_of_independent_states_is_0_in_expectation(n: int, d: int) -> None:
    rng = np.random.default_rng(0)
    draws = [linear_cka(rng.normal(size=(n, d)), rng.normal(size=(n, d))) for _ in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / 20
    assert np.std(draws) < 0.3


@pytest.mark.parametrize(("n", "k"), [(9, 2), (30, 7), (60, 10)])
def test_chance_of_shared_neighbours_is_k_of_the_others(n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    draws = [mutual_knn(rng.normal(size=(n, 8)), rng.normal(size=(n, 8))) for _ in range(300)]
    assert np.mean(draws) == pytest.approx(k / (n - 1), abs=4 * np.std(draws) / 300**0.5)


def test_cka_of_many_states_is_that_of_their_covariances() -> None:
    """`‖Σ_xy‖² / (‖Σ_xx‖‖Σ_yy‖)` in the population; the biased estimate would be far above."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 10))
    x, y = (
        m @ w + rng.normal(size=(1500, 10)) for m in [rng.normal(size=(1500, 6))] for w in (a, b)
    )
    xx, yy = (w.T @ w + np.eye(10) for w in (a, b))
    expected = np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(xx) * np.linalg.norm(yy))
    assert linear_cka(x, y) == pytest.approx(expected, abs=0.03)


# Undefined --------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_states_that_are_not_finite_give_nan(measure: Measure, bad: float) -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 20, 4))
    y[3, 1] = bad
    assert np.isnan(measure(x, y))
    assert np.isnan(measure(y, x))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_condition_that_does_not_vary_gives_nan(measure: Measure, dtype: type) -> None:
    x = np.random.default_rng(0).normal(size=(20, 4)).astype(dtype)
    same = np.tile(x[:1], (20, 1))
    noisy = np.nextafter(same, np.where(np.arange(20) % 2, 1, -1).astype(dtype)[:, None])
    for constant in (same, noisy, np.zeros_like(x)):
        assert np.isnan(measure(x, constant))
        assert np.isnan(measure(constant, constant))


def test_a_radicand_of_0_is_nan() -> None:
    """Queries all as far from each other have a Gram that is constant off its diagonal."""
    x = np.random.default_rng(0).normal(size=(8, 8))
    assert np.isnan(linear_cka(x, np.eye(8)))
    assert np.isnan(linear_cka(np.eye(8), np.eye(8)))


def test_too_few_queries_are_nan() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 5, 3))
    assert np.isnan(linear_cka(x[:3], y[:3]))
    assert np.isfinite(linear_cka(x[:4], y[:4]))
    assert np.isnan(mutual_knn(x[:4], y[:4]))
    assert np.isfinite(mutual_knn(x, y))
    assert np.isnan(procrustes_distance(x[:1], y[:1]))
    assert np.isnan(procrustes_distance(x[:0], y[:0]))


def test_neighbours_of_a_state_of_length_0_are_undefined() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 20, 3))
    x[4] = 0
    assert np.isnan(mutual_knn(x, y))


@pytest.mark.parametrize("measure", MEASURES)
def test_rows_must_be_paired(measure: Measure) -> None:
    x = np.random.default_rng(0).normal(size=(20, 4))
    with pytest.raises(ValueError, match=r"20 of one condition, 19 of the other"):
        measure(x, x[1:])


@given(pairs())
def test_sums_are_float64_whatever_the_dtype(xy: list[np.ndarray]) -> None:
    narrow = [m.astype(np.float32) for m in xy]
    assume(all(np.ptp(m) > 0 for m in narrow))
    for measure in MEASURES:
        assert measure(*narrow) == measure(*[m.astype(np.float64) for m in narrow])
