"""Strength: what it is 1 and 0 for, a ratio of sums, and an interval like any bootstrap's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from interp.matching.strength import Strength, strength

KEYS = [f"matched:{i}" for i in range(60)]
KL = arrays(np.float64, 12, elements=st.floats(0.01, 9.0))


def scored(emulation: np.ndarray, base: np.ndarray, replicates: int = 200) -> Strength:
    return strength(emulation, base, KEYS[: len(base)], replicates, seed=0)


@given(base=KL)
def test_the_target_itself_has_all_of_it_and_base_none(base: np.ndarray) -> None:
    assert scored(0 * base, base)[1:4] == (1, 1, 1)
    assert scored(base, base)[1:4] == (0, 0, 0)


@given(emulation=KL, base=KL)
def test_it_is_a_ratio_of_sums_and_at_most_1(emulation: np.ndarray, base: np.ndarray) -> None:
    found = scored(emulation, base)
    assert found.strength == pytest.approx(1 - emulation.sum() / base.sum())
    assert found.strength <= 1
    assert found.ci_low <= found.ci_high <= 1
    assert (found.kl, found.ceiling) == pytest.approx((emulation.mean(), base.mean()))
    assert found.n == 12


@given(emulation=KL, base=KL, factor=st.floats(0.1, 10.0))
def test_the_unit_of_divergence_cancels(
    emulation: np.ndarray, base: np.ndarray, factor: float
) -> None:
    plain, scaled = scored(emulation, base), scored(factor * emulation, factor * base)
    assert plain[1:4] == pytest.approx(scaled[1:4])


def test_nearer_is_stronger() -> None:
    base = np.linspace(1, 2, 12)
    values = [scored(share * base, base).strength for share in (0.0, 0.2, 0.5, 1.0, 2.0)]
    assert values == pytest.approx([1, 0.8, 0.5, 0, -1])


def test_the_interval_is_an_independent_bootstrap_s() -> None:
    generator = np.random.default_rng(0)
    base = generator.gamma(4.0, 0.5, 60)
    emulation = base * generator.beta(2, 6, 60)
    found = scored(emulation, base, replicates=2000)
    drawn = generator.integers(0, 60, (20000, 60))
    values = 1 - emulation[drawn].sum(1) / base[drawn].sum(1)
    low, high = np.quantile(values, [0.025, 0.975])
    width = high - low
    assert (found.ci_low, found.ci_high) == pytest.approx((low, high), abs=0.1 * width)
    assert found.ci_low < found.strength < found.ci_high


def test_the_interval_depends_on_the_queries_names_and_not_on_their_order() -> None:
    generator = np.random.default_rng(1)
    base, emulation = generator.gamma(4.0, 0.5, 60), generator.gamma(1.0, 0.5, 60)
    order = generator.permutation(60)
    names = [KEYS[i] for i in order]
    shuffled = strength(emulation[order], base[order], names, 200, seed=0)
    assert shuffled == pytest.approx(scored(emulation, base))
    assert strength(emulation, base, KEYS, 200, seed=1).ci_low != shuffled.ci_low


def test_without_an_effect_of_the_target_there_is_nothing_to_give() -> None:
    nothing = np.zeros(12)
    assert np.isnan(scored(nothing, nothing)[1:4]).all()


def test_without_replicates_there_is_no_interval() -> None:
    base = np.linspace(1, 2, 12)
    found = scored(0.5 * base, base, replicates=0)
    assert found.strength == pytest.approx(0.5)
    assert np.isnan([found.ci_low, found.ci_high]).all()
