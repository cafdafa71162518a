"""What rounding alone can do: the noise floor of every measure, by the model's number format.

    floor("content_js", NOISE["float32"], value, control)     # nats, one per pair of values
    zero("content_js", NOISE["float32"], value)               # True where a value is nothing else

A stored value stays as it was computed; tests, ranks and sentences take what is below the floor for
nothing. Torch-free.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from interp.registry import MEASURES

NOISE = {"float64": 1e-12, "float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}
"""Relative size under which a change of a state between two runs is rounding, by the model's
number format: a few times what one block's arithmetic loses. The direction of such a change is
undefined, not small."""

RESOLUTION = 1e-7
"""What is found as the root of a sum in float64 (distances, divergences, angles) is known no better
than this, whatever the model's format: a few times the root of float64's own rounding."""

_REACH, _SCORES = 2.0, 6.0
"""How many times `NOISE` a value moves by at most: 2, since it compares two states or rows; 6 for
the cosine of two rows of scores, which are sums that cancel."""


def floor(
    measure: str,
    noise: float,
    value: Float[ndarray, "*cell"] | float = 0.0,
    other: ndarray | float = 0.0,
) -> Float[ndarray, "*cell"]:
    """By how much two values of a measure may differ, in its units, and be equal but for rounding.

    With `eps` = `REACH` times `noise`, the size of a state's rounding:

    - ratios, shares, distances: `eps`. `‖x_a - x_b‖` moves by no more than x_a and x_b do
      (triangle inequality);
    - divergences: `eps (√a + √b)`, so equal where `|√a - √b| <= eps`, and zero up to `eps²`. Of
      two rows p and `p (1 + e)` with `|e| <= eps`, JS is `E[e²] / 8` and KL `E[e²] / 2` to leading
      order; and √JS is a metric (Endres & Schindelin 2003), so it moves by no more than its rows
      do, however far they are apart. √KL is none, but moves by as much to leading order;
    - cosines: `eps` times the mean sine, so equal where the angles differ by `eps` (angles are a
      metric on the sphere). Of changes from base `eps` is relative to the change: those below
      `noise` have no direction (NaN);
    - entropies, log-probabilities, logits and ratios without a bound: `eps (1 + the larger size)`;
    - counts of which token or expert comes first: 0.

    `tests/measures/test_noise.py` measures it: in float32 every value of other computations of the
    same thing lies within a quarter of its floor (scores: within it), in bfloat16 against float32
    99 of 100 do, and the rest are sums over a head's values that cancel.
    """
    size = (_SCORES if measure in ("sim_am", "sim_am_delta") else _REACH) * max(noise, RESOLUTION)
    a, b = np.asarray(value, dtype=float), np.asarray(other, dtype=float)
    with np.errstate(invalid="ignore"):
        rounding = MEASURES[measure].rounding if measure in MEASURES else "ratio"
        if rounding == "count":
            return np.zeros(np.broadcast_shapes(a.shape, b.shape))
        if rounding == "divergence":
            return size * (np.sqrt(a) + np.sqrt(b))
        if rounding == "cosine":
            return size / 2 * (np.sqrt(1 - a**2) + np.sqrt(1 - b**2))
        if rounding == "unbounded":
            return size * (1 + np.maximum(np.abs(a), np.abs(b)))
    return np.full(np.broadcast_shapes(a.shape, b.shape), size)


def zero(measure: str, noise: float, value: ndarray | float) -> Bool[ndarray, "*cell"]:
    """Where a value is nothing but rounding."""
    return np.abs(value) <= floor(measure, noise, value)


def settled(
    measure: str, noise: float, values: Float[ndarray, " cell"], anchor: float = 0.0
) -> Float[ndarray, " cell"]:
    """The values with those equal that only rounding tells apart: to `anchor` where they are that,
    else to the smallest such value. For ranks."""
    found = np.where(
        np.abs(values - anchor) <= floor(measure, noise, values, anchor), anchor, values
    )
    order = np.argsort(found, kind="stable")
    for before, this in pairwise(order):
        apart = abs(found[this] - found[before])
        if found[this] != anchor and apart <= floor(measure, noise, found[this], found[before]):
            found[this] = found[before]
    return found
