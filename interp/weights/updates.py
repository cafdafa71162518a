"""The change of every matrix under a condition, exactly as peft applies it.

    base = weight_matrices(subject)                           # module -> its matrix, [d_out, d_in]
    update = update_of(subject, subject.settings["lora"], base["model.layers.0.mlp.up_proj"])
    update.directions.s                                       # singular values, largest first

Scaling, patterns of ranks, rsLoRA and a condition's own scale are in it, several adapters add up,
DoRA's magnitudes act on the whole matrix, and a fine-tune is its difference from base. So is every
adapter without two factors: what its layer makes of unit vectors, less base's matrix. Whatever the
layer stores, a matrix here is `[d_out, d_in]`; an embedding maps a token to a vector of the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.conditions import Setting
from interp.measures import wide
from interp.subject import Subject
from interp.subject.adapters import active, acts
from interp.subject.directions import Directions, of_product
from interp.subject.quantization import unpacked

_EPSILON = torch.finfo(torch.float64).eps


_Acting = Sequence[tuple[str, float]]
"""peft's name and the scale of every adapter that acts."""


@dataclass(frozen=True)
class Update:
    """A change of a matrix: `left @ right`, or `left` alone where it has no factors; float64.

    `rounding`: singular values up to it are those of a difference of matrices, and no direction.
    """

    left: Float[Tensor, "d_out inner"]
    right: Float[Tensor, "inner d_in"] | None = None
    rounding: float = 0.0

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
        floor = found.s.max() * size * _EPSILON
        rank = int((found.s > max(float(floor), self.rounding)).sum())
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
            return Update(left, right, self.rounding)
        if right is None:
            return Update(left[:, columns], rounding=self.rounding)
        return Update(left, right[:, columns])


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


def weight_matrices(subject: Subject) -> dict[str, Matrix]:
    """Module -> its matrix, of every module that has one, in the model's order."""
    owners: dict[int, list[nn.Module]] = {}
    for owner in subject.hf_model.modules():
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
    return layer.original_module if _is_copy(layer) else layer.get_base_layer()


def _is_copy(layer: Any) -> bool:
    """Whether a layer stands for a whole module, or some of its rows, that an adapter brought."""
    return isinstance(layer, AuxiliaryTrainingWrapper)


def _has_factors(layer: Any) -> bool:
    """Whether a layer is a LoRA's, whose update is a product (AdaLoRA's has a third factor)."""
    return isinstance(layer, LoraLayer) and not isinstance(layer, AdaLoraLayer)


def _turned(module: nn.Module) -> bool:
    return isinstance(module, Conv1D | nn.Embedding)


def update_of(subject: Subject, setting: Setting, matrix: Matrix) -> Update | None:
    """What a condition adds to a matrix; None where it leaves it alone."""
    base = matrix.weight
    rewritten = matrix.name in subject.weights.values(setting)
    with subject.weights.values_of(setting):
        own = matrix.weight
        added = [Update(wide(own) - wide(base))] if rewritten else []
        if acting := list(_adapters(subject, setting, matrix.module)):
            added += _of_layer(subject.weights.layers[matrix.module], acting, own)
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
    weights, known = subject.weights, weight_matrices(subject)
    found = {}
    for module in weights.adapted(setting):
        layer = weights.layers[module]
        names = [weights.adapters[adapter] for adapter, _ in setting.adapters]
        reasons = [_unknown(layer, name) or _on_no_bias(layer, name) for name in names]
        whole = module in known or _is_norm(_below(layer))
        if reason := next(filter(None, reasons), "" if whole else "not a matrix"):
            found[module] = reason
    return found


def _is_norm(module: Any) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 1


def _unknown(layer: Any, name: str) -> str:
    """A kind of adapter that does not add a fixed matrix, or one that is not taken apart here."""
    if _is_copy(layer) or not acts(layer, [name]):
        return ""
    if isinstance(layer, ParamWrapper) and layer.get_param().ndim > 2:
        return "target_parameters, the experts of a block in one"
    if _has_factors(layer):
        variant = layer.lora_variant.get(name)
        return "" if variant is None or layer.use_dora.get(name) else type(variant).__name__
    if not _is_norm(_below(layer)) and not _computes_wide(layer, name):
        kind = type(layer).__module__.split(".")[-2]
        return f"{kind.upper()}, which does not compute in float64"
    return ""


