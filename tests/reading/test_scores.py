"""Scores of words in mean differences: a bootstrap without the vocabulary is the one with it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from interp.reading.scores import (
    NamedWords,
    excess,
    leading_directions,
    placebo_scores,
    ranks_of,
    score_words,
    word_score,
)
from interp.statistics import poisson_weights

KEYS = [f"matched:{i}" for i in range(12)]
VOCABULARY, WORDS = 50, [3, 17, 41]


def logits(seed: int, common: float = 0.0) -> np.ndarray:
    """Every query's own logits, and one direction common to all that says the words."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((len(KEYS), VOCABULARY)) + rng.standard_normal((len(KEYS), 1))
    own[:, WORDS] += common
    return own


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_weighted_means_are_those_of_their_logits(seed: int) -> None:
    said = logits(seed)
    cell = NamedWords.of(said, WORDS)
    weights = poisson_weights(KEYS, 7, seed)
    wanted = []
    for w in weights.T:
        drawn = np.repeat(said, w.astype(int), axis=0)  # the queries of this replicate
        above = drawn.mean(0)[WORDS].mean() - drawn.mean()
        wanted.append(above / np.sqrt(np.mean([one.var() for one in drawn])))
    np.testing.assert_allclose(cell.scores(weights), wanted, rtol=1e-9)


def test_of_one_and_the_same_difference_it_is_the_score_of_its_logits() -> None:
    same = np.tile(logits(3)[0], (len(KEYS), 1))
    cell, own = NamedWords.of(same, WORDS), word_score(same[0], WORDS)
    np.testing.assert_allclose(cell.scores(poisson_weights(KEYS, 30, 0)), own)


def test_random_scores_are_those_of_every_two_states() -> None:
    said = logits(4)
    found = placebo_scores(said, WORDS)
    for i in range(len(KEYS)):
        for j in range(len(KEYS)):
            if i == j:
                assert np.isnan(found[i, j])
            else:
                assert found[i, j] == pytest.approx(word_score(said[i] - said[j], WORDS))
    np.testing.assert_allclose(found, -found.T)


def test_a_score_is_blind_to_size_and_shift_and_turns_with_the_sign() -> None:
    said = logits(1)[0]
    score = word_score(said, WORDS)
    assert word_score(7 * said + 3, WORDS) == pytest.approx(score)
    assert word_score(-said, WORDS) == pytest.approx(-score)
    order = np.random.default_rng(0).permutation(VOCABULARY)
    moved = [int(np.flatnonzero(order == word)[0]) for word in WORDS]
    assert word_score(said[order], moved) == pytest.approx(score)
    assert word_score(said, range(VOCABULARY)) == pytest.approx(0, abs=1e-12)


def test_what_says_the_same_of_all_tokens_has_no_score() -> None:
    weights = poisson_weights(KEYS, 5, 0)
    nothing = NamedWords.of(np.zeros((len(KEYS), VOCABULARY)), WORDS)
    constant = NamedWords.of(np.full((len(KEYS), VOCABULARY), 2.5), WORDS)
    opposed = NamedWords.of(np.outer((-1.0) ** np.arange(12), logits(0)[0]), WORDS)
    for cell in (nothing, constant):
        assert np.isnan(cell.scores(weights)).all()
    assert opposed.scores(weights)[0] == pytest.approx(0)
    assert np.isnan(word_score(np.ones(VOCABULARY), WORDS))


def placebo(cells: int) -> np.ndarray:
    """Scores of base's own differences, the same two queries in all cells."""
    off = ~np.eye(len(KEYS), dtype=bool)
    return np.stack([placebo_scores(logits(50 + i), WORDS)[off] for i in range(cells)], axis=1)


def test_a_planted_word_is_named_and_nothing_else_is() -> None:
    weights, random = poisson_weights(KEYS, 200, 0), placebo(3)
    cells = [NamedWords.of(logits(seed, common), WORDS) for seed, common in enumerate((0, 9, 0))]
    found = score_words(cells, weights, random)
    assert found.p[1] == pytest.approx(1 / (1 + len(random)))
    assert found.ci_low[1] > 1
    assert (found.p[[0, 2]] > 0.05).all()
    untested = score_words(cells, weights, random[:0])
    assert np.isnan(untested.p).all()


def test_p_is_that_of_the_largest_over_all_cells() -> None:
    weights, random = poisson_weights(KEYS, 0, 0), placebo(4)
    cells = [NamedWords.of(logits(seed, 0.3 * seed), WORDS) for seed in range(4)]
    found = score_words(cells, weights, random)
    for value, p in zip(found.value, found.p, strict=True):
        largest = np.append(random.max(1), found.value.max())
        assert p == pytest.approx((largest >= value).mean())
    assert np.isnan(found.ci_low).all()


def test_a_random_difference_is_rarely_rare() -> None:
    """One that is drawn as the placebos are has a small p about as often as it should."""
    weights = np.ones((1, 1))
    off = ~np.eye(40, dtype=bool)
    small = []
    for trial in range(100):
        rng = np.random.default_rng(trial)
        said = rng.standard_normal((40, VOCABULARY))
        random = placebo_scores(said, WORDS)[off][:, None]
        own = NamedWords.of(rng.standard_normal((1, VOCABULARY)), WORDS)
        small.append(score_words([own], weights, random).p[0] <= 0.05)
    assert np.mean(small) <= 0.1


def test_no_excess_over_itself_and_all_over_nothing() -> None:
    weights = poisson_weights(KEYS, 50, 0)
    own, other = NamedWords.of(logits(0, 3), WORDS), NamedWords.of(logits(5), WORDS)
    value, low, high = excess([own], [own], weights)
    assert value == low == high == 0
    value, low, _ = excess([own], [other], weights)
    assert value[0] == pytest.approx(own.scores(weights)[0] - other.scores(weights)[0])
    assert low[0] > 0


def test_ranks_are_scipys() -> None:
    said = np.round(logits(2)[0], 1)
    wanted = rankdata(-said, method="min")[WORDS]
    assert ranks_of(said, WORDS) == wanted.astype(int).tolist()


def test_leading_directions_are_principal_components() -> None:
    rng = np.random.default_rng(0)
    planted = np.eye(9)[2]
    differences = 0.1 * rng.standard_normal((12, 9)) + np.outer(rng.standard_normal(12), planted)
    found, shares = leading_directions(differences + 5, 3)
    values, vectors = np.linalg.eigh(np.cov((differences + 5).T))
    np.testing.assert_allclose(np.abs(found @ vectors[:, ::-1][:, :3]), np.eye(3), atol=1e-9)
    np.testing.assert_allclose(shares, values[::-1][:3] / values.sum())
    assert abs(found[0] @ planted) > 0.98
    along = (differences - differences.mean(0)) @ found.T
    assert (along[np.abs(along).argmax(0), range(3)] > 0).all()
    assert len(leading_directions(np.outer(rng.standard_normal(5), planted), 3)[0]) == 1
    assert len(leading_directions(np.ones((5, 9)), 3)[0]) == 0
