"""Results: their chance against measuring again, their intervals and p-values by simulation."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.geometry import (
    PAIRED,
    SINGLE,
    gride,
    linear_cka,
    mutual_knn,
    paired_similarity,
    probe_pair,
    procrustes_distance,
    sample,
    single,
    two_nn,
)
from interp.geometry.calibration import (
    all_but_one_group,
    grouped_jackknife,
    orders_within,
    phipson_smyth_p,
    row_orders,
)

MEASURES: dict[str, Any] = {
    "linear_cka": linear_cka,
    "procrustes_distance": procrustes_distance,
    "mutual_knn": mutual_knn,
}


def alike(n: int = 40, d: int = 12, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    """Two conditions `[2, query, d_model]` that have half in common."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) + noise * rng.normal(size=(2, n, d))


# References -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(40, 12), (24, 60)])
@pytest.mark.parametrize("name", PAIRED)
def test_chance_is_what_is_measured_with_the_rows_in_another_order(
    name: str, n: int, d: int
) -> None:
    x, y = alike(n, d)
    measure = MEASURES[name]
    null = np.array([measure(x, y[order]) for order in row_orders(n, 100, seed=5)])
    found = paired_similarity(x, y, seed=5)[name]
    assert found.value == pytest.approx(measure(x, y), abs=1e-9)
    assert found.chance == pytest.approx(null.mean(), abs=1e-9)
    assert found.chance_low == pytest.approx(np.quantile(null, 0.025), abs=1e-9)
    assert found.chance_high == pytest.approx(np.quantile(null, 0.975), abs=1e-9)
    nearer = null <= found.value if name == "procrustes_distance" else null >= found.value
    assert found.p == pytest.approx((1 + nearer.sum()) / 101)
    if name == "procrustes_distance":
        assert found.calibrated == pytest.approx(1 - found.value / found.chance)
    else:
        assert found.calibrated == pytest.approx((found.value - found.chance) / (1 - found.chance))
    assert found.n == n


@pytest.mark.parametrize("name", ["linear_cka", "procrustes_distance"])
def test_the_interval_is_that_of_measuring_without_each_group(name: str) -> None:
    x, y = alike()
    values = np.array([MEASURES[name](x[k], y[k]) for k in all_but_one_group(40, seed=5)])
    half = 2.2621571627409915 * np.sqrt(9 / 10 * ((values - values.mean()) ** 2).sum())
    found = paired_similarity(x, y, seed=5)[name]
    assert found.ci_low == pytest.approx(found.value - half, abs=1e-9)
    assert found.ci_high == pytest.approx(found.value + half, abs=1e-9)


def test_a_dimension_by_chance_is_that_of_shuffled_coordinates() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)) @ rng.normal(size=(3, 20))
    found, again = single(x, seed=0), np.random.default_rng(0)
    null = []
    for _ in range(30):
        shuffled = again.permuted(x, axis=0)
        np.testing.assert_array_equal(np.sort(shuffled, 0), np.sort(x, 0))
        null.append([two_nn(shuffled), *(gride(shuffled, n1) for n1 in (2, 4, 8))])
    assert tuple(found) == SINGLE
    for name, by_chance in zip(SINGLE, np.array(null).T, strict=True):
        assert found[name].chance == pytest.approx(by_chance.mean())
        assert found[name].chance_high == pytest.approx(np.quantile(by_chance, 0.975))
        assert found[name].ci_low <= found[name].value <= found[name].ci_high
        assert np.isnan(found[name].calibrated)
    assert found["intrinsic_dimension"].value == pytest.approx(two_nn(x))
    assert found["intrinsic_dimension"].value < 4 < 8 < found["intrinsic_dimension"].chance_low
    assert found["intrinsic_dimension"].p == pytest.approx(1 / 31)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = np.random.default_rng(0).normal(size=10)
    replicates = np.array([x[kept].mean() for kept in all_but_one_group(10, seed=3)])
    low, high = grouped_jackknife(float(x.mean()), replicates)
    half = 2.2621571627409915 * x.std(ddof=1) / np.sqrt(10)
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half))


# Axioms -----------------------------------------------------------------------------------------


