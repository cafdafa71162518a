"""Families: statistics as written out and as in scikit-bio, exact permutation tests, maps."""

from __future__ import annotations

from itertools import combinations, permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist
from scipy.stats import f_oneway

from interp import significance
from interp.families import (
    aligned,
    classical_mds,
    distances,
    divergence_index,
    index_interval,
    label_permutations,
    permanova_f,
    permuted_f,
    permuted_index,
)

A, B = [1, 2, 3], [4, 6, 7, 5]
POINTS = hnp.arrays(np.float64, (8, 3), elements=st.floats(-10, 10).map(lambda x: round(x, 2)))


def gram(x: np.ndarray) -> np.ndarray:
    return x @ np.swapaxes(x, -1, -2)


def space(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def planted(seed: int = 20) -> np.ndarray:
    """Nine points of four dimensions, four of them moved."""
    x = space(seed, 9, 4)
    x[5:] += 0.7
    return x


# Distances --------------------------------------------------------------------------------------


@given(POINTS)
def test_distances_are_those_of_the_states(x: np.ndarray) -> None:
    d = distances(gram(x))
    np.testing.assert_allclose(d, cdist(x, x), atol=1e-5)
    np.testing.assert_array_equal(d, d.T)
    assert (np.diagonal(d) == 0).all()
    assert (d >= 0).all()


def test_a_pooled_gram_gives_the_root_mean_square_distance() -> None:
    x = space(0, 5, 4, 30, 6)  # cell, condition, token, d_model
    d = distances(np.einsum("lctd,letd->lce", x, x) / 30)
    for cell, (i, j) in product(range(5), combinations(range(4), 2)):
        expected = np.sqrt((np.linalg.norm(x[cell, i] - x[cell, j], axis=-1) ** 2).mean())
        assert d[cell, i, j] == pytest.approx(expected, rel=1e-12)


def test_states_that_differ_by_their_own_rounding_have_distance_0() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(1, 64)).repeat(3, axis=0)
    x[1] += 1e-7 * generator.normal(size=64)
    x[2] += 1e-3 * generator.normal(size=64)
    d = distances(x @ x.T, noise=1e-5)
    assert d[0, 1] == d[1, 0] == 0
    assert d[0, 2] > 0
    assert distances(x @ x.T)[0, 1] >= 0
    assert np.isnan(divergence_index(np.zeros((4, 4)), [0, 1], [2, 3]))


def test_equal_states_have_distance_0_however_their_sums_were_rounded() -> None:
    for lost in (-1e-9, 1e-9):
        g = 1e6 * np.ones((2, 2)) + lost * (1 - np.eye(2))
        assert g[0, 0] != g[0, 1]
        assert (distances(g) == 0).all()


def test_the_smallest_difference_of_float32_states_is_kept() -> None:
    x = space(1, 1, 50).repeat(2, 0)
    x[1] *= 1 + 1e-6
    assert distances(gram(x))[0, 1] == pytest.approx(1e-6 * np.linalg.norm(x[0]), rel=1e-3)


def test_a_gram_that_rounding_made_asymmetric_has_symmetric_distances() -> None:
    g = gram(space(2, 6, 4))
    g *= 1 + 1e-15 * space(3, 6, 6)
    d = distances(g)
    assert (g != g.T).any()
    np.testing.assert_array_equal(d, d.T)
    assert (np.diagonal(d) == 0).all()


# Statistics -------------------------------------------------------------------------------------


def index_by_hand(d: np.ndarray, a: list[int], b: list[int]) -> float:
    between = np.mean([d[i, j] for i in a for j in b])
    within = [np.mean([d[i, j] for i, j in combinations(group, 2)]) for group in (a, b)]
    return between / (sum(within) / 2)


def f_by_hand(d: np.ndarray, groups: list[list[int]]) -> float:
    """Anderson (2001), equations 1 to 3."""
    members = [member for group in groups for member in group]
    total = sum(d[i, j] ** 2 for i, j in combinations(members, 2)) / len(members)
    within = sum(sum(d[i, j] ** 2 for i, j in combinations(g, 2)) / len(g) for g in groups)
    freedom = len(members) - len(groups)
    return ((total - within) / (len(groups) - 1)) / (within / freedom)


