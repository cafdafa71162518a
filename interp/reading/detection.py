"""Does the projection on a direction tell one kind of text from another? Torch-free.

    auroc(inside, outside)                      # [direction]
    auroc_interval(inside, outside, w1, w0)     # value, low, high by the bootstrap of both sets

The area under the ROC curve is the chance that a text of the first kind has the larger score than
one of the second (ties count half): 0.5 says nothing, below 0.5 the score is the smaller one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from interp.statistics import percentile_interval


class DetectionEstimate(NamedTuple):
    """An AUROC per direction with its 95 % interval."""

    value: Float[ndarray, " direction"]
    ci_low: Float[ndarray, " direction"]
    ci_high: Float[ndarray, " direction"]


def auroc(
    inside: Float[ndarray, "text direction"], outside: Float[ndarray, "other direction"]
) -> Float[ndarray, " direction"]:
    """The Mann-Whitney statistic over the number of pairs, in [0, 1] (Hanley & McNeil 1982)."""
    return _wins(inside, outside).mean((0, 1))


def _wins(
    inside: Float[ndarray, "text direction"], outside: Float[ndarray, "other direction"]
) -> Float[ndarray, "text other direction"]:
    above = inside[:, None] - outside[None]
    return (np.sign(above) + 1) / 2


def auroc_interval(
    inside: Float[ndarray, "text direction"],
    outside: Float[ndarray, "other direction"],
    weights: Float[ndarray, "text replicate"],
    others: Float[ndarray, "other replicate"],
) -> DetectionEstimate:
    """Its 95 % interval over texts of both kinds, resampled apart; column 0 of the weights is the
    data itself."""
    wins = _wins(inside, outside)
    above = np.einsum("tr,tod,or->rd", weights, wins, others, optimize=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = above / (weights.sum(0) * others.sum(0))[:, None]
    return DetectionEstimate(drawn[0], *percentile_interval(drawn[1:]))


def best_direction(
    inside: Float[ndarray, "text direction"],
    outside: Float[ndarray, "other direction"],
    chosen: Bool[ndarray, " text"],
    others: Bool[ndarray, " other"],
) -> tuple[int, int]:
    """The direction whose AUROC on the chosen texts lies farthest from 0.5, and on which side (1,
    or -1 where its score is the smaller one): to be scored on the texts that are left."""
    found = auroc(inside[chosen], outside[others]) - 0.5
    best = int(np.abs(found).argmax())
    return best, 1 if found[best] >= 0 else -1