def test_what_is_identical_is_1_and_never_so_by_chance() -> None:
    x = alike(60)[0]
    for name, found in paired_similarity(x, x.copy(), seed=0).items():
        ideal = 0 if name == "procrustes_distance" else 1
        assert found.value == pytest.approx(ideal, abs=1e-9)
        assert found.calibrated == pytest.approx(1, abs=1e-9)
        assert found.p == pytest.approx(1 / 101)
        assert (found.ci_low, found.ci_high) == pytest.approx((ideal, ideal), abs=1e-9)


def test_calibrated_is_0_by_chance_and_grows_with_likeness() -> None:
    by_noise = [paired_similarity(*alike(60, 30, noise), seed=0) for noise in (50.0, 1.0, 0.5, 0.2)]
    for name in PAIRED:
        values = [found[name].calibrated for found in by_noise]
        assert abs(values[0]) < 0.1
        assert values == sorted(values)
        assert values[-1] > 0.4


@given(st.integers(2, 60), st.integers(0, 99))
def test_every_query_is_left_out_once(n: int, seed: int) -> None:
    subsets = all_but_one_group(n, seed)
    assert len(subsets) == min(10, n)
    out = [sorted(set(range(n)) - set(kept.tolist())) for kept in subsets]
    assert sorted(i for group in out for i in group) == list(range(n))
    assert max(map(len, out)) - min(map(len, out)) <= 1
    assert all(kept.tolist() == sorted(kept) for kept in subsets)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 99))
def test_orders_keep_rows_within_their_fold(folds: list[int], seed: int) -> None:
    fold = np.array(folds)
    for order in orders_within(fold, 5, seed):
        assert sorted(order.tolist()) == list(range(len(fold)))
        np.testing.assert_array_equal(fold[order], fold)


