"""Measures of a matrix's change: pure functions of its singular directions.

    stable_rank(update.directions.s)
    intruder_dimensions(left_vectors(base), base + update.matrix)
    subspace_overlap(a.directions.u[:, :8], b.directions.u[:, :8])    # chance: 8 / d_out

Singular values come largest first. All in the dtype that is given, which should be float64.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_TOP, _EPSILON = 10, 0.5
"""Shuttleworth et al.'s k and epsilon."""


def stable_rank(s: Float[Tensor, " rank"]) -> float:
    """`‖W‖_F² / ‖W‖_2²` of a matrix with these singular values: 1 to its rank, in dimensions; NaN
    of a matrix that is zero (Rudelson and Vershynin 2007, math/0503442)."""
    if not len(s) or float(s[0]) == 0:
        return float("nan")
    return float(((s / s[0]) ** 2).sum())


def relative_norm(added: float, base: Tensor) -> float:
    """A change's Frobenius norm over that of what was there; NaN where nothing was."""
    there = float(torch.linalg.vector_norm(base, dtype=torch.float64))
    return added / there if there else float("nan")


def left_vectors(matrix: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out rank"]:
    """The singular vectors in the output space, as many as the smaller side."""
    return torch.linalg.svd(matrix, full_matrices=False).U


def nearest_cosines(
    known: Float[Tensor, "d_out rank"], vectors: Float[Tensor, "d_out top"]
) -> Float[Tensor, " top"]:
    """How near each vector comes to any of the known ones: the largest `|u~_j . u_i|` over i, 0 to
    1. All of unit length."""
    return (known.T @ vectors).abs().amax(0)


def intruder_dimensions(
    known: Float[Tensor, "d_out rank"],
    changed: Float[Tensor, "d_out d_in"],
    top: int = _TOP,
    epsilon: float = _EPSILON,
) -> int:
    """How many of the `top` strongest left singular vectors of a changed matrix are near none of
    base's, `known`: `#{j <= top : max_i |u~_j . u_i| < epsilon}`, 0 to `top` (Shuttleworth et al.
    2410.21228, algorithm 1). Of a matrix stored `[d_in, d_out]` these would be input vectors."""
    return int((nearest_cosines(known, left_vectors(changed)[:, :top]) < epsilon).sum())


def subspace_overlap(a: Float[Tensor, "d rank"], b: Float[Tensor, "d rank"]) -> float:
    """`(1/r) ‖a'b‖_F²` of two subspaces with these orthonormal bases: the mean squared cosine of
    their principal angles, 0 to 1; NaN of spaces without a direction. Chance: `r / d`. (Hu et al.
    2106.09685, equation 4.)"""
    rank = a.shape[1]
    return float((a.T @ b).square().sum() / rank) if rank else float("nan")


@functools.cache
def chance_band(d: int, rank: int, draws: int = 1000) -> tuple[float, float]:
    """The middle 95 % of `subspace_overlap` of random subspaces of this rank in `d` dimensions.

    A random frame is `G (G'G)^(-1/2)` with Gaussian G; all that counts is its block in the other
    subspace, so G'G is drawn as that block's Wishart matrix plus the rest's.
    """
    if rank >= d:
        return 1.0, 1.0
    if 2 * rank > d:  # the complements overlap as two smaller subspaces do
        shares = [1 - (d - rank) / rank * (1 - x) for x in chance_band(d, d - rank, draws)]
        return shares[0], shares[1]
    generator = np.random.default_rng(0)
    inside = _wishart(generator, rank, rank, draws)
    whole = inside + _wishart(generator, d - rank, rank, draws)
    overlap = np.trace(np.linalg.solve(whole, inside), axis1=1, axis2=2) / rank
    low, high = np.quantile(overlap, (0.025, 0.975))
    return float(low), float(high)


def _wishart(generator: np.random.Generator, degrees: int, size: int, draws: int) -> np.ndarray:
    """`G'G` of Gaussian G `[degrees, size]`, by Bartlett's triangular factor: `[draw, size, size]`;
    `degrees` is at least `size`."""
    factor = np.tril(generator.standard_normal((draws, size, size)), -1)
    diagonal = np.sqrt(generator.chisquare(degrees - np.arange(size), (draws, size)))
    factor[:, np.arange(size), np.arange(size)] = diagonal
    return factor @ factor.transpose(0, 2, 1)
