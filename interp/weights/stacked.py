"""Many rank-1 updates of one matrix, by their Gram matrices: nothing `d_out x d_in` is ever made.

kernel = frobenius_gram(update)                           # <dW_i, dW_j>, [query, query]
effective_rank(kernel), mean_cosine(kernel)
jackknife_interval(lambda some: effective_rank(kernel[some][:, some]), len(kernel))
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.weights.implicit import Rank1

_Kernel = Float[Tensor, "query query"]


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    ci_low: float
    ci_high: float


def frobenius_gram(update: Rank1) -> _Kernel:
    """Frobenius products of all pairs: `<a b', a* b*'> = (a . a*) (b . b*)`."""
    return (update.written @ update.written.T) * (update.read @ update.read.T)


def effective_rank(kernel: _Kernel) -> float:
    """Exponential of the entropy (nats) of the Gram matrix's normalised eigenvalues: in how many
    directions the updates vary, 1 (all the same up to size) to the number of queries; NaN of
    updates that are zero. (Roy & Vetterli 2007, definition 1, of the Gram matrix: shares are of
    the updates' squared norm.)"""
    values = torch.linalg.eigvalsh(kernel).clamp(min=0)
    if not (total := values.sum()):
        return float("nan")
    return float(torch.special.entr(values / total).sum().exp())


def mean_cosine(kernel: _Kernel) -> float:
    """Mean cosine between two different queries' updates, -1 to 1; NaN of updates that are zero."""
    sizes = kernel.diagonal().sqrt()
    cosines = kernel / torch.outer(sizes, sizes)
    n = len(kernel)
    return float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))


class Side(NamedTuple):
    """The stacked updates as seen on one side: Gram of what they span there, and its products with
    an orthonormal basis of another space."""

    kernel: _Kernel
    products: Float[Tensor, "query rank"]

    def of(self, some: Tensor) -> Side:
        """Some of the queries."""
        return Side(self.kernel[some][:, some], self.products[some])


def side(update: Rank1, basis: Float[Tensor, "d rank"], *, left: bool) -> Side:
    """What the updates write (`left`: the columns of `[dW_1 dW_2 ...]`) or read (the rows of the
    same, one below the other), against a basis."""
    own, other = update if left else update[::-1]
    rows = own * other.norm(dim=-1, keepdim=True)
    return Side(rows @ rows.T, rows @ basis)


def basis_overlap(seen: Side) -> float:
    """`(1/r) ‖U'B‖_F²` of the updates' r leading directions U and the basis of r directions, 0 to
    1 (`spectra.subspace_overlap`); NaN where the updates span fewer than r."""
    rank = seen.products.shape[1]
    values, vectors = torch.linalg.eigh(seen.kernel)
    values, vectors = values[-rank:], vectors[:, -rank:]
    floor = values[-1] * len(seen.kernel) * torch.finfo(values.dtype).eps
    if len(values) < rank or values[0] <= floor:
        return float("nan")
    return float(((vectors.T @ seen.products).square().sum(1) / values).sum() / rank)


def jackknife_interval(measure: Callable[[Tensor], float], n: int) -> Interval:
    """A measure of all queries, with a normal interval from leaving out each in turn (Efron & Stein
    1981). A bootstrap would draw queries twice, which lowers a rank and raises a cosine."""
    every = torch.arange(n)
    value = measure(every)
    left = torch.tensor([measure(every[every != i]) for i in range(n)], dtype=torch.float64)
    error = math.sqrt((n - 1) / n * float((left - left.mean()).square().sum()))
    return Interval(value, value - 1.96 * error, value + 1.96 * error)


def chance_interval(values: list[float]) -> Interval:
    """Mean and middle 95 % of what chance gives."""
    found = torch.tensor(values, dtype=torch.float64)
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(found.mean()), low, high)
