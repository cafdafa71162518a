"""Probe transfer against scikit-learn's own classifier, and what it must and must not see."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from interp.geometry import Probes, probe_pair, probe_transfer
from interp.geometry.calibration import orders_within


def states(
    n: int = 60, d: int = 16, labels: int = 3, strength: float = 2.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two conditions that carry the label in the same directions, each with its own noise."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % labels
    means = strength * rng.normal(size=(labels, d))
    a, b = (means[label] + 2 * rng.normal(size=(n, d)) for _ in range(2))
    return a, b, [f"label {i}" for i in label]


def accuracies(a: np.ndarray, b: np.ndarray, labels: list[str], seed: int) -> tuple[float, float]:
    """On a and on b, of scikit-learn's classifier."""
    y, scaler = np.array(labels), StandardScaler().fit(a)
    a, b = scaler.transform(a), scaler.transform(b)
    right: list[list[bool]] = [[], []]
    for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(a, y):
        fitted = RidgeClassifier(alpha=a.shape[1]).fit(a[train], y[train])
        for hits, x in zip(right, (a, b), strict=True):
            hits.extend(fitted.predict(x[test]) == y[test])
    return float(np.mean(right[0])), float(np.mean(right[1]))


# References -------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [2, 3, 6])
@pytest.mark.parametrize("d", [5, 16, 90])
@pytest.mark.parametrize("seed", [0, 1])
def test_transfer_equals_that_of_scikit_learn_s_classifier(labels: int, d: int, seed: int) -> None:
    a, b, y = states(d=d, labels=labels, strength=0.8, seed=seed)
    own, other = accuracies(a, b, y, seed)
    assert 1 / labels < own
    assert probe_transfer(a, b, y, seed) == pytest.approx(other / own, rel=1e-12)
    assert probe_pair(a, b, y, seed, permutations=0)["probe_transfer"].value == probe_transfer(
        a, b, y, seed
    )


# Axioms -----------------------------------------------------------------------------------------


def test_a_condition_transfers_to_itself() -> None:
    a, _, y = states(strength=0.8)
    found = probe_pair(a, a.copy(), y, seed=0)["probe_transfer"]
    assert (found.value, found.calibrated, found.ci_low, found.ci_high) == (1, 1, 1, 1)
    assert found.p == pytest.approx(1 / 101)


def test_what_says_the_label_otherwise_does_not_transfer() -> None:
    a, b, y = states(d=16)
    turned = np.roll(b, 8, axis=1)  # as readable, along other directions
    here, there = (probe_pair(a, x, y, seed=0)["probe_transfer"] for x in (b, turned))
    assert here.value > 0.9
    assert here.p == pytest.approx(1 / 101)
    assert probe_transfer(turned, turned, y) == 1
    assert there.value < 0.7
    assert there.calibrated < 0.5 < here.calibrated


def test_a_shift_counts_against_the_transfer() -> None:
    a, b, y = states()
    assert probe_transfer(a, b + 100 * a[0], y) < probe_transfer(a, b, y)


def test_labels_may_have_any_name_and_queries_any_scale() -> None:
    a, b, y = states(strength=0.8)
    renamed = [{"label 0": "x", "label 1": "a", "label 2": "m"}[name] for name in y]
    scale = np.geomspace(0.01, 100, a.shape[1])
    expected = probe_transfer(a, b, y)
    assert probe_transfer(a, b, [int(name[-1]) for name in y]) == expected
    assert probe_transfer(scale * a, scale * b, y) == pytest.approx(expected)
    assert np.isfinite(probe_transfer(a, b, renamed))


def test_a_feature_that_does_not_vary_is_not_seen() -> None:
    a, b, y = states()
    rounded = np.nextafter(7.1, np.where(np.arange(60) % 2, 9, 0))
    constant = [np.c_[a, rounded], np.c_[b, 9e9 * np.arange(60)]]
    assert probe_transfer(*constant, y) == pytest.approx(probe_transfer(a, b, y), rel=0.1)


