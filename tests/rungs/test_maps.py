"""Every rung finds what was planted for it and nothing lower does; numpy and scikit-learn agree."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import pytest
import torch
from rungs import restated

from interp.moments import ShiftMoments
from interp.rungs.maps import RIDGES, RIGID_RIDGES, StateMap, fit_maps, rung_names

WIDTH, RANKS, FOLDS = 12, (1, 2, 4), 3
EXACT = 1 - 1e-6
Array = np.ndarray
Plant = Callable[[Array, np.random.Generator], Array]


def states(n: int, seed: int, width: int = WIDTH) -> Array:
    """Tokens far from white, as states are, around a mean."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((width, width)) / 3 + np.eye(width)
    return rng.standard_normal((n, width)) @ mixing + 2.0


def constant(x: Array, rng: np.random.Generator) -> Array:
    return x + rng.standard_normal(WIDTH)


def gated(x: Array, rng: np.random.Generator) -> Array:
    gate = 1.0 + x @ rng.standard_normal(WIDTH)
    return x + gate[:, None] * rng.standard_normal(WIDTH)


def rigid(x: Array, rng: np.random.Generator) -> Array:
    turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    return 1.3 * x @ turn + rng.standard_normal(WIDTH)


def rank(k: int) -> Plant:
    def planted(x: Array, rng: np.random.Generator) -> Array:
        low = rng.standard_normal((WIDTH, k)) @ rng.standard_normal((k, WIDTH))
        return x + x @ low + rng.standard_normal(WIDTH)

    return planted


def affine(x: Array, rng: np.random.Generator) -> Array:
    return x @ rng.standard_normal((WIDTH, WIDTH)) + rng.standard_normal(WIDTH)


PLANTED: dict[str, Plant] = {
    "constant": constant,
    "gated": gated,
    "rigid": rigid,
    "rank_1": rank(1),
    "rank_2": rank(2),
    "rank_4": rank(4),
    "affine": affine,
}


def folds(x: Array, y: Array, count: int = FOLDS) -> list[ShiftMoments]:
    return [ShiftMoments.of(x[i::count], (y - x)[i::count]) for i in range(count)]


