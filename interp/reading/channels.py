"""A LoRA's own variables: how far what a module reads and gives lies along its singular directions.

    lora = Channels.of(subject, "lora")
    lora.modules["model.layers.3.mlp.up_proj"].v          # [rank, d_in]: what direction k reads
    for seen in watched_modules(subject, "prompt", batch, cache, lora.modules):
        ...                                               # every module's input and output

The update is taken apart as it acts, scaling included: `dW = U diag(s) V`, so that direction k of a
module reads `V_k x` and writes `s_k (V_k x) U_k`; `A x` in an order and a basis that do not depend
on how the factors share a scale. Both bases are orthonormal: the squares of the coordinates are
shares of energy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import SubjectError
from interp.measures import wide
from interp.subject import Batch, Subject
from interp.subject.directions import Directions, ranks
from interp.weights.updates import update_of, weight_matrices

IN, OUT = "read", "written"
"""The side of a module that a direction is of: its input, its output."""


@dataclass(frozen=True)
class Channels:
    """The singular directions of one condition's LoRA: module -> `U`, `s` (scaling included), `V`,
    in float64, in the model's order."""

    condition: str
    modules: Mapping[str, Directions]

    @classmethod
    def of(cls, subject: Subject, condition: str) -> Channels:
        """Those of a condition; a SubjectError where it has no plain LoRA."""
        setting = subject.settings[condition]
        known = ranks(subject.weights, subject.weights.only_adapter(setting))
        if not known:
            raise SubjectError(f"{condition} is not one plain LoRA (without DoRA and biases)")
        found = {}
        for module, matrix in weight_matrices(subject).items():
            update = update_of(subject, setting, matrix) if module in known else None
            if update is not None and len(update.directions.s):
                found[module] = update.directions
        return cls(condition, found)

    @property
    def ranks(self) -> list[int]:
        """Directions of every module."""
        return [len(own.s) for own in self.modules.values()]

    @property
    def places(self) -> list[tuple[str, int]]:
        """Module and number of every direction, in the order of `coordinates`."""
        return [(m, k) for m, own in self.modules.items() for k in range(len(own.s))]

    def basis(self, module: str, side: str) -> Float[Tensor, "rank d"]:
        """Orthonormal rows: what the directions read, or what they write."""
        own = self.modules[module]
        return own.v if side == IN else own.u.T


class SeenModule(NamedTuple):
    """What a module read and gave, float64."""

    module: str
    read: Float[Tensor, "query query_pos d_in"]
    written: Float[Tensor, "query query_pos d_out"]

    def side(self, side: str) -> Float[Tensor, "query query_pos d"]:
        """Its input or its output."""
        return self.read if side == IN else self.written


@torch.no_grad()
def watched_modules(
    subject: Subject, condition: str, batch: Batch, cache: Any, modules: Sequence[str]
) -> dict[str, SeenModule]:
    """Run a condition and see what these modules read and give at the query tokens. In memory: all
    of it, in float64."""
    found: dict[str, SeenModule] = {}

    def note(module: str, x: Tensor, y: Tensor) -> None:
        found[module] = SeenModule(module, wide(x.detach()), wide(y.detach()))

    with _watching(subject, modules, note):
        subject.run(subject.settings[condition], batch, cache, last=True)
    if missing := [module for module in modules if module not in found]:
        raise SubjectError(f"{subject.name} does not run {missing[0]} at the query tokens")
    return found


@contextmanager
def _watching(subject: Subject, modules: Sequence[str], note: Any) -> Iterator[None]:
    with ExitStack() as stack:
        for module in modules:
            layer = subject.weights.layers[module]
            handle = layer.register_forward_hook(
                lambda _, inputs, output, module=module: note(module, inputs[0], output)
            )
            stack.callback(handle.remove)
        yield


def coordinates(
    channels: Channels, seen: Mapping[str, SeenModule], side: str = IN
) -> Float[Tensor, "query query_pos direction"]:
    """`V_k x` of every module's input (`U_k' y` of its output), modules one after the other."""
    parts = [
        seen[module].side(side) @ channels.basis(module, side).T for module in channels.modules
    ]
    return torch.cat(parts, dim=-1)


def energies(
    seen: Mapping[str, SeenModule], modules: Sequence[str], side: str = IN
) -> Float[Tensor, "query query_pos module"]:
    """`‖x‖²` of every module's input (or output)."""
    return torch.stack([seen[module].side(side).square().sum(-1) for module in modules], dim=-1)


def changes(
    own: Mapping[str, SeenModule], base: Mapping[str, SeenModule], noise: float
) -> dict[str, SeenModule]:
    """What a condition changes of every module's input and output; 0 where it is no more than
    `noise` of base's, which rounding alone can make."""

    def change(after: Tensor, before: Tensor) -> Tensor:
        added = after - before
        large = added.norm(dim=-1, keepdim=True) > noise * before.norm(dim=-1, keepdim=True)
        return torch.where(large, added, torch.zeros_like(added))

    return {
        module: SeenModule(
            module,
            change(seen.read, base[module].read),
            change(seen.written, base[module].written),
        )
        for module, seen in own.items()
    }


def energy_by_module(
    values: Float[Tensor, "*rest direction"], rank: Sequence[int]
) -> Float[Tensor, "*rest module"]:
    """Sums over every module's directions."""
    return torch.stack([part.sum(-1) for part in values.split(list(rank), dim=-1)], dim=-1)