@given(hnp.arrays(np.float64, (2, 8, 8), elements=st.floats(0.1, 10)), st.floats(1e-3, 1e3))
def test_the_index_equals_its_restatement_and_has_no_units(d: np.ndarray, scale: float) -> None:
    d = d + np.swapaxes(d, -1, -2)
    got = divergence_index(d, A, B)
    assert got == pytest.approx([index_by_hand(each, A, B) for each in d], rel=1e-12)
    for other in (divergence_index(scale * d, A, B), divergence_index(d, B, A),
                  divergence_index(d, A[::-1], B[::-1])):  # fmt: skip
        np.testing.assert_allclose(other, got, rtol=1e-12)


def test_the_index_of_one_kind_is_near_1_and_grows_with_distance() -> None:
    x = space(3, 400, 8, 50)
    means = []
    for shift in (0, 1, 3):
        x[:, B] += shift
        means.append(divergence_index(distances(gram(x)), A, B).mean())
    assert means[0] == pytest.approx(1, abs=0.01)
    assert means[0] < means[1] < means[2]


@given(hnp.arrays(np.float64, (2, 9, 9), elements=st.floats(0.1, 10)), st.permutations(range(9)))
def test_f_equals_its_restatement_and_ignores_names_and_order(
    d: np.ndarray, order: list[int]
) -> None:
    """Also for distances that are not Euclidean."""
    d = d + np.swapaxes(d, -1, -2)
    groups = [order[:3], order[3:5], order[5:9]]
    got = permanova_f(d, groups)
    expected = [f_by_hand(each, groups) for each in d]
    np.testing.assert_allclose(got, np.maximum(expected, 0), rtol=1e-9, atol=1e-9)
    other = permanova_f(7 * d, [groups[2][::-1], groups[0], groups[1][::-1]])
    np.testing.assert_allclose(other, got, rtol=1e-9, atol=1e-9)


@given(POINTS)
def test_f_of_one_dimension_is_the_f_of_an_analysis_of_variance(x: np.ndarray) -> None:
    x = x[:, 0] + np.arange(8)
    groups = [[0, 3, 5], [1, 2], [4, 6, 7]]
    d = np.abs(x[:, None] - x[None])
    expected = f_oneway(*(x[group] for group in groups)).statistic
    assert permanova_f(d, groups) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_a_single_cell_is_an_array_like_any_other() -> None:
    d = cdist(planted(), planted())
    labels = label_permutations([A, B])
    for value in (permanova_f(d, [A, B]), divergence_index(d, A, B)):
        assert isinstance(value, np.ndarray)
    for got in (permuted_index(d, A, B, labels), permuted_f(d, [A, B], labels)):
        assert all(isinstance(each, np.ndarray) and each.shape == () for each in got[:3])


def test_f_equals_that_of_scikit_bio() -> None:
    """Values of skbio.stats.distance.permanova, scikit-bio 0.7.4."""
    d = cdist(planted(), planted())
    assert permanova_f(d, [range(5), range(5, 9)]) == pytest.approx(1.725699722176103, rel=1e-12)
    three = permanova_f(d, [range(3), range(3, 5), range(5, 9)])
    assert three == pytest.approx(1.0990317563741825, rel=1e-12)
    crooked = np.triu(np.random.default_rng(21).uniform(0.5, 1.5, (7, 7)), 1)
    got = permanova_f(crooked + crooked.T, [range(3), range(3, 7)])
    assert got == pytest.approx(0.7905875716601245, rel=1e-12)


def apart() -> np.ndarray:
    """Three cells: nothing varies within families; nothing varies; an ordinary one."""
    x = np.zeros((3, 8, 2))
    x[0, B] = 1
    x[2] = space(4, 8, 2)
    return distances(gram(x))


def test_without_variation_within_families_the_index_is_nan_and_f_is_infinite() -> None:
    np.testing.assert_array_equal(np.isnan(divergence_index(apart(), A, B)), [True, True, False])
    f = permanova_f(apart(), [A, B])
    assert f[0] == np.inf
    assert np.isnan(f[1])
    assert np.isfinite(f[2])


