"""Every rung once more, on whole arrays of tokens: ridge as rows that are added to the data."""

from __future__ import annotations

import numpy as np
from scipy.linalg import orthogonal_procrustes
from sklearn.linear_model import Ridge

Array = np.ndarray


def fitted(rung: str, x: Array, y: Array, ridge: float, new: Array) -> Array:
    """The states `new` mapped as a rung says that was fitted on tokens `x` and `y`; `ridge` in mean
    variances of a dimension, summed over the tokens."""
    mean, target = x.mean(0), y.mean(0)
    shift = target - mean
    if rung == "constant":
        return new + shift
    alpha = ridge * ((x - mean) ** 2).sum() / x.shape[1]
    if rung == "affine":
        return new + Ridge(alpha=alpha, solver="svd").fit(x, y - x).predict(new)
    if rung == "gated":
        direction = shift / np.linalg.norm(shift)
        gate = Ridge(alpha=alpha, solver="svd").fit(x, (y - x) @ direction)
        return new + gate.predict(new)[:, None] * direction
    more = np.sqrt(alpha) * np.eye(x.shape[1])
    if rung == "rigid":
        before, after = np.vstack([x - mean, more]), np.vstack([y - target, more])
        turn, size = orthogonal_procrustes(before, after)
        return target + size / (before**2).sum() * (new - mean) @ turn
    before = np.vstack([x - mean, more])
    after = np.vstack([y - x - shift, 0 * more])
    weights = np.linalg.lstsq(before, after, rcond=None)[0]
    _, _, directions = np.linalg.svd(before @ weights)
    kept = directions[: int(rung.removeprefix("rank_"))]
    return new + shift + (new - mean) @ weights @ kept.T @ kept


def explained(x: Array, y: Array, mapped: Array) -> float:
    """The share of the squared difference that goes."""
    return float(1 - ((y - mapped) ** 2).sum() / ((y - x) ** 2).sum())
