"""Rankings of heads: shares and their p against every rearrangement there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from interp.errors import ConfigError
from interp.patching.effects import Effects, Resampling
from interp.patching.ranking import (
    heads_of_sweep,
    how_many,
    membership,
    necessity,
    ranking_overlap,
    strongest_heads,
    sufficiency,
)
from interp.patching.sites import PatchSite

N = 6


def layers_of(n_layers: int, n_heads: int) -> list[int]:
    return [layer for layer in range(n_layers) for _ in range(n_heads)]


def arrangements(layers: list[int]) -> Iterator[list[int]]:
    """Every order of the heads that leaves every head in its layer."""
    groups = [[i for i, at in enumerate(layers) if at == layer] for layer in sorted(set(layers))]
    for orders in itertools.product(*map(itertools.permutations, groups)):
        yield [place for order in orders for place in order]


def top(values: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-values)[:k].tolist())


# --- what is lost and won -------------------------------------------------------------------------


def effects(apart: float = 1.0) -> Effects:
    cells = (
        PatchSite("resid_post", 0, None, "all"),
        *(PatchSite("z", i, h, "all") for i in range(2) for h in range(2)),
        PatchSite("z", 0, 1, "last"),
        PatchSite("pattern", 0, 0, "all"),
    )
    generator = np.random.default_rng(0)
    damage, distance, odds = generator.gamma(1.0, 1.0, (3, N, len(cells)))
    own = apart * generator.uniform(0.5, 1.5, N)
    return Effects("a", "b", "", cells, damage, distance, odds, own, 0 * own, 0 * own)


SCALE = Resampling.of([f"matched:{i}" for i in range(N)], 0, 0, 0, tolerance=0.02)
SOME = np.array([True, False, True, True, False, False])


def test_heads_are_those_of_z_over_all_tokens() -> None:
    e = effects()
    assert list(map(str, heads_of_sweep(e))) == ["L0H0", "L0H1", "L1H0", "L1H1"]
    for number in range(4):
        damage = [e.to_target[i, 1 + number] for i in range(N) if SOME[i]]
        left = [e.to_source[i, 1 + number] for i in range(N) if SOME[i]]
        assert necessity(e, SOME, SCALE)[number] == pytest.approx(sum(damage) / 3)
        share = 1 - sum(left) / sum(e.apart[i] for i in range(N) if SOME[i])
        assert sufficiency(e, SOME, SCALE)[number] == pytest.approx(share)


def test_between_matched_outputs_no_head_wins_anything() -> None:
    assert np.isnan(sufficiency(effects(apart=0.01), SOME, SCALE)).all()


# --- the strongest --------------------------------------------------------------------------------


def test_the_strongest_come_first() -> None:
    assert strongest_heads(np.array([1.0, 3.0, 2.0, 3.0]), 3).tolist() == [1, 3, 2]


def test_an_undefined_head_is_not_strong() -> None:
    assert strongest_heads(np.array([np.nan, 1.0, np.nan, 2.0]), 3).tolist() == [3, 1]
    assert strongest_heads(np.full(4, np.nan), 3).tolist() == []


@given(st.lists(st.integers(0, 4), min_size=1, max_size=9), st.data())
def test_membership_is_the_chance_of_being_drawn(values: list[int], data: st.DataObject) -> None:
    """Ties broken by lot: the share of all orders of the tied in which a head is among the k."""
    k = data.draw(st.integers(1, len(values)))
    found = membership(np.array(values, dtype=float), k)
    least = sorted(values)[-k]
    free = k - sum(v > least for v in values)
    expected = [1.0 if v > least else free / values.count(least) if v == least else 0.0
                for v in values]  # fmt: skip
    assert found.tolist() == pytest.approx(expected)
    assert found.sum() == pytest.approx(k)


def test_rounding_breaks_no_tie() -> None:
    assert membership(np.array([0.3, 0.1 + 0.2, 1.0]), 2).tolist() == [0.5, 0.5, 1.0]


@pytest.mark.parametrize(("n", "k"), [(2, 2), (3, 3), (12, 3), (48, 5), (144, 14)])
def test_a_tenth_at_least_three(n: int, k: int) -> None:
    assert how_many(n) == k


# --- overlap --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (1, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_against_every_rearrangement(shape: tuple[int, int], seed: int) -> None:
    """Share, rank correlation and both p, the rearrangements enumerated."""
    generator = np.random.default_rng(seed)
    layers, k = layers_of(*shape), 2
    x, noise = generator.normal(size=(2, len(layers)))
    y = x + noise
    shares, correlations = [], []
    for order in arrangements(layers):
        shares.append(len(top(x, k) & top(y[order], k)) / k)
        correlations.append(spearmanr(x, y[order]).statistic)
    found = ranking_overlap(x, y, layers, k, 3000, seed)
    assert found.k == k
    assert found.share == pytest.approx(shares[0])
    assert found.rank_correlation == pytest.approx(correlations[0])
    assert found.p == pytest.approx(np.mean(np.array(shares) >= shares[0]), abs=0.03)
    p = np.mean(np.array(correlations) >= correlations[0] - 1e-9)
    assert found.rank_p == pytest.approx(p, abs=0.03)


def test_with_ties_the_share_is_what_lots_would_give() -> None:
    x, y = np.array([2.0, 1.0, 1.0, 0.0]), np.array([2.0, 0.0, 1.0, 1.0])
    shares = []
    for first in ([0, 1], [0, 2]):
        shares += [len({*first} & {*second}) / 2 for second in ([0, 2], [0, 3])]
    found = ranking_overlap(x, y, [0, 0, 0, 0], 2, 99, 0)
    assert found.share == pytest.approx(np.mean(shares))
    assert found.rank_correlation == pytest.approx(spearmanr(x, y).statistic)


def test_the_order_of_heads_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    layers = np.array(layers_of(4, 3))
    x, y = generator.normal(size=(2, 12))
    order = generator.permutation(12)
    a, b = (ranking_overlap(x[o], y[o], layers[o], 3, 2000, 0) for o in (np.arange(12), order))
    assert a.share == b.share
    assert a.rank_correlation == pytest.approx(b.rank_correlation)
    assert (a.p, a.rank_p) == pytest.approx((b.p, b.rank_p), abs=0.05)


def test_late_layers_mattering_under_both_is_no_evidence() -> None:
    """Strong agreement between layers, none within: p is no smaller than by chance."""
    generator = np.random.default_rng(2)
    layers = np.array(layers_of(4, 4))
    found = []
    for seed in range(60):
        x, y = 10.0 * layers + generator.normal(size=(2, 16))
        found.append(ranking_overlap(x, y, layers.tolist(), 3, 99, seed))
    assert np.mean([f.rank_correlation for f in found]) > 0.9
    assert np.mean([f.rank_p < 0.05 for f in found]) < 0.15
    assert np.mean([f.p < 0.05 for f in found]) < 0.15


def test_one_head_per_layer_is_no_evidence_at_all() -> None:
    x = np.arange(5.0)
    found = ranking_overlap(x, x, list(range(5)), 3, 99, 0)
    assert (found.share, found.p, found.rank_p) == (1.0, 1.0, 1.0)
    assert found.rank_correlation == pytest.approx(1.0)


def test_p_under_the_null() -> None:
    """One ranking shuffled within layers: the correlation's p is uniform, the share's (which has
    few values and many ties) never too small."""
    generator = np.random.default_rng(3)
    layers = layers_of(3, 4)
    x, y = generator.normal(size=(2, 12)) + np.array(layers)
    groups = np.arange(12).reshape(3, 4)
    found = []
    for seed in range(400):
        order = generator.permuted(groups, axis=1).ravel()
        found.append(ranking_overlap(x, y[order], layers, 3, 99, seed))
    for level in (0.05, 0.2, 0.5, 0.8):
        error = 4 * np.sqrt(level * (1 - level) / 400)
        assert abs(np.mean([f.rank_p <= level for f in found]) - level) < error
        assert np.mean([f.p <= level for f in found]) < level + error


def test_a_shared_ranking_is_found() -> None:
    x = np.random.default_rng(4).normal(size=48)
    found = ranking_overlap(x, 2 * x + 1, layers_of(6, 8), 5, 999, 0)
    assert found.share == 1
    assert found.rank_correlation == pytest.approx(1)
    assert (found.p, found.rank_p) == (pytest.approx(0.001), pytest.approx(0.001))


def test_what_is_undefined_is_nan() -> None:
    x, hole = np.arange(4.0), np.array([0.0, np.nan, 1.0, 2.0])
    for a, b in ((x, hole), (hole, x)):
        assert np.isnan(ranking_overlap(a, b, [0, 0, 1, 1], 2, 9, 0)[1:]).all()
    flat = ranking_overlap(x, np.ones(4), [0, 0, 1, 1], 2, 9, 0)
    assert (flat.share, flat.p) == (0.5, 1.0)
    assert np.isnan([flat.rank_correlation, flat.rank_p]).all()


@pytest.mark.parametrize("k", [0, 5])
def test_more_heads_than_there_are(k: int) -> None:
    with pytest.raises(ConfigError, match=f"the {k} strongest of 4 heads: choose 1 to 4"):
        ranking_overlap(np.arange(4.0), np.arange(4.0), [0, 0, 1, 1], k, 9, 0)