@pytest.mark.parametrize(
    ("groups", "message"),
    [([[0], [1, 2]], "two members"), ([[0, 1]], "two families"), ([[0, 1], [1, 2]], "in two")],
)
def test_what_is_no_pair_of_families_is_refused(groups: list[list[int]], message: str) -> None:
    d = cdist(space(0, 3, 2), space(1, 3, 2))
    for call in (permanova_f, lambda _, g: label_permutations(g)):
        with pytest.raises(ValueError, match=message):
            call(d, groups)


# Relabellings -----------------------------------------------------------------------------------


def partition(labels: tuple[int, ...]) -> frozenset[frozenset[int]]:
    return frozenset(
        frozenset(i for i, label in enumerate(labels) if label == group) for group in set(labels)
    )


@pytest.mark.parametrize(
    ("sizes", "count"),
    [((3, 5), 56), ((3, 3), 10), ((2, 2), 3), ((2, 2, 3), 105), ((2, 3, 2), 105)],
)
def test_all_relabellings_once_each(sizes: tuple[int, ...], count: int) -> None:
    starts = np.cumsum([0, *sizes])
    groups = [range(a, a + size) for a, size in zip(starts, sizes, strict=False)]
    labels = [tuple(row.tolist()) for row in label_permutations(groups)]
    own = tuple(np.repeat(np.arange(len(sizes)), sizes).tolist())
    assert labels[0] == own
    found = [partition(row) for row in labels]
    assert len(found) == len(set(found)) == count
    assert set(found) == {partition(row) for row in set(permutations(own))}
    assert {tuple(sorted(row)) for row in labels} == {own}


def test_five_and_five_have_126_relabellings_and_not_252() -> None:
    groups = [range(5), range(5, 10)]
    assert len(label_permutations(groups)) == 126
    assert len({partition(tuple(row)) for row in label_permutations(groups, limit=126)}) == 126
    assert len({partition(tuple(row)) for row in label_permutations(groups, limit=125)}) < 125


def test_many_relabellings_are_drawn_and_the_families_own_is_among_them() -> None:
    groups = [range(10), range(10, 20)]
    labels = label_permutations(groups, limit=500, seed=1)
    assert labels.shape == (500, 20)
    assert labels[0].tolist() == [0] * 10 + [1] * 10
    assert (labels.sum(1) == 10).all()
    assert np.abs(labels[1:].mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(499)
    np.testing.assert_array_equal(labels, label_permutations(groups, limit=500, seed=1))
    assert not np.array_equal(labels, label_permutations(groups, limit=500, seed=2))
    assert len(label_permutations(groups)) == 10_000


# Permutation tests ------------------------------------------------------------------------------


def maps(seed: int) -> np.ndarray:
    """Four cells; the families A and B are ever further apart."""
    x = space(seed, 4, 8, 3)
    x[:, B] += np.array([0, 0.5, 1.0, 3.0])[:, None, None]
    return distances(gram(x))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["index", "f"])
def test_p_equals_that_over_every_order_of_the_labels(kind: str, seed: int) -> None:
    """All 7! orders, most of them the same families: the distinct ones give the same share."""
    d, members = maps(seed), [*A, *B]
    labels = label_permutations([A, B])
    got = permuted_index(d, A, B, labels) if kind == "index" else permuted_f(d, [A, B], labels)
    by_split = {}
    for chosen in combinations(members, 3):
        rest = [member for member in members if member not in chosen]
        by_split[frozenset(chosen)] = [
            index_by_hand(each, [*chosen], rest)
            if kind == "index"
            else f_by_hand(each, [[*chosen], rest])
            for each in d
        ]
    t = np.array([by_split[frozenset(order[:3])] for order in permutations(members)])
    observed = np.array(by_split[frozenset(A)])
    assert got.value == pytest.approx(observed, rel=1e-9)
    assert got.p == pytest.approx((t >= observed - 1e-9).mean(0))
    assert got.p_max_t == pytest.approx((t.max(1)[:, None] >= observed - 1e-9).mean(0))
    assert got.smallest_p == pytest.approx(1 / 35)
    assert (got.p_max_t >= got.p).all()
    assert got.p[3] == got.smallest_p


