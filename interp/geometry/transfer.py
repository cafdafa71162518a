"""Does what reads a label off one condition's states read it off another's?

    trained = Probes.of(x_a, labels, seed=0)       # once per condition and layer
    trained.transfer(x_b, permutations=100)        # against as many others as there are
    probe_transfer(x_a, x_b, labels)               # the value alone

The probe is ridge classification (scikit-learn's `RidgeClassifier`) on standardised features: it is
linear, has one optimum, found in closed form (nothing to converge, nothing random but the folds),
and costs what the queries cost, however many the dimensions. Its penalty is d_model, the trace of
the standardised Gram per query, so that models of different width are regularised alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from sklearn import config_context
from sklearn.linear_model import ridge_regression
from sklearn.model_selection import StratifiedKFold

from interp.geometry.calibration import (
    MeasureRange,
    Result,
    all_but_one_group,
    orders_within,
    result,
    undefined_result,
)
from interp.geometry.similarity import Points

_FOLDS = 5
"""Each query is tested by a probe trained on the other folds; a label needs as many queries."""

_SCALE = MeasureRange(0.0, np.inf, 1.0, +1)

Labels = Sequence[str | int | None]


def probe_transfer(x_a: Points, x_b: Points, labels: Labels, seed: int = 0) -> float:
    """Accuracy on b of a linear probe trained on a, over its accuracy on a: `[0, inf)`.

    1 = whatever reads the label off a reads it off b. Both accuracies are over 5 stratified folds:
    no query is tested by a probe that was trained on it, in either condition. Features are
    standardised by their mean and spread in a (which know no label), so that a shift between the
    conditions counts against the transfer. Queries without a label, or with one that has fewer
    than 5 queries, are left out. NaN with fewer than 2 labels left, with states that are not
    finite, and where the probe is no better on a itself than always saying the most frequent
    label: of what was not learnt no transfer can be seen.
    """
    trained = Probes.of(x_a, labels, seed, groups=False)
    return float("nan") if trained is None else trained.transfer(x_b, permutations=0).value


@dataclass(frozen=True)
class LabelFolds:
    """The queries whose label is frequent enough, each with its label and its fold."""

    rows: Int[ndarray, "query"]
    label: Int[ndarray, "query"]
    fold: Int[ndarray, "query"]

    @classmethod
    def of(cls, labels: Labels, seed: int) -> LabelFolds | None:
        """Stratified folds; None with fewer than 2 labels that have `_FOLDS` queries."""
        known = np.array([name is not None for name in labels], bool)
        _, label = np.unique([str(name) for name in labels], return_inverse=True)
        rows = np.flatnonzero(known & (np.bincount(label)[label] >= _FOLDS))
        names, label = np.unique(label[rows], return_inverse=True)
        if len(names) < 2:
            return None
        fold = np.empty(len(rows), np.int64)
        folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
        for number, (_, test) in enumerate(folds.split(rows, label)):
            fold[test] = number
        return cls(rows, label, fold)


@dataclass(frozen=True)
class _Standard:
    """A condition's features about their mean and by their spread, in few coordinates."""

    mean: Float[ndarray, "d_model"]
    spread: Float[ndarray, "d_model"]
    basis: Float[ndarray, "d_model coordinate"]

    @classmethod
    def of(cls, x: Points) -> _Standard:
        """Features that are constant to rounding are dropped: their spread is infinite."""
        mean, spread = x.mean(0), x.std(0)
        spread[spread <= 1e-6 * np.abs(mean)] = np.inf
        spread[spread == 0] = np.inf
        features = (x - mean) / spread
        few = features.shape[1] <= len(x)
        return cls(mean, spread, np.eye(len(mean)) if few else np.linalg.qr(features.T).Q)

    def __call__(self, x: Points) -> Float[ndarray, "query coordinate"]:
        """Any condition's rows; what is orthogonal to all of this one's, its probes do not see."""
        return ((x - self.mean) / self.spread) @ self.basis


