"""Every rung of the ladder: maps from a source's state to a target's, by growing freedom.

    maps = fit_maps(folds, ranks=(1, 2, 4))     # folds: `NormalEquations` of parts of the queries
    maps["rank_2"](states)                      # [..., d_model], float64

With `x` the source's state of a token and `d` the way to the target's state of the same token:

- `constant`: `x + m`, `m` the mean of `d`;
- `gated`: `x + g(x) m/|m|`, the gate an affine function of the source's state of that token, and of
  nothing else: not of the target, the token's identity, its position, other tokens;
- `rigid`: `s R (x - mean) + mean of targets`, `R` orthogonal (reflections among them), `s` a number
  (orthogonal Procrustes with a scale, Schoenemann 1966; Gower & Dijksterhuis 2004);
- `rank_k`: `x + m + W(x - mean)` with `W` of rank k: reduced-rank ridge regression of `d` on `x`
  (Izenman 1975; Mukherjee & Zhu 2011);
- `affine`: the same with any `W` (ridge regression, Hoerl & Kennard 1970).

constant, gated, rank_1, rank_2, ..., affine are nested; rigid is not among these, and stands where
METRICS has it. One ridge is behind all: adding `c` times the mean variance of a dimension to every
direction of the states pulls `W` to 0 and `s R` to the identity, so to `constant`. Each rung's own
`c` is chosen inside the fitting half, a fold left out at a time. Torch is used to apply maps only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.linalg import eigh
from torch import Tensor

from interp.measures import wide
from interp.moments import NormalEquations, ShiftMoments

RIDGES = tuple(10.0**power for power in (-6, -5, -4, -3, -2, -1, 0, 1, 3))
"""Ridges that are tried, in mean variances of a dimension of the source's states."""

RIGID_RIDGES = RIDGES[::2]
"""The same for rotations, each of which takes a decomposition."""

_SAME = 1e-20
"""Variance of the states over their square, up to which all of them are one and the same."""

_CONSTANT, _GATED, _RIGID, _AFFINE = "constant", "gated", "rigid", "affine"
"""Maps; those of low rank are `rank_1`, `rank_2`, ..."""


class StateMap(NamedTuple):
    """`x + shift + (x - centre) @ left @ right`; `ridge`: what it was fitted with, in mean
    variances (NaN: without)."""

    centre: Float[ndarray, " d_model"]
    shift: Float[ndarray, " d_model"]
    left: Float[ndarray, "d_model rank"]
    right: Float[ndarray, "rank d_model"] | None = None
    ridge: float = float("nan")

    def __call__(self, states: Tensor) -> Tensor:
        """States `[..., d_model]` mapped, float64."""
        x = wide(states)
        centre, shift, left = (_like(part, x) for part in (self.centre, self.shift, self.left))
        step = (x - centre) @ left
        return x + shift + (step if self.right is None else step @ _like(self.right, x))


def _like(array: ndarray, states: Tensor) -> Tensor:
    return torch.from_numpy(array).to(states.dtype).to(states.device)


def rung_names(ranks: Sequence[int], width: int) -> list[str]:
    """The maps in the order of their freedom; ranks below the states' width."""
    low = [f"rank_{k}" for k in sorted(set(ranks)) if k < width]
    return [_CONSTANT, _GATED, _RIGID, *low, _AFFINE]


def fit_maps(folds: Sequence[ShiftMoments], ranks: Sequence[int]) -> dict[str, StateMap]:
    """Rung -> its map, fitted on all folds together, its ridge on one left out at a time.

    A map whose data does not determine it is left out: all but `constant` without two folds of
    two tokens or more, or where the states of all tokens are the same.
    """
    kept = [fold for fold in folds if fold.tokens[0]]
    if not kept:
        return {}
    whole = reduce(ShiftMoments.merge, kept).compute()
    maps = {_CONSTANT: constant_map(whole)}
    few = len(kept) < 2 or min(fold.tokens[0] for fold in kept) < 2
    if few or np.trace(whole.xx) <= _SAME * whole.n * (whole.mean @ whole.mean):
        return maps
    names = rung_names(ranks, len(whole.mean))
    spectrum, chosen = Spectrum.of(whole), _ridges(kept, names)
    for name in names[1:]:
        maps[name] = spectrum.map(name, chosen[name])
    return maps


def constant_map(equations: NormalEquations) -> StateMap:
    """The mean of the shifts, added."""
    nothing = np.zeros((len(equations.mean), 0))
    return StateMap(equations.mean, equations.mean_shift, nothing, nothing.T)


def _ridges(folds: Sequence[ShiftMoments], names: Sequence[str]) -> dict[str, float]:
    """Every map's ridge: what leaves least on folds that were left out; of equals the largest."""
    losses: dict[str, dict[float, float]] = {name: {} for name in names}
    for number, fold in enumerate(folds):
        others = [other for at, other in enumerate(folds) if at != number]
        spectrum = Spectrum.of(reduce(ShiftMoments.merge, others).compute())
        for name, ridge, loss in spectrum.losses(fold.compute(), names):
            losses[name][ridge] = losses[name].get(ridge, 0.0) + loss
    return {
        name: min(reversed(found), key=found.__getitem__) for name, found in losses.items() if found
    }