def test_p_over_random_relabellings_is_near_that_over_all() -> None:
    x = space(6, 5, 14, 3)
    x[:, 7:] += np.array([0, 0.3, 0.5, 0.6, 0.8])[:, None, None]
    d, groups = distances(gram(x)), [range(7), range(7, 14)]
    exact = permuted_f(d, groups, label_permutations(groups))
    drawn = permuted_f(d, groups, label_permutations(groups, limit=1000))
    assert len(label_permutations(groups)) == 1716
    errors = 5 * np.sqrt(exact.p * (1 - exact.p) / 1000) + 1e-3
    assert (np.abs(drawn.p - exact.p) <= errors).all()
    assert 0.0005 < exact.p.min() < 0.1 < exact.p.max()
    assert exact.smallest_p == pytest.approx(1 / 1716)
    assert 1 / 1000 <= drawn.smallest_p <= 5 / 1000


def test_equal_distances_are_ties() -> None:
    """A regular simplex: no relabelling is better than another, in any rounding."""
    d = 0.1 * (1 - np.eye(8)) * np.array([1, 1 / 3, 7e5])[:, None, None]
    labels = label_permutations([A, B])
    for got in (permuted_index(d, A, B, labels), permuted_f(d, [A, B], labels)):
        np.testing.assert_array_equal(got.p, 1)
        np.testing.assert_array_equal(got.p_max_t, 1)


def test_p_of_cells_without_variation_and_their_part_in_the_map() -> None:
    labels = label_permutations([A, B])
    f, index = permuted_f(apart(), [A, B], labels), permuted_index(apart(), A, B, labels)
    ordinary = permuted_index(apart()[2:], A, B, labels)
    assert f.p[0] == f.p_max_t[0] == f.smallest_p
    assert np.isnan([f.p[1], f.p_max_t[1], *index.p[:2], *index.p_max_t[:2]]).all()
    assert index.p[2] == ordinary.p[0] == index.p_max_t[2] == ordinary.p_max_t[0]


def test_a_relabelling_without_variation_counts_as_extreme() -> None:
    """Two distinct states, and families that mix them: relabelled apart they do not vary within."""
    x = np.array([[0.0], [0], [1], [0], [1], [1]])
    groups = [[0, 1, 2], [3, 4, 5]]
    got = permuted_f(distances(gram(x)), groups, label_permutations(groups))
    assert 1 / 10 < got.p <= 1
    assert np.isfinite(got.value)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = label_permutations([A, B])
    whole = permuted_f(maps(0), [A, B], labels)
    monkeypatch.setattr(significance, "BLOCK_ENTRIES", 12)
    for a, b in zip(whole, permuted_f(maps(0), [A, B], labels), strict=True):
        np.testing.assert_array_equal(a, b)


def test_relabellings_of_other_families_are_refused() -> None:
    for labels in (label_permutations([B, A]), label_permutations([A, B[:3]])):
        with pytest.raises(ValueError, match="not of these families"):
            permuted_f(maps(0), [A, B], labels)


def test_the_interval_is_that_of_the_index_of_each_replicate() -> None:
    x = space(9, 40, 2, 8, 6, 5) + space(10, 2, 8, 1, 5)  # replicate, cell, condition, token, d
    grams = np.einsum("rlctd,rletd->rlce", x, x)
    low, high = index_interval(grams, A, B)
    for cell in range(2):
        found = [index_by_hand(distances(g), A, B) for g in grams[:, cell]]
        assert min(found) <= low[cell] < np.median(found) < high[cell] <= max(found)
    sums = np.random.default_rng(0).uniform(1, 9, 40)[:, None, None, None] * grams
    np.testing.assert_allclose(index_interval(sums, A, B), (low, high), rtol=1e-9)


# Maps of conditions -----------------------------------------------------------------------------