def mapped(one: StateMap, x: Array) -> Array:
    return one(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found_at_its_rung_and_not_below(name: str) -> None:
    x, new = states(300, 0), states(200, 1)
    both = PLANTED[name](np.vstack([x, new]), np.random.default_rng(7))
    y, there = both[: len(x)], both[len(x) :]
    maps = fit_maps(folds(x, y), RANKS)
    found = {r: restated.explained(new, there, mapped(one, new)) for r, one in maps.items()}
    assert list(found) == rung_names(RANKS, WIDTH) == list(PLANTED)
    assert found[name] > EXACT
    assert all(found[lower] < 0.99 for lower in list(found)[: list(found).index(name)]), found
    nested = [one for one in PLANTED if one != "rigid"]
    above = nested[nested.index(name) :] if name in nested else ["affine"]
    assert all(found[higher] > EXACT for higher in above), found


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize(("tokens", "noise"), [(300, 0.0), (90, 1.0)])
def test_maps_are_those_of_numpy_and_scikit_learn(name: str, tokens: int, noise: float) -> None:
    """Of their ridge too, which is the best of the same folds."""
    x, new = states(tokens, 2), states(50, 3)
    rng = np.random.default_rng(8)
    y = affine(x, rng) + noise * rng.standard_normal(x.shape)
    one = fit_maps(folds(x, y), RANKS)[name]
    if name != "constant":
        grid = RIGID_RIDGES if name == "rigid" else RIDGES
        loss = {ridge: left_out(name, x, y, ridge) for ridge in grid}
        assert loss[one.ridge] <= min(loss.values()) * (1 + 1e-9)
    expected = restated.fitted(name, x, y, one.ridge, new)
    np.testing.assert_allclose(mapped(one, new), expected, rtol=1e-6, atol=1e-6)


def left_out(name: str, x: Array, y: Array, ridge: float) -> float:
    """Squares left on each fold by what is fitted on the others."""
    total, fold = 0.0, np.arange(len(x)) % FOLDS
    for out in range(FOLDS):
        own, other = fold == out, fold != out
        total += ((y[own] - restated.fitted(name, x[other], y[other], ridge, x[own])) ** 2).sum()
    return float(total)


def test_streamed_sums_fit_the_same_maps() -> None:
    x = states(200, 4)
    y = affine(x, np.random.default_rng(9))
    cut = [ShiftMoments.of(x[a:b], (y - x)[a:b]) for a, b in [(0, 3), (3, 90), (90, 91), (91, 200)]]
    whole = ShiftMoments.of(x, y - x)
    other = ShiftMoments.of(states(60, 5), states(60, 6))
    at_once = fit_maps([whole, other], RANKS)
    streamed = fit_maps([reduce(ShiftMoments.merge, reversed(cut)), other], RANKS)
    for name, one in at_once.items():
        assert streamed[name].ridge == one.ridge or name == "constant"
        np.testing.assert_allclose(mapped(streamed[name], x), mapped(one, x), rtol=1e-9, atol=1e-9)


def test_a_gate_is_a_function_of_the_source_state_alone() -> None:
    """The same state is moved by the same amount, whatever its target is, along the mean shift."""
    x = states(100, 10)
    y = affine(x, np.random.default_rng(11))
    gate, whole = fit_maps(folds(x, y), RANKS)["gated"], (y - x).mean(0)
    moved = mapped(gate, x) - x
    direction = whole / np.linalg.norm(whole)
    np.testing.assert_allclose(moved, (moved @ direction)[:, None] * direction, atol=1e-9)
    first, second, between = mapped(gate, np.stack([x[0], x[1], (x[0] + x[1]) / 2]))
    np.testing.assert_allclose(between, (first + second) / 2)


def test_more_dimensions_than_tokens_rest_on_the_ridge() -> None:
    """Shifts that follow from nothing: no map may do much worse than the constant on new tokens,
    and where no token lies, a rotation leaves the state as it is."""
    width, rng = 60, np.random.default_rng(12)
    x, new = states(40, 13, width), states(40, 14, width)
    shift, unseen = 1 + rng.standard_normal(x.shape), 1 + rng.standard_normal(new.shape)
    maps = fit_maps(folds(x, x + shift), RANKS)
    found = {r: restated.explained(new, new + unseen, mapped(m, new)) for r, m in maps.items()}
    assert min(found.values()) > found["constant"] - 0.15, found
    _, _, axes = np.linalg.svd(np.vstack([x - x.mean(0), shift - shift.mean(0)]))
    off = x.mean(0) + 0 * axes[:1]
    straight = mapped(maps["rigid"], off + 3 * axes[-1:]) - mapped(maps["rigid"], off)
    assert float(straight[0] @ axes[-1]) > 0.8 * np.linalg.norm(straight) > 0


def test_too_little_data_has_no_map_and_says_no_zero() -> None:
    x, y = states(30, 15), states(30, 16)
    assert fit_maps([], RANKS) == {}
    assert fit_maps([ShiftMoments.empty(WIDTH)], RANKS) == {}
    assert list(fit_maps([ShiftMoments.of(x, y - x)], RANKS)) == ["constant"]
    single = [ShiftMoments.of(x[i : i + 1], (y - x)[i : i + 1]) for i in range(3)]
    assert list(fit_maps(single, RANKS)) == ["constant"]
    same = np.repeat(x[:1], 30, axis=0)
    assert list(fit_maps(folds(same, y), RANKS)) == ["constant"]
    with pytest.raises(ValueError, match="no queries"):
        ShiftMoments.empty(WIDTH).compute()
    assert rung_names((1, 12, 40, 2, 1), WIDTH) == [
        "constant", "gated", "rigid", "rank_1", "rank_2", "affine"
    ]  # fmt: skip