def test_orders_within_one_fold_are_all_equally_likely() -> None:
    fold = np.array([0, 1, 0, 1, 0])
    orders = [tuple(order) for order in orders_within(fold, 2400, seed=0)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 12  # 3! orders of one fold times 2! of the other
    assert ((counts - 200) ** 2 / 200).sum() < 31.3  # chi-squared with 11 degrees, p = 0.001


def test_p_counts_the_data_and_what_equals_it() -> None:
    null = np.array([0.1, 0.5, 0.5 + 1e-12, 0.9])
    assert phipson_smyth_p(0.5, null, +1) == pytest.approx(4 / 5)
    assert phipson_smyth_p(0.5, null, -1) == pytest.approx(4 / 5)
    assert phipson_smyth_p(1.0, null, +1) == pytest.approx(1 / 5)
    assert np.isnan(phipson_smyth_p(0.5, np.array([0.1, np.nan]), +1))


def test_the_same_seed_gives_the_same_result() -> None:
    x, y = alike()
    y_labels = ["a", "b"] * 20
    assert paired_similarity(x, y, seed=1) == paired_similarity(x, y, seed=1)
    assert (
        paired_similarity(x, y, seed=1)["mutual_knn"]
        != paired_similarity(x, y, seed=2)["mutual_knn"]
    )
    first, again, other = (single(x, seed=s)["gride_2"] for s in (1, 1, 2))
    assert asdict(first) | {"calibrated": 0} == asdict(again) | {"calibrated": 0}
    assert first.chance != other.chance
    x[::2] += 1
    assert probe_pair(x, x + y, y_labels, seed=1) == probe_pair(x, x + y, y_labels, seed=1)


# By simulation ----------------------------------------------------------------------------------


def test_p_of_independent_conditions_is_uniform() -> None:
    rng = np.random.default_rng(0)
    runs = [
        paired_similarity(*rng.normal(size=(2, 15, 4)), seed, permutations=19)  # type: ignore[misc]
        for seed in range(200)
    ]
    for name in PAIRED:
        p = np.array([found[name].p for found in runs])
        assert np.mean(p <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
        assert np.mean(p) == pytest.approx(0.525, abs=3 * 0.3 / np.sqrt(200) + 0.03)


def test_p_of_a_cloud_with_independent_coordinates_is_uniform() -> None:
    rng = np.random.default_rng(0)
    p = np.array(
        [single(rng.normal(size=(16, 4)), s, 19)["intrinsic_dimension"].p for s in range(100)]
    )
    assert np.mean(p <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    assert np.mean(p) == pytest.approx(0.525, abs=0.1)


def test_the_interval_of_cka_covers_the_population_s_value() -> None:
    """The population's is `‖Σ_xy‖² / (‖Σ_xx‖‖Σ_yy‖)`, in closed form."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 8))
    xx, yy = (w.T @ w + np.eye(8) for w in (a, b))
    true = np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(xx) * np.linalg.norm(yy))
    assert 0.2 < true < 0.8
    covered = []
    for seed in range(200):
        common = rng.normal(size=(100, 5))
        x, y = (common @ w + rng.normal(size=(100, 8)) for w in (a, b))
        subsets = all_but_one_group(100, seed)
        replicates = np.array([linear_cka(x[kept], y[kept]) for kept in subsets])
        low, high = grouped_jackknife(linear_cka(x, y), replicates)
        covered.append(low <= true <= high)
    assert 0.90 <= np.mean(covered) <= 0.99


# Undefined --------------------------------------------------------------------------------------


def test_what_is_undefined_is_nan_throughout() -> None:
    x, y = alike()
    y[:] = y[0]
    for found in [*paired_similarity(x, y, seed=0).values(), *single(y, seed=0).values()]:
        row = asdict(found)
        assert row.pop("n") == 40
        assert np.isnan(list(row.values())).all()


def test_measures_are_undefined_one_by_one() -> None:
    four = paired_similarity(*alike(4), seed=0)  # type: ignore[misc]
    assert np.isfinite(four["procrustes_distance"].value)
    assert np.isnan(four["mutual_knn"].value)
    assert np.isfinite(four["linear_cka"].value)
    assert np.isnan(four["linear_cka"].ci_low)  # 3 queries are too few for each replicate
    assert np.isfinite(four["linear_cka"].p)
    found = single(alike(30)[0], seed=0)
    assert np.isfinite(found["gride_4"].value)
    assert np.isnan(found["gride_8"].value)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_next_to_no_queries_are_nan_and_no_error(n: int) -> None:
    x, y = alike(n)
    results = [
        paired_similarity(x, y, seed=0),
        single(x, seed=0),
        probe_pair(x, y, ["a"] * n, seed=0),
    ]
    found = {name: r.value for each in results for name, r in each.items()}
    found.pop("procrustes_distance")
    assert np.isnan(list(found.values())).all()


def test_without_permutations_there_is_a_value_and_no_chance() -> None:
    x, y = alike(60)
    found = paired_similarity(x, y, seed=0, permutations=0)["linear_cka"]
    assert np.isfinite([found.value, found.ci_low, found.ci_high]).all()
    assert np.isnan([found.chance, found.chance_low, found.calibrated, found.p]).all()


def test_rows_must_be_paired() -> None:
    x, y = alike()
    with pytest.raises(ValueError, match="40 of one condition, 39 of the other"):
        paired_similarity(x, y[1:], seed=0)


# The sample -------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 999).map(str), unique=True, max_size=30),
    st.integers(0, 40),
    st.integers(0, 9),
)
def test_a_query_is_kept_whatever_the_order(keys: list[str], size: int, seed: int) -> None:
    kept = sample(keys, size, seed)
    assert kept == sorted(set(kept))
    assert len(kept) == min(size, len(keys))
    turned = keys[::-1]
    assert {turned[i] for i in sample(turned, size, seed)} == {keys[i] for i in kept}
    assert set(kept) <= set(sample(keys, size + 1, seed))


def test_every_query_is_as_likely_to_be_kept() -> None:
    keys = [f"query {i}" for i in range(20)]
    counts = np.bincount(np.concatenate([sample(keys, 5, seed) for seed in range(800)]))
    expected = 800 / 4
    assert ((counts - expected) ** 2 / (expected * 0.75)).sum() < 45  # 20 cells, p = 0.001
    assert sample(keys, 20, seed=0) == list(range(20))
    assert sample(["same", "same", "other"], 3, seed=0) == [0, 1, 2]
