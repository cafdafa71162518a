"""Orthonormal bases of a subspace: learned by gradient, the principal directions, random ones.

    found = learn_basis(loss, start=principal_directions(steps)[:, :k], steps=60, rate=0.5)
    found.basis                         # [d_model, k], of the least loss seen

A subspace is a point of a Grassmannian: the basis is the Q of a QR decomposition, so that it stays
orthonormal (Geiger et al. 2303.02536 rotate all of the space; what the rotation does outside of the
subspace changes nothing).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.measures import wide
from interp.statistics import generator_of

BasisLoss = Callable[[Float[Tensor, "d k"]], tuple[float, Float[Tensor, "d k"]]]
"""Loss of an orthonormal basis, and its gradient."""


Judge = Callable[[Float[Tensor, "d k"]], float]
"""How good a basis is on what it does not learn from: less is better."""


class LearnedBasis(NamedTuple):
    """The best of all bases that were tried, and what each of them was judged by."""

    basis: Float[Tensor, "d k"]
    losses: list[float]


def learn_basis(
    loss: BasisLoss,
    start: Float[Tensor, "d k"],
    steps: int,
    patience: int,
    rate: float,
    judge: Judge | None = None,
) -> LearnedBasis:
    """Follow the gradient (Adam, with a rate that falls to 0) from an orthonormal basis, for at
    most so many steps; stops when `patience` of them brought no better one, as `judge` says (none:
    the loss itself)."""
    free = start.clone().requires_grad_()
    size = rate / len(start) ** 0.5
    adam = torch.optim.Adam([free], lr=size)
    losses: list[float] = []
    best, since = start, 0
    for step in range(steps + 1):
        with torch.enable_grad():
            basis = orthonormal(free)
        value, gradient = loss(basis.detach())
        judged = value if judge is None else judge(basis.detach())
        better = not losses or judged < min(losses)
        best, since = (basis.detach(), 0) if better else (best, since + 1)
        losses.append(judged)
        if step == steps or since >= patience:
            break
        (free.grad,) = torch.autograd.grad(basis, free, gradient)
        adam.param_groups[0]["lr"] = size * (1 - step / steps)
        adam.step()
        with torch.no_grad():
            free.copy_(orthonormal(free))
    return LearnedBasis(best, losses)


def orthonormal(columns: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    """Q of the columns' QR decomposition, each on the side of the column that it comes from."""
    q, r = torch.linalg.qr(columns)
    return q * torch.where(r.diagonal() < 0, -1.0, 1.0)


def principal_directions(steps: Float[Tensor, "token d"]) -> Float[Tensor, "d d"]:
    """Right singular vectors of what states differ by, the strongest first: of the second moment,
    the mean difference included; directions in which nothing differs come last."""
    moment = wide(steps).T @ wide(steps)
    return torch.linalg.eigh(moment).eigenvectors.flip(1).to(steps.dtype)


def random_basis(name: str, width: int, k: int, like: Tensor) -> Float[Tensor, "d k"]:
    """A uniformly random subspace, drawn from a name."""
    drawn = torch.from_numpy(generator_of(name).standard_normal((width, k)))
    return orthonormal(drawn).to(like.device, like.dtype)
