"""States that only rounding tells apart are one point of a cloud: they have no distance."""

from __future__ import annotations

import math

import numpy as np

from interp.geometry.dimension import two_nn
from interp.tabulate.geometry import settled_states

NOISE = 2e-5


def cloud(distinct: int, copies: int, error: float) -> np.ndarray:
    """A few points, each some times, a relative `error` from each other."""
    generator = np.random.default_rng(0)
    points = np.repeat(generator.normal(size=(distinct, 6)), copies, axis=0)
    return points * (1 + error * generator.uniform(-1, 1, size=points.shape))


def test_twins_by_rounding_become_one_point_and_others_stay_as_they_are() -> None:
    x = cloud(5, 4, 1e-7)
    found = settled_states(x, NOISE)
    assert len(np.unique(found, axis=0)) == 5
    np.testing.assert_array_equal(found, np.repeat(x[::4], 4, axis=0))
    apart = cloud(5, 4, 1e-3)
    np.testing.assert_array_equal(settled_states(apart, NOISE), apart)


def test_every_cloud_is_settled_by_itself() -> None:
    x = np.stack([cloud(5, 4, 1e-7), cloud(20, 1, 0.0), cloud(1, 20, 1e-7)])
    found = settled_states(x[None], NOISE)[0]
    assert [len(np.unique(each, axis=0)) for each in found] == [5, 20, 1]


def test_twins_by_rounding_have_no_dimension() -> None:
    """Between them the ratio of two distances is rounding: twenty pairs look like a surface."""
    pairs = cloud(20, 2, 1e-7)
    assert math.isfinite(two_nn(pairs))
    assert math.isnan(two_nn(settled_states(pairs, NOISE)))
    one = cloud(20, 1, 0.0)
    assert two_nn(settled_states(one, NOISE)) == two_nn(one)
