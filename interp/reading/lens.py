"""What a vector says: the change of the lens's logits that adding it brings.

    lens = DifferenceLens(subject, subject.settings["base"])
    lens(vectors, at=state)             # [vector, d_vocab]
    TransportedLens(lens, jacobian)(vectors, at=state)      # as the last layer would see them

A logit lens (nostalgebraist 2020) reads a state; a difference of two states is read by its linear
part: the final norm's scale is frozen at a state, and what the norm's and the unembedding's biases
say is left out, since they say it of every state. Minder et al. (2510.13900) put the difference
itself through the norm: under RMSNorm the order of the tokens is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.conditions import Setting
from interp.influence import Frozen
from interp.measures import wide
from interp.subject import Subject


@dataclass(frozen=True)
class DifferenceLens:
    """The lens of one setting's weights: the same for all differences that are compared."""

    subject: Subject
    setting: Setting

    @torch.no_grad()
    def __call__(
        self, vectors: Float[Tensor, "vector d_model"], at: Float[Tensor, " d_model"]
    ) -> Float[Tensor, "vector d_vocab"]:
        """The logits that the vectors add, to first order, to those of a state `at`, before a
        soft-cap; float64, linear in the vectors."""
        subject = self.subject
        with subject.weights.of(self.setting):
            norm = Frozen.at(subject.final_norm, at[None].to(subject.device))
            pushed = norm.push(vectors.to(subject.device))
            size = pushed.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
            unit = torch.cat([pushed / size, torch.zeros_like(pushed[:1])]).to(subject.dtype)
            said = wide(subject.unembed(unit))
        return (said[:-1] - said[-1:]) * size


@dataclass(frozen=True)
class TransportedLens:
    """The lens of what a layer's vectors and state make, to first order and on average, of the last
    layer's: the linear part of the Jacobian lens, with the last layer's J the logit lens's."""

    lens: DifferenceLens
    jacobian: Float[Tensor, "d_model d_model"]

    def __call__(
        self, vectors: Float[Tensor, "vector d_model"], at: Float[Tensor, " d_model"]
    ) -> Float[Tensor, "vector d_vocab"]:
        """As of `DifferenceLens`."""
        onward = self.jacobian.to(vectors).T
        return self.lens(vectors @ onward, at @ onward)