@given(hnp.arrays(np.float64, (3, 6, 2), elements=st.floats(-10, 10).map(lambda x: round(x, 2))))
def test_points_of_a_plane_are_mapped_exactly(x: np.ndarray) -> None:
    d = np.stack([cdist(each, each) for each in x])
    got = classical_mds(d)
    scale = 1e-6 * (1 + d.max())
    for cell in range(3):
        found = got.coordinates[cell]
        np.testing.assert_allclose(cdist(found, found), d[cell], atol=scale)
        np.testing.assert_allclose(found.mean(0), 0, atol=scale)
        if d[cell].max() == 0:
            assert np.isnan([*got.share[cell], got.negative_share[cell]]).all()
            continue
        assert got.share[cell].sum() == pytest.approx(1)
        assert got.share[cell][0] >= got.share[cell][1]
        assert got.negative_share[cell] == pytest.approx(0, abs=1e-9)


def test_points_of_a_line_have_one_axis() -> None:
    """Rounding is not mapped to coordinates of 1e-8."""
    x = space(5, 6, 1) * np.array([[3.0, 4.0, 12.0]])
    got = classical_mds(cdist(x, x), k=3)
    assert (got.coordinates[:, 1:] == 0).all()
    assert got.share.tolist() == [1, 0, 0]


def test_shares_are_those_of_scikit_bio() -> None:
    """Values of skbio.stats.ordination.pcoa, scikit-bio 0.7.4."""
    got = classical_mds(cdist(planted(), planted()), k=4)
    share = [0.55199265, 0.32154872, 0.08522693, 0.04123169]
    assert got.share == pytest.approx(share, abs=1e-8)
    expected = [[1.54688851, 1.16610738], [0.19544998, 1.41506976]]
    np.testing.assert_allclose(np.abs(got.coordinates[:2, :2]), expected, atol=1e-8)


def test_what_no_euclidean_map_shows_is_reported() -> None:
    """A star: one point at distance 1 of three that are 2 apart."""
    d = 2 * (1 - np.eye(4))
    d[0, 1:] = d[1:, 0] = 1
    got = classical_mds(d, k=3)
    # B has the eigenvalues 2, 2, 0 and, for the centre, -1/4
    assert got.share == pytest.approx([0.5, 0.5, 0])
    assert got.negative_share == pytest.approx(0.25 / 4.25)


def test_signs_of_the_axes_do_not_depend_on_the_order_of_conditions() -> None:
    x = planted()
    order = np.random.default_rng(2).permutation(9)
    one = classical_mds(cdist(x, x)).coordinates
    other = classical_mds(cdist(x[order], x[order])).coordinates
    np.testing.assert_allclose(other, one[order], atol=1e-9)
    strongest = np.abs(one).argmax(0)
    assert (one[strongest, [0, 1]] > 0).all()


def test_a_missing_distance_leaves_its_map_undefined_and_no_other() -> None:
    d = np.stack([cdist(planted(), planted())] * 2)
    d[0, 1, 2] = np.nan
    got = classical_mds(d)
    for values in got:
        assert np.isnan(values[0]).all()
        assert np.isfinite(values[1]).all()


@pytest.mark.parametrize("k", [0, 10])
def test_a_map_has_no_more_dimensions_than_conditions(k: int) -> None:
    with pytest.raises(ValueError, match="9 conditions have no map"):
        classical_mds(cdist(planted(), planted()), k)


def test_turned_and_mirrored_layers_come_back() -> None:
    one = classical_mds(cdist(planted(), planted())).coordinates
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    mirror = np.diag([1.0, -1.0])
    layers = np.stack([one, one @ turn, np.full_like(one, np.nan), 2 * one @ mirror @ turn])
    got = aligned(layers)
    np.testing.assert_allclose(got[[0, 1, 3]], [one, one, 2 * one], atol=1e-9)
    assert np.isnan(got[2]).all()


@given(hnp.arrays(np.float64, (3, 5, 2), elements=st.floats(-10, 10).map(lambda x: round(x, 2))))
def test_alignment_keeps_distances_and_brings_layers_closer(x: np.ndarray) -> None:
    before = x.copy()
    got = aligned(x)
    np.testing.assert_array_equal(x, before)
    for layer in range(3):
        turned = cdist(got[layer], got[layer])
        np.testing.assert_allclose(turned, cdist(x[layer], x[layer]), atol=1e-6)
        if layer:
            gap = np.linalg.norm(got[layer] - got[layer - 1])
            assert gap <= np.linalg.norm(x[layer] - got[layer - 1]) + 1e-9