def _on_no_bias(layer: Any, name: str) -> str:
    """A bias that an adapter adds to a module without one is no parameter of base's."""
    if _is_copy(layer) or not acts(layer, [name]) or getattr(_below(layer), "bias", 0) is not None:
        return ""
    factors = _has_factors(layer)
    adds = layer.lora_bias.get(name) if factors else _constant(layer, [(name, 1.0)]).any()
    return "a bias, where base has none" if adds else ""


@contextmanager
def _wide(layer: Any, acting: _Acting) -> Iterator[Callable[[Tensor], Tensor]]:
    """A copy of a layer in float64, under these adapters alone."""
    twin = copy.deepcopy(layer).double()
    with torch.no_grad(), active({"": twin}, list(acting)):
        yield twin


def _computes_wide(layer: Any, name: str) -> bool:
    if isinstance(_below(layer), nn.Embedding):
        return True
    try:
        _constant(layer, [(name, 1.0)])
    except RuntimeError:
        return False
    return True


def _constant(layer: Any, acting: _Acting) -> Float[Tensor, " d_out"]:
    """What a layer makes of zero under some adapters: its bias."""
    weight = _below(layer).weight
    zero = torch.zeros(1, _width(layer), dtype=torch.float64, device=weight.device)
    with _wide(layer, acting) as twin:
        return wide(twin(zero)[0])


def _matrix(layer: Any, acting: _Acting) -> Float[Tensor, "d_out d_in"]:
    """The matrix that a layer is under some adapters: what it makes of unit vectors, or tokens."""
    weight = _below(layer).weight
    with _wide(layer, acting) as twin:
        if isinstance(_below(layer), nn.Embedding):
            return wide(twin(torch.arange(len(weight), device=weight.device)).T)
        unit = torch.eye(_width(layer), dtype=torch.float64, device=weight.device)
        return wide((twin(unit) - twin(torch.zeros_like(unit[:1]))).T)


def _width(layer: Any) -> int:
    """How many numbers a layer reads."""
    below = _below(layer)
    return int(below.weight.shape[0 if _turned(below) else 1])


def _of_layer(layer: Any, acting: _Acting, own: Tensor) -> list[Update]:
    """What adapters add to a matrix that holds `own`: each its own update, or all of them one."""
    if _is_copy(layer):
        weights = [_trained(layer, name) for name, _ in acting]
        return [Update(wide(w.T if turned else w) - wide(own)) for w, turned in weights]
    if _has_factors(layer):
        return [_of_lora(layer, name, scale, own) for name, scale in acting]
    rounding = _EPSILON * max(own.shape) * float(wide(own).norm())
    return [Update(_matrix(layer, acting) - wide(own), rounding=rounding)]


def _of_lora(layer: Any, name: str, scale: float, own: Tensor) -> Update:
    """One LoRA's update of a matrix that holds `own`."""
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
    brought = layer.modules_to_save[name]
    return brought.weight.detach(), _turned(brought)


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
            if acting := list(_adapters(subject, setting, module)):
                added = added + _to_vector(subject.weights.layers[module], acting, kind, own)
            if bool(added.any()):
                found[name] = added, base
    return found


def _to_vector(layer: Any, acting: _Acting, kind: str, own: Tensor) -> Tensor:
    """What adapters add to a module's `bias`, or to its `weight` where that is a vector."""
    copies = getattr(layer, "modules_to_save" if _is_copy(layer) else "ln_tuning_layers", {})
    added = [wide(getattr(copies[n], kind).detach()) - own for n, _ in acting if n in copies]
    if not (_is_copy(layer) or added) and kind == "bias":
        if _has_factors(layer):
            added = [
                layer.scaling[name] * scale * wide(layer.lora_B[name].bias.detach())
                for name, scale in acting
                if layer.lora_bias.get(name)
            ]
        else:
            added = [_constant(layer, acting) - own]
    return torch.stack([torch.zeros_like(own), *added]).sum(0)
