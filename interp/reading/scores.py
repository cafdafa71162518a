"""Does a mean difference name given words, and more than a random difference does?

    cell = NamedWords.of(logits, words)          # lens logits of every query's difference
    cell.scores(poisson_weights(keys, 200, 0))   # [replicate]: how far the words stand out
    placebo_scores(base_logits, words)            # the same of base's states at two random queries

The lens is linear: what a weighted mean of differences does to a logit is the weighted mean of what
they do, so that a bootstrap needs two numbers per query and no vocabulary. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from interp.significance import permutation_p
from interp.statistics import percentile_interval


class NamedWords(NamedTuple):
    """What scores of words need of every query's difference.

    `above`: mean logit of the words less that of the vocabulary; `variance`: that of the logits
    over the vocabulary.
    """

    above: Float[ndarray, " query"]
    variance: Float[ndarray, " query"]

    @classmethod
    def of(cls, logits: Float[ndarray, "query d_vocab"], words: Sequence[int]) -> NamedWords:
        """From every query's lens logits (`interp.reading.lens`) and the words' token ids."""
        return cls(logits[:, list(words)].mean(1) - logits.mean(1), logits.var(1))

    def scores(self, weights: Float[ndarray, "query replicate"]) -> Float[ndarray, " replicate"]:
        """How far the weighted mean of the differences raises the words over the vocabulary, in
        standard deviations of the vocabulary (root mean square over queries): 0 of words like any
        other; `word_score` of a difference that is the same at every query, and less where queries
        disagree; NaN where no query's difference says anything."""
        total = weights.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = weights.T @ self.above / total
            spread = np.sqrt(weights.T @ self.variance / total)
            return np.where(spread > 0, mean / spread, np.nan)


def word_score(logits: Float[ndarray, " d_vocab"], words: Sequence[int]) -> float:
    """How many standard deviations of the vocabulary's logits the words' mean logit lies above the
    vocabulary's mean; any number, 0 for words like any other, NaN where all logits are equal."""
    spread = float(logits.std())
    return float(logits[list(words)].mean() - logits.mean()) / spread if spread else float("nan")


def placebo_scores(
    logits: Float[ndarray, "query d_vocab"], words: Sequence[int]
) -> Float[ndarray, "query query"]:
    """`word_score` of the difference of any two of these states, first less second; NaN of one and
    itself. `logits`: of base's states, by the lens: what two queries differ by without any
    condition is a difference that names nothing of a task (the random-difference baseline of
    activation differences, after Minder et al. 2510.13900)."""
    centred = logits - logits.mean(1, keepdims=True)
    above, kernel = centred[:, list(words)].mean(1), centred @ centred.T / logits.shape[1]
    own = kernel.diagonal()
    variance = own[:, None] + own[None] - 2 * kernel
    known = variance > _ROUNDING * (own[:, None] + own[None])
    raised = above[:, None] - above[None]
    return np.where(known, raised / np.sqrt(np.where(known, variance, 1.0)), np.nan)


_ROUNDING = 1e-12
"""Relative variance up to which two states say the same but for float64's rounding."""


class ScoredWords(NamedTuple):
    """The score of words in the mean difference of every cell: value, 95 % interval over queries,
    and p against random differences, corrected over all cells."""

    value: Float[ndarray, " cell"]
    ci_low: Float[ndarray, " cell"]
    ci_high: Float[ndarray, " cell"]
    p: Float[ndarray, " cell"]


def score_words(
    cells: Sequence[NamedWords],
    weights: Float[ndarray, "query replicate"],
    random: Float[ndarray, "draw cell"],
) -> ScoredWords:
    """One-sided: how rarely does a random difference name the words as much, in any cell? p is the
    share of the draws whose largest score over the cells is at least the observed one, the observed
    counted among them, in `(0, 1]`: the family-wise correction of Westfall & Young (1993, single
    step), with draws that are placebos and no rearrangements of the data. Column 0 of `weights` is
    the data itself."""
    drawn = np.stack([cell.scores(weights) for cell in cells], axis=1)
    low, high = percentile_interval(drawn[1:])
    everything = np.concatenate([drawn[:1], random])
    _, p = permutation_p(drawn[0], [np.where(np.isnan(everything), -np.inf, everything)])
    return ScoredWords(drawn[0], low, high, p if len(random) else p * np.nan)


def excess(
    own: Sequence[NamedWords],
    other: Sequence[NamedWords],
    weights: Float[ndarray, "query replicate"],
) -> tuple[Float[ndarray, " cell"], Float[ndarray, " cell"], Float[ndarray, " cell"]]:
    """By how much the words score higher in one pair's mean difference than in another's, cell by
    cell, with its 95 % interval: both pairs have the same queries in every replicate."""
    both = zip(own, other, strict=True)
    drawn = np.stack([a.scores(weights) - b.scores(weights) for a, b in both], axis=1)
    return drawn[0], *percentile_interval(drawn[1:])


def ranks_of(logits: Float[ndarray, " d_vocab"], words: Sequence[int]) -> list[int]:
    """The place of each word among all tokens by its logit, 1 to the size of the vocabulary; of
    equal logits each has the best place."""
    return [1 + int((logits > logits[word]).sum()) for word in words]


def leading_directions(
    differences: Float[ndarray, "query d_model"], most: int
) -> tuple[Float[ndarray, "direction d_model"], Float[ndarray, " direction"]]:
    """The directions in which differences vary most over queries (principal components about their
    mean), and their shares of that variance; each turned so that the query that has most of it has
    it positively. Fewer where the variance is spent."""
    centred = differences - differences.mean(0)
    _, s, v = np.linalg.svd(centred, full_matrices=False)
    rank = int((s > np.finfo(np.float64).eps * max(centred.shape) * max(s[0], 1e-300)).sum())
    v = v[: min(most, rank)]
    along = centred @ v.T
    signs = np.sign(along[np.abs(along).argmax(0), np.arange(len(v))])
    return v * signs[:, None], s[: len(v)] ** 2 / max(float((s**2).sum()), 1e-300)
