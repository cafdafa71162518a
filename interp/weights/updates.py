"""The change of every matrix under a condition, exactly as peft applies it.

    base = matrices(subject)                                  # module -> its matrix, [d_out, d_in]
    update = update_of(subject, subject.settings["lora"], base["model.layers.0.mlp.up_proj"])
    update.directions.s                                       # singular values, largest first

Scaling, patterns of ranks, rsLoRA and a condition's own scale are in it, several adapters add up,
DoRA's magnitudes act on the whole matrix, and a fine-tune is its difference from base. Whatever the
layer stores, a matrix here is `[d_out, d_in]`; an embedding maps a token to a vector of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.conditions import Setting
from interp.measures import wide
from interp.subject import Subject
from interp.subject.adapters import acts
from interp.subject.directions import Directions, of_product
from interp.subject.quantization import unpacked


@dataclass(frozen=True)
class Update:
    """A change of a matrix: `left @ right`, or `left` alone where it has no factors; float64."""

    left: Float[Tensor, "d_out inner"]
    right: Float[Tensor, "inner d_in"] | None = None

    @property
    def matrix(self) -> Float[Tensor, "d_out d_in"]:
        """Multiplied out."""
        return self.left if self.right is None else self.left @ self.right

    @cached_property
    def directions(self) -> Directions:
        """Thin singular value decomposition, down to the rank that is more than rounding."""
        if self.right is None:
            found = Directions(*torch.linalg.svd(self.left, full_matrices=False))
        else:
            found = of_product(self.left, self.right)
        size = max(len(found.u), found.v.shape[1])
        floor = found.s.max() * size * torch.finfo(found.s.dtype).eps
        rank = int((found.s > floor).sum())
        return Directions(found.u[:, :rank], found.s[:rank], found.v[:rank])

    @property
    def norm(self) -> float:
        """Frobenius."""
        whole = self.left if self.right is None else self.directions.s
        return float(torch.linalg.vector_norm(whole))

    def part(self, rows: Tensor | None, columns: Tensor | None) -> Update:
        """Some rows and columns of it (None: all)."""
        if rows is None and columns is None:
            return self
        left, right = self.left if rows is None else self.left[rows], self.right
        if columns is None:
            return Update(left, right)
        return Update(left[:, columns]) if right is None else Update(left, right[:, columns])


class Matrix(NamedTuple):
    """A matrix of the base: its module's Hugging Face path, the parameter and its name, and whether
    that is stored `[d_in, d_out]`."""

    module: str
    name: str
    parameter: nn.Parameter
    turned: bool

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """As base has it, in the model's dtype; a `SubjectError` where it is packed for good."""
        return self.oriented(unpacked(self.parameter))

    def oriented(self, stored: Tensor) -> Float[Tensor, "d_out d_in"]:
        """What is stored like the parameter, output first."""
        return stored.T if self.turned else stored