def test_queries_whose_label_is_rare_or_unknown_are_left_out() -> None:
    a, b, y = states()
    rng = np.random.default_rng(1)
    more = [np.concatenate([x, 50 * rng.normal(size=(7, x.shape[1]))]) for x in (a, b)]
    expected = probe_pair(a, b, y, seed=0)["probe_transfer"]
    found = probe_pair(*more, [*y, *["rare"] * 4, None, None, None], seed=0)["probe_transfer"]
    assert found == expected
    assert found.n == 60


def test_probes_are_the_same_for_many_others() -> None:
    a, b, y = states()
    trained = Probes.of(a, y, seed=3)
    assert trained is not None
    for other in (a, b, b[::-1].copy()):
        assert trained.transfer(other) == probe_pair(a, other, y, seed=3)["probe_transfer"]


# By chance --------------------------------------------------------------------------------------


def test_p_of_states_that_do_not_know_the_label_is_uniform() -> None:
    rng, p = np.random.default_rng(0), []
    for seed in range(200):
        a, b, y = states(n=40, d=6, labels=2, seed=seed)
        trained = Probes.of(a, y, seed, groups=False)
        assert trained is not None
        p.append(trained.transfer(rng.normal(size=b.shape), permutations=19).p)
    assert np.mean(np.array(p) <= 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(np.array(p) <= 0.5) < 0.5 + 3 * 0.5 / np.sqrt(200)


def test_chance_is_what_is_measured_with_the_rows_in_another_order_within_folds() -> None:
    a, b, y = states(n=50, strength=1.2)
    trained = Probes.of(a, y, seed=2)
    assert trained is not None
    orders = orders_within(trained.split.fold, 40, seed=2)
    null = [trained.transfer(b[order], permutations=0).value for order in orders]
    found = trained.transfer(b, permutations=40)
    assert found.chance == pytest.approx(np.mean(null))
    assert found.chance_low == pytest.approx(np.quantile(null, 0.025))
    assert found.chance_high == pytest.approx(np.quantile(null, 0.975))
    assert found.p == pytest.approx((1 + np.sum(np.array(null) >= found.value)) / 41)
    assert found.calibrated == pytest.approx((found.value - found.chance) / (1 - found.chance))


def test_chance_is_that_of_the_labels_shares() -> None:
    a, b, y = states(labels=4, strength=3.0)
    found = probe_pair(a, b, y, seed=0, permutations=400)["probe_transfer"]
    assert found.value == 1
    assert found.chance == pytest.approx(1 / 4, abs=0.02)
    assert found.chance_low < 1 / 4 < found.chance_high < 0.5


# Undefined --------------------------------------------------------------------------------------


def test_what_was_not_learnt_is_not_seen_to_transfer() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 40, 6))
    labels = ["common"] * 30 + ["other"] * 10
    assert accuracies(x, x, labels, 0)[0] <= 0.75  # no better than saying "common"
    assert np.isnan(probe_transfer(x, y, labels))


def test_without_two_labels_there_is_no_probe() -> None:
    a, b, _ = states()
    for labels in (["one"] * 60, ["one"] * 56 + ["two"] * 4, [None] * 60, list(range(60))):
        found = probe_pair(a, b, labels, seed=0)["probe_transfer"]
        assert np.isnan([found.value, found.ci_low, found.chance, found.calibrated, found.p]).all()
    assert np.isfinite(probe_transfer(a, b, ["one", "two"] * 5 + ["x", "y"] * 25))


def test_states_that_are_not_finite_give_nan() -> None:
    a, b, y = states()
    b[5, 2] = np.inf
    assert np.isnan(probe_transfer(a, b, y))
    assert np.isnan(probe_transfer(b, a, y))


def test_rows_must_be_paired() -> None:
    a, b, y = states()
    with pytest.raises(ValueError, match="60 of one condition, 59 of the other"):
        probe_transfer(a, b[1:], y)
    with pytest.raises(ValueError, match="59 labels for the states of 60 queries"):
        probe_transfer(a, b, y[1:])