@dataclass(frozen=True)
class Probes:
    """A condition's probes: on all its queries, then without each of the jackknife's groups."""

    split: LabelFolds
    standard: _Standard
    n: int
    """How many queries the condition has, with or without a label."""
    seed: int
    kept: list[Int[ndarray, "_"]]
    """Which of the split's queries are in."""
    weights: Float[ndarray, "subset fold coordinate label"]
    """Of each: one probe per fold, trained on the other folds."""
    offset: Float[ndarray, "subset fold label"]
    own: list[float]
    """Of each: its accuracy on the condition itself."""

    @classmethod
    def of(cls, x: Points, labels: Labels, seed: int, groups: bool = True) -> Probes | None:
        """Train; None where `probe_transfer` is NaN whatever the other condition."""
        if len(x) != len(labels):
            raise ValueError(f"{len(labels)} labels for the states of {len(x)} queries")
        split = LabelFolds.of(labels, seed)
        if split is None or not np.isfinite(x[split.rows]).all():
            return None
        rows = x[split.rows].astype(np.float64)
        standard = _Standard.of(rows)
        n = len(rows)
        kept = [np.arange(n), *(all_but_one_group(n, seed) if groups else [])]
        z = standard(rows)
        fits = [_trained(z, split, some, f, x.shape[1]) for some in kept for f in range(_FOLDS)]
        weights, offset = (
            np.stack(part).reshape(len(kept), _FOLDS, *part[0].shape)
            for part in zip(*fits, strict=True)
        )
        probes = cls(split, standard, len(x), seed, kept, weights, offset, [])
        own = [probes._accuracy(i, said) for i, said in enumerate(probes._predictions(x))]
        learnt = own[0] > np.bincount(split.label).max() / n
        return replace(probes, own=own) if learnt else None

    def transfer(self, x: Points, permutations: int = 100) -> Result:
        """`probe_transfer` to another condition, and by chance.

        The row pairing of that condition is broken within each fold: a query's label is held
        against the state of another query that its probe was not trained on either.
        """
        if len(x) != self.n:
            raise ValueError(f"rows are paired: {self.n} of one condition, {len(x)} of the other")
        if not np.isfinite(x[self.split.rows]).all():
            return undefined_result(len(self.split.rows))
        said = self._predictions(x)
        value, *replicates = [self._ratio(i, each) for i, each in enumerate(said)]
        orders = orders_within(self.split.fold, permutations, self.seed)
        null = [self._ratio(0, said[0][order]) for order in orders]
        return result(value, replicates, null, len(self.split.rows), _SCALE)

    def _ratio(self, i: int, said: Int[ndarray, "query"]) -> float:
        return self._accuracy(i, said) / self.own[i] if self.own[i] else float("nan")

    def _accuracy(self, i: int, said: Int[ndarray, "query"]) -> float:
        return float((said == self.split.label)[self.kept[i]].mean())

    def _predictions(self, x: Points) -> Int[ndarray, "subset query"]:
        """What the probes say to each query's state, in the fold they were not trained on."""
        z = self.standard(x[self.split.rows].astype(np.float64))
        said = np.empty((len(self.kept), len(z)), np.int64)
        for fold in range(_FOLDS):
            test = self.split.fold == fold
            scores = z[test] @ self.weights[:, fold] + self.offset[:, fold, None]
            said[:, test] = scores.argmax(-1)
        return said


def _trained(
    z: Float[ndarray, "query coordinate"],
    split: LabelFolds,
    kept: Int[ndarray, "kept"],
    fold: int,
    penalty: int,
) -> tuple[Float[ndarray, "coordinate label"], Float[ndarray, "label"]]:
    """`RidgeClassifier` on all folds but one: regression on labels of ±1, the highest score wins.

    Its solver is called directly, at a fifth of the classifier's cost: there are 55 small fits."""
    train = kept[split.fold[kept] != fold]
    target = 2.0 * np.eye(split.label.max() + 1)[split.label[train]] - 1
    at, level = z[train].mean(0), target.mean(0)
    with config_context(assume_finite=True, skip_parameter_validation=True):
        fit = ridge_regression(z[train] - at, target - level, alpha=penalty, solver="cholesky")
    return fit.T, level - at @ fit.T
