"""The states that one copy of a model's weights can be in: adapters on or off, values swapped.

with weights.of(setting):
    ...                         # the model computes with the setting's weights
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from interp.conditions import Randomised, Setting, Untrained
from interp.errors import SubjectError
from interp.subject.adapters import BaseValues, active, acts, holding


@dataclass(frozen=True)
class Weights:
    """Base `parameters`, mounted adapters (adapter -> peft name), other models' values, the modules
    that switch between adapters (those named in `silent` never do), and what base's parameters
    hold while an adapter acts that rewrites them."""

    parameters: dict[str, nn.Parameter]
    fine_tuned: dict[str | Untrained, dict[str, Tensor]]
    peft: Any
    adapters: dict[str | Randomised, str]
    layers: dict[str, Any]
    silent: frozenset[str] = frozenset()
    rewritten: Mapping[str | Randomised, BaseValues] = field(default_factory=dict)

    def adapted(self, setting: Setting) -> list[str]:
        """The modules that a setting's adapters act on."""
        names = [self.adapters[adapter] for adapter, _ in setting.adapters]
        return [module for module, layer in self.layers.items() if acts(layer, names)]

    def only_adapter(self, setting: Setting) -> str | None:
        """peft's name of a setting's adapter; None where it has none or several."""
        names = [self.adapters[adapter] for adapter, _ in setting.adapters]
        return names[0] if len(names) == 1 else None

    @contextlib.contextmanager
    def of(self, setting: Setting) -> Iterator[None]:
        """The model's weights are those of `setting` while inside; the scales of an adapter that
        it has twice add up."""
        scales: dict[str, float] = {}
        for adapter, scale in setting.adapters:
            name = self.adapters[adapter]
            scales[name] = scales.get(name, 0.0) + scale
        with self.values_of(setting), active(self.layers, list(scales.items()), self.silent):
            yield

    def values_of(self, setting: Setting) -> contextlib.AbstractContextManager[None]:
        """The parameters hold the setting's values while inside: a backward pass must find those
        that its run found (autograd keeps parameters, not copies of them)."""
        return holding(self.parameters, self.values(setting))

    def check(self, setting: Setting) -> None:
        """A `SubjectError` where an adapter was mounted for other weights than those it acts on."""
        for adapter, _ in setting.adapters:
            if setting.model is not None and self.rewritten.get(adapter):
                raise SubjectError(
                    f"adapter {adapter} changes base's own weights, so that it cannot act on "
                    f"{setting.model}: merge it into a copy of that model"
                )

    def values(self, setting: Setting) -> BaseValues:
        """What parameters hold under a setting, where that is not what base has."""
        values = dict(self.fine_tuned[setting.model]) if setting.model else {}
        for adapter, _ in setting.adapters:
            for name, value in self.rewritten.get(adapter, {}).items():
                if name.rpartition(".")[0] not in self.silent:
                    values[name] = value
        return values


def matching(
    base: Mapping[str, Tensor], other: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    """The other model's tensors by the base's names; names and shapes must be the same."""
    if different := sorted(set(base) ^ set(other)):
        raise SubjectError(
            f"{name} is not of the base's architecture: {different[0]} is in one of them only"
        )
    for key, parameter in base.items():
        if parameter.shape != other[key].shape:
            shapes = f"{tuple(other[key].shape)}, the base's {tuple(parameter.shape)}"
            raise SubjectError(f"{name}: {key} has shape {shapes}")
    return {key: value.data for key, value in other.items()}