def matrices(subject: Subject) -> dict[str, Matrix]:
    """Module -> its matrix, of every module that has one, in the model's order."""
    owners: dict[int, list[nn.Module]] = {}
    for owner in subject.bridge.original_model.modules():
        for parameter in owner.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(owner)
    found = {}
    for name, parameter in subject.weights.parameters.items():
        if parameter.ndim == 2:
            module = name.removesuffix(".weight")
            turned = any(map(_turned, owners.get(id(parameter), [])))
            found[module] = Matrix(module, name, parameter, turned)
    names = {id(parameter): name for name, parameter in subject.weights.parameters.items()}
    for module, layer in subject.weights.layers.items():  # lm_head tied to the embedding, too
        below = _below(layer)
        weight = getattr(below, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 2 and id(weight) in names:
            found[module] = Matrix(module, names[id(weight)], weight, _turned(below))
    return found


def _below(layer: Any) -> Any:
    """The base's own module under a tuner layer."""
    return layer.get_base_layer() if _is_lora(layer) else layer.original_module


def _is_lora(layer: Any) -> bool:
    return isinstance(layer, LoraLayer)


def _turned(module: nn.Module) -> bool:
    return isinstance(module, Conv1D | nn.Embedding)


def update_of(subject: Subject, setting: Setting, matrix: Matrix) -> Update | None:
    """What a condition adds to a matrix; None where it leaves it alone."""
    base = matrix.weight
    with subject.weights.values_of(setting):
        own = matrix.weight
        added = [Update(wide(own) - wide(base))] if setting.model else []
        for name, scale in _adapters(subject, setting, matrix.module):
            added.append(_of_adapter(subject.weights.layers[matrix.module], name, scale, own))
    added = [update for update in added if bool(update.left.any())]
    return _sum(added) if added else None


def _adapters(subject: Subject, setting: Setting, module: str) -> Iterator[tuple[str, float]]:
    """peft's name and the scale of every adapter that acts on a module in a way known here."""
    weights = subject.weights
    layer = weights.layers.get(module)
    if layer is None or module in weights.silent:
        return
    for adapter, scale in setting.adapters:
        name = weights.adapters[adapter]
        if acts(layer, [name]) and not _unknown(layer, name):
            yield name, scale


def left_out(subject: Subject, setting: Setting) -> dict[str, str]:
    """Module -> why its update is not known, of those that a condition's adapters act on."""
    weights, known = subject.weights, matrices(subject)
    found = {}
    for module in weights.adapted(setting):
        names = [weights.adapters[adapter] for adapter, _ in setting.adapters]
        reasons = [_unknown(weights.layers[module], name) for name in names]
        reason = next(filter(None, reasons), "" if module in known else "not a matrix")
        if reason:
            found[module] = reason
    return found


def _unknown(layer: Any, name: str) -> str:
    """A kind of LoRA that does not add a fixed matrix, or one that is not taken apart here."""
    if not _is_lora(layer):
        return ""
    if type(layer).__name__ == "ParamWrapper":
        return "target_parameters"
    variant = layer.lora_variant.get(name)
    return "" if variant is None or layer.use_dora.get(name) else type(variant).__name__


def _of_adapter(layer: Any, name: str, scale: float, own: Tensor) -> Update:
    """One adapter's update of a matrix that holds `own`."""
    if not _is_lora(layer):
        weight, turned = _trained(layer, name)
        return Update(wide(weight.T if turned else weight) - wide(own))
    if name in layer.lora_A:
        up, down = layer.lora_B[name].weight, layer.lora_A[name].weight
    else:
        up, down = layer.lora_embedding_B[name], layer.lora_embedding_A[name]
    left, right = layer.scaling[name] * scale * wide(up.detach()), wide(down.detach())
    if not layer.use_dora.get(name):
        return Update(left, right)
    magnitude = wide(layer.lora_magnitude_vector[name].weight.detach())
    changed = wide(own) + left @ right
    return Update((magnitude / changed.norm(dim=1))[:, None] * changed - wide(own))


def _trained(layer: Any, name: str) -> tuple[Tensor, bool]:
    """What stands for a module's weight where an adapter brought a copy of it or of some tokens'
    rows, and whether it is stored `[d_in, d_out]`."""
    if hasattr(layer, "token_adapter"):
        return layer.token_adapter.get_merged_weights([name]).detach(), True
    copy = layer.modules_to_save[name]
    return copy.weight.detach(), _turned(copy)


def _sum(updates: Sequence[Update]) -> Update:
    """Several updates of one matrix, by factors as long as all have them."""
    if len(updates) == 1:
        return updates[0]
    if any(update.right is None for update in updates):
        return Update(torch.stack([update.matrix for update in updates]).sum(0))
    rights = [update.right for update in updates if update.right is not None]
    return Update(torch.cat([update.left for update in updates], 1), torch.cat(rights))


def vectors(subject: Subject, setting: Setting) -> dict[str, tuple[Tensor, Tensor]]:
    """Parameter -> what a condition adds to it and what base has there, of every bias and norm
    that it changes."""
    parameters, found = subject.weights.parameters, {}
    before = {name: wide(p.detach()) for name, p in parameters.items() if p.ndim == 1}
    with subject.weights.values_of(setting):
        for name, base in before.items():
            own = wide(parameters[name].detach())
            module, _, kind = name.rpartition(".")
            added = own - base
            for adapter, scale in _adapters(subject, setting, module):
                layer = subject.weights.layers[module]
                added = added + _to_vector(layer, adapter, scale, kind, own)
            if bool(added.any()):
                found[name] = added, base
    return found


def _to_vector(layer: Any, name: str, scale: float, kind: str, own: Tensor) -> Tensor | float:
    """What one adapter adds to a module's `bias`, or to its `weight` where that is a vector."""
    if _is_lora(layer):
        if kind != "bias" or not layer.lora_bias.get(name):
            return 0.0
        return layer.scaling[name] * scale * wide(layer.lora_B[name].bias.detach())
    copies = getattr(layer, "modules_to_save", {})
    return wide(getattr(copies[name], kind).detach()) - own if name in copies else 0.0
