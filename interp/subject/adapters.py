"""Mounting LoRA adapters, and refusing those that peft would load although it should not.

peft only warns when an adapter's tensors find no place: the "LoRA" then equals the base model and
every divergence is a false zero. Here an adapter is mounted only when every tensor of its file
arrived, finite, where the file says, and nothing else was created.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file

from interp.conditions import Randomised
from interp.errors import SubjectError
from interp.subject.controls import random_like

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BASE_LAYER = ".base_layer."
"""Marks the tensors of an adapter file that are the base's."""


def mount(
    model: Any,
    adapters: Sequence[str | Randomised],
    base_name: str,
    *,
    allow_other_base: bool = False,
) -> tuple[Any, dict[str | Randomised, str]]:
    """Wrap `model` with all adapters; returns the peft model and adapter -> peft's name of it."""
    names: dict[str | Randomised, str] = {}
    own = dict(model.named_parameters())
    peft: Any = None
    for adapter in dict.fromkeys(adapters):
        folder = adapter if isinstance(adapter, str) else adapter.folder
        config, saved = read_adapter(folder, base_name, allow_other_base)
        tensors = _without_base(folder, saved, own)
        name = f"adapter_{len(names)}"
        with warnings.catch_warnings():  # what peft warns of is checked, and refused, below
            warnings.simplefilter("ignore")
            try:
                if peft is None:
                    peft = PeftModel.from_pretrained(model, folder, adapter_name=name)
                else:
                    peft.load_adapter(folder, name)
            except (RuntimeError, ValueError, TypeError, KeyError) as error:
                reason = " ".join(str(error).split())
                raise SubjectError(
                    f"adapter {folder} does not fit {base_name}: {reason}"
                ) from error
        _check_arrived(peft, name, folder, tensors)
        if isinstance(adapter, Randomised):
            _randomise_(peft, name, adapter, config, tensors)
        names[adapter] = name
    return peft, names


def _randomise_(
    peft: Any,
    name: str,
    adapter: Randomised,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Overwrite a mounted adapter by a random one with its norms."""
    for option in ("use_dora", "target_parameters"):
        if config.get(option):
            raise SubjectError(f"no random LoRA like {adapter.folder}: it has {option}")
    random = random_like(tensors, adapter.seed)
    for key, mounted in _mounted(peft, name).items():
        with torch.no_grad():
            mounted.copy_(random[key])
    _check_arrived(peft, name, adapter.folder, random)


def read_adapter(
    folder: str, base_name: str, allow_other_base: bool, types: Sequence[str] = ("LORA",)
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and tensors of a peft folder, refused where it is not what it should be."""
    root = Path(folder)
    if not (root / CONFIG).is_file():
        raise SubjectError(f"{folder} is not a peft adapter: it has no {CONFIG}")
    if not (root / WEIGHTS).is_file():
        pickled = (root / PICKLE).is_file()
        fix = "it is a pickle, which can run code: convert it to safetensors" if pickled else ""
        raise SubjectError(f"adapter {folder} has no {WEIGHTS}; {fix or 'save it again'}")
    try:
        config = json.loads((root / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(root / WEIGHTS)
    except (ValueError, SafetensorError) as error:
        raise SubjectError(f"adapter {folder} is damaged: {error}") from error
    config = config if isinstance(config, dict) else {}
    if (kind := config.get("peft_type")) not in types:
        raise SubjectError(f"adapter {folder} is of type {kind}, not {' or '.join(types)}")
    trained_on = config.get("base_model_name_or_path") or base_name
    if Path(trained_on).name != Path(base_name).name and not allow_other_base:
        raise SubjectError(
            f"adapter {folder} was made for {trained_on}, not {base_name}; "
            "pass --allow-other-base if they are the same weights"
        )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SubjectError(f"adapter {folder}: {name} has NaN or infinite values")
    return config, tensors


def _without_base(
    folder: str, tensors: dict[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The adapter's tensors without the base's embeddings.

    peft saves these along when a LoRA sits on them, and puts them into the model when it loads
    the adapter: they must be the model's own.
    """
    for key in [key for key in tensors if BASE_LAYER in key]:
        original = own.get(key.removeprefix("base_model.model.").replace(BASE_LAYER, "."))
        value = tensors[key]
        if original is None or not torch.equal(original.cpu(), value.to(original.dtype)):
            raise SubjectError(f"adapter {folder}: {key} is not what this model has there")
    return {key: tensor for key, tensor in tensors.items() if BASE_LAYER not in key}


def _mounted(peft: Any, name: str) -> dict[str, torch.Tensor]:
    """The live tensors of a mounted adapter, by the keys of its file."""
    return get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False)


def _check_arrived(peft: Any, name: str, folder: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Every tensor of the file is mounted, equal, and no other was created."""
    mounted = _mounted(peft, name)
    missing, extra = sorted(set(mounted) - set(tensors)), sorted(set(tensors) - set(mounted))
    if missing or extra:
        raise SubjectError(
            f"adapter {folder} does not fit this model: "
            f"{len(missing)} tensors it needs are missing{_first(missing)}, "
            f"{len(extra)} of its tensors have no place{_first(extra)}"
        )
    for key, tensor in tensors.items():
        if not torch.equal(mounted[key].cpu().to(tensor.dtype), tensor):
            raise SubjectError(f"adapter {folder}: {key} was not loaded as it is in the file")


def _first(keys: list[str]) -> str:
    return f" (first: {keys[0]})" if keys else ""


def tuner_layers(peft: Any) -> dict[str, Any]:
    """The modules that switch between adapters, by their Hugging Face names; none without adapters.

    To be asked before the model is hooked, which renames some of them.
    """
    kinds = (LoraLayer, AuxiliaryTrainingWrapper)
    named = peft.named_modules() if peft else ()
    return {
        name.removeprefix("base_model.model."): module
        for name, module in named
        if isinstance(module, kinds)
    }


def acts(layer: Any, names: Collection[str]) -> bool:
    """Whether one of these adapters does something in a module."""
    if isinstance(layer, AuxiliaryTrainingWrapper):
        return bool(set(names) & set(layer._adapters))
    return bool(set(names) & set(layer.scaling))


@contextmanager
def active(
    layers: Mapping[str, Any], adapters: list[tuple[str, float]], silent: Collection[str] = ()
) -> Iterator[None]:
    """Only these (name, scale) adapters act while inside, but for the modules in `silent`; none
    when the list is empty.

    `layers` is `tuner_layers(peft)`. Afterwards scales are what they were; which adapters act stays
    until the next use, so that a run of uses of one state costs nothing (peft's own switches walk
    the whole model each time: two thirds of a study with six adapters).
    """
    for module, layer in layers.items():
        _switch(layer, [] if module in silent else [name for name, _ in adapters])
    scaled = [layer for layer in layers.values() if isinstance(layer, LoraLayer)]
    before = [dict(layer.scaling) for layer in scaled]
    try:
        for layer in scaled:
            for name, scale in adapters:
                if name in layer.scaling:
                    layer.scaling[name] *= scale
        yield
    finally:
        for layer, scaling in zip(scaled, before, strict=True):
            layer.scaling.update(scaling)


def _switch(layer: Any, names: list[str]) -> None:
    """A wrapped copy of a module acts for the adapters that brought one; a LoRA layer for all."""
    if isinstance(layer, AuxiliaryTrainingWrapper):
        names = [name for name in names if name in layer._adapters]
    if layer.disable_adapters == bool(names):
        layer.enable_adapters(bool(names))
    if names and list(layer.active_adapters) != names:
        layer.set_adapter(names, inference_mode=True)
