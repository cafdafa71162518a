"""Dimensions against likelihoods written out, dadapy's values, and data of known dimension."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import ortho_group
from sklearn.neighbors import NearestNeighbors

from interp.geometry import gride, two_nn


@st.composite
def clouds(draw: st.DrawFn) -> np.ndarray:
    n, d = draw(st.integers(34, 60)), draw(st.integers(2, 8))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    return rng.normal(size=(n, 3)) @ rng.normal(size=(3, d)) + 0.1 * rng.normal(size=(n, d))


def ratios(x: np.ndarray, n1: int, n2: int) -> np.ndarray:
    """Distances to neighbour n2 over those to n1, by scikit-learn."""
    near, _ = NearestNeighbors(n_neighbors=n2, algorithm="brute").fit(x).kneighbors()
    return near[:, n2 - 1] / near[:, n1 - 1]


def cube(n: int, d: int, within: int, seed: int = 0) -> np.ndarray:
    """Uniform points of a d-dimensional cube, turned in a larger space."""
    x = np.random.default_rng(seed).uniform(size=(n, d))
    return np.pad(x, ((0, 0), (0, within - d))) @ ortho_group.rvs(within, random_state=seed)


def surface() -> np.ndarray:
    """120 points of a three-dimensional surface in 10 dimensions."""
    i, j = np.arange(120)[:, None], np.arange(3)
    u = np.modf(np.abs(np.sin(12.9898 * (i + 1) + 78.233 * (j + 1)) * 4375.85453))[0]
    return np.concatenate([u, np.sin(3 * u), u**2, u[:, :1] * u[:, 1:2]], 1)


# References -------------------------------------------------------------------------------------


@given(clouds())
def test_two_nn_equals_its_formula(x: np.ndarray) -> None:
    expected = len(x) / np.log(ratios(x, 1, 2)).sum()
    assert two_nn(x) == pytest.approx(expected, rel=1e-8)
    assert two_nn(x) == gride(x, 1)


@pytest.mark.parametrize("n1", [2, 4, 8])
def test_gride_is_where_the_likelihood_has_its_maximum(n1: int) -> None:
    x, n2 = surface()[:40], 2 * n1
    mu = [mpmath.mpf(float(m)) for m in ratios(x, n1, n2)]

    def log_likelihood(d: mpmath.mpf) -> mpmath.mpf:
        return mpmath.fsum(
            mpmath.log(d)
            + (n2 - n1 - 1) * mpmath.log(m**d - 1)
            - ((n2 - 1) * d + 1) * mpmath.log(m)
            - mpmath.log(mpmath.beta(n2 - n1, n1))
            for m in mu
        )

    with mpmath.workdps(40):
        best = mpmath.findroot(lambda d: mpmath.diff(log_likelihood, d), (2, 4), solver="secant")
    assert gride(x, n1) == pytest.approx(float(best), rel=1e-8)
    assert log_likelihood(best) > max(log_likelihood(best * f) for f in (0.5, 0.99, 1.01, 2))


@pytest.mark.parametrize(
    ("n1", "by_dadapy"),
    [(1, 2.9992596287777387), (2, 2.7786148050438495), (4, 3.054657085889139),
     (8, 3.323926501615948)],
)  # fmt: skip
def test_dimensions_equal_those_of_dadapy_but_for_one_point(n1: int, by_dadapy: float) -> None:
    """Values of `Data(surface()).return_id_scaling_gride(range_max=32)`, dadapy 0.3.4.

    It has N - 1 for N in the derivative of the likelihood, whose root is the dimension."""
    x, n2 = surface(), 2 * n1
    logs = np.log(ratios(x, n1, n2))

    def root(points: int) -> float:
        return brentq(
            lambda d: points / d
            + (n2 - n1 - 1) * (logs / (1 - np.exp(-d * logs))).sum()
            - (n2 - 1) * logs.sum(),
            0.1, 100, xtol=1e-13,
        )  # fmt: skip

    assert root(len(x) - 1) == pytest.approx(by_dadapy, rel=1e-8)
    assert gride(x, n1) == pytest.approx(root(len(x)), rel=1e-10)


# Axioms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 2, 5])
def test_cubes_have_their_own_dimension_in_whatever_space(d: int) -> None:
    x = cube(1200, d, within=20)
    assert two_nn(x) == pytest.approx(d, rel=0.1)
    assert gride(x, 2) == pytest.approx(d, rel=0.1)
    assert gride(x, 4) == pytest.approx(d, rel=0.1)


def test_noise_fills_dimensions_at_the_finest_scale_only() -> None:
    x = cube(1000, 2, within=12)
    noisy = x + 0.01 * np.random.default_rng(1).normal(size=x.shape)
    found = [gride(noisy, n1) for n1 in (1, 2, 4, 8)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 3.5
    assert found[3] < found[0] - 1


@given(clouds(), st.integers(0, 99), st.floats(0.01, 100), st.sampled_from([1, 2, 4, 8]))
def test_motion_and_scale_change_nothing(x: np.ndarray, seed: int, scale: float, n1: int) -> None:
    moved = scale * x @ ortho_group.rvs(x.shape[1], random_state=seed) + seed
    order = np.random.default_rng(seed).permutation(len(x))
    assert gride(moved[order], n1) == pytest.approx(gride(x, n1), rel=1e-7)


@given(clouds(), st.sampled_from([1, 2, 4, 8]))
def test_a_dimension_is_positive(x: np.ndarray, n1: int) -> None:
    assert 0 < gride(x, n1) < np.inf


def test_a_grid_with_ties_everywhere_has_a_dimension_at_the_scale_where_it_has_neighbours() -> None:
    grid = np.stack(np.meshgrid(*[np.arange(7.0)] * 2), -1).reshape(-1, 2)
    assert np.isnan(two_nn(grid))  # r1 = r2 for every point: infinitely many dimensions
    assert gride(grid, 4) == pytest.approx(2, rel=0.5)


# Undefined --------------------------------------------------------------------------------------


def test_duplicates_are_dropped() -> None:
    x = cube(60, 3, within=5)
    twice = np.concatenate([x, x[:10]])
    rows = np.r_[10:60]  # the points that have no duplicate
    near, _ = NearestNeighbors(n_neighbors=2).fit(twice).kneighbors(x[rows] * 1.0, 3)
    expected = len(rows) / np.log(near[:, 2] / near[:, 1]).sum()
    assert two_nn(twice) == pytest.approx(expected, rel=1e-8)


def test_with_fewer_than_10_points_left_there_is_no_dimension() -> None:
    x = cube(40, 3, within=5)
    assert np.isnan(two_nn(x[:9]))
    assert np.isfinite(two_nn(x[:10]))
    assert np.isnan(two_nn(np.concatenate([x[:20], x[:11]])))  # 9 without a duplicate
    assert np.isfinite(two_nn(np.concatenate([x[:20], x[:10]])))


@pytest.mark.parametrize(("n1", "fewest"), [(2, 10), (4, 17), (8, 33)])
def test_no_more_than_half_of_the_others_are_neighbours(n1: int, fewest: int) -> None:
    x = cube(40, 3, within=5)
    assert np.isnan(gride(x[: fewest - 1], n1))
    assert np.isfinite(gride(x[:fewest], n1))


def test_points_that_are_all_the_same_or_not_finite_have_no_dimension() -> None:
    x = cube(40, 3, within=5)
    assert np.isnan(two_nn(np.ones((40, 5))))
    assert np.isnan(two_nn(x[:0]))
    x[3, 2] = np.inf
    assert np.isnan(two_nn(x))