class Spectrum(NamedTuple):
    """Normal equations in the principal axes of the states: `values` and `axes` of `xx` (columns),
    and `crossed`, `axes' xd`."""

    equations: NormalEquations
    values: Float[ndarray, " d_model"]
    axes: Float[ndarray, "d_model d_model"]
    crossed: Float[ndarray, "d_model d_model"]

    @classmethod
    def of(cls, equations: NormalEquations) -> Spectrum:
        """Decompose the states' sums."""
        values, axes = np.linalg.eigh(equations.xx)
        return cls(equations, values.clip(0), axes, axes.T @ equations.xd)

    @property
    def unit(self) -> float:
        """The ridge 1: the sum of squares of a dimension, on average."""
        return float(self.values.mean())

    def inverse(self, ridge: float) -> Float[ndarray, " d_model"]:
        """Of the states' sums with a ridge, in their axes."""
        return 1 / (self.values + ridge * self.unit)

    @property
    def gate(self) -> Float[ndarray, " d_model"]:
        """The direction that a gate scales: of the mean shift; 0 where there is none."""
        length = np.linalg.norm(self.equations.mean_shift)
        return self.equations.mean_shift / (length or 1.0)

    def directions(self, ridge: float, most: int) -> Float[ndarray, "d_model rank"]:
        """Where the regression's fitted shifts vary most: of reduced rank, it writes there."""
        fitted = self.crossed.T @ (self.inverse(ridge)[:, None] * self.crossed)
        width = len(fitted)
        _, vectors = eigh(fitted, subset_by_index=(width - most, width - 1))
        return vectors[:, ::-1].copy()

    def map(self, name: str, ridge: float) -> StateMap:
        """A rung other than `constant`, with its ridge."""
        own, inverse = self.equations, self.inverse(ridge)[:, None]
        if name == _RIGID:
            scale, turn = self.turn(ridge)
            left = scale * turn - np.eye(len(turn))
            return StateMap(own.mean, own.mean_shift, left, None, ridge)
        if name == _AFFINE:
            left = self.axes @ (inverse * self.crossed)
            return StateMap(own.mean, own.mean_shift, left, None, ridge)
        rank = 1 if name == _GATED else int(name.removeprefix("rank_"))
        into = self.gate[:, None] if name == _GATED else self.directions(ridge, rank)
        left = self.axes @ (inverse * (self.crossed @ into))
        return StateMap(own.mean, own.mean_shift, left, np.ascontiguousarray(into.T), ridge)

    def turn(self, ridge: float) -> tuple[float, Float[ndarray, "d_model d_model"]]:
        """Scale and orthogonal matrix of the rigid map; with a ridge nearer to the identity, which
        also says what it does where no token lies."""
        own, more = self.equations, ridge * self.unit
        width = len(own.mean)
        u, s, v = np.linalg.svd(own.xx + own.xd + more * np.eye(width))
        return float(s.sum() / (self.values.sum() + more * width)), u @ v

    # --- what a map leaves on other tokens, from their sums alone ---------------------------------

    def losses(
        self, others: NormalEquations, names: Sequence[str]
    ) -> Iterator[tuple[str, float, float]]:
        """(map, ridge, sum of squares that it leaves of the others' shifts)."""
        seen = others.around(self.equations)
        within, across = self.axes.T @ seen.xx @ self.axes, self.axes.T @ seen.xd
        ranks = [int(n.removeprefix("rank_")) for n in names if n.startswith("rank_")]
        together = self.crossed @ self.crossed.T
        for ridge in RIDGES:
            inverse = self.inverse(ridge)
            along = (self.crossed * across).sum(1) @ inverse
            yield _AFFINE, ridge, seen.dd - 2 * along + inverse @ (within * together) @ inverse
            gone = self._explained(self.gate[:, None], inverse, within, across)
            yield _GATED, ridge, seen.dd - gone[0]
            if ranks:
                into = self.directions(ridge, max(ranks))
                gone = self._explained(into, inverse, within, across).cumsum()
                for rank in ranks:
                    yield f"rank_{rank}", ridge, seen.dd - gone[rank - 1]
        for ridge in RIGID_RIDGES:
            yield _RIGID, ridge, self._left_by_turn(seen, *self.turn(ridge))

    def _explained(
        self, into: ndarray, inverse: ndarray, within: ndarray, across: ndarray
    ) -> Float[ndarray, " rank"]:
        """What a regression written into each of some orthonormal directions takes away."""
        weights = inverse[:, None] * (self.crossed @ into)
        return 2 * (weights * (across @ into)).sum(0) - (weights * (within @ weights)).sum(0)

    @staticmethod
    def _left_by_turn(seen: NormalEquations, scale: float, turn: ndarray) -> float:
        size, turned = np.trace(seen.xx), float((seen.xx * turn).sum())
        crossed = scale * float((seen.xd * turn).sum()) - np.trace(seen.xd)
        return float(seen.dd - 2 * crossed + (scale**2 + 1) * size - 2 * scale * turned)
