"""Mounting LoRA adapters, and refusing those that peft would load although it should not.

peft only warns when an adapter's tensors find no place: the "LoRA" then equals the base model and
every divergence is a false zero. Here an adapter is mounted only when every tensor of its file
arrived, finite, where the file says, and nothing else was created.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from peft.utils.other import AuxiliaryTrainingWrapper
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from interp.conditions import Randomised
from interp.errors import SubjectError
from interp.subject.controls import random_like

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BASE_LAYER = ".base_layer."
"""Marks the tensors of an adapter file that are the base's."""


Adapter = str | Randomised
"""An adapter folder, or the random adapter that is like one."""

REFUSED = {
    "alora_invocation_tokens": "it is an aLoRA, which acts only after its invocation tokens, and "
    "conditions are not aligned to these yet",
    "arrow_config": "it is an Arrow router, which acts through the adapters mounted beside it",
    "layer_replication": "it replicates layers, so that its layers are not those of base",
}
"""LoRA options by which an adapter does more than the modules that it sits on -> why not."""


class Source(NamedTuple):
    """What peft is to mount: the `folder` it reads, and the folder that people know (`shown`)."""

    shown: str
    folder: str
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


def mount(
    model: Any,
    adapters: Iterable[tuple[Adapter, float]],
    base_name: str,
    *,
    allow_other_base: bool = False,
    check: Callable[[Source], None] = lambda _: None,
) -> tuple[Any, list[str]]:
    """Wrap `model` with (adapter, scale) pairs; returns the peft model and peft's name of each.

    `check` sees every adapter once it is mounted.
    """
    own, rows = dict(model.named_parameters()), _embeddings(model)
    peft: Any = None
    names: list[str] = []
    for adapter, scale in adapters:
        name = f"adapter_{len(names)}"
        with source_of(adapter, scale, base_name, allow_other_base) as source:
            _check_rows(source, rows, base_name)
            tensors = _without_base(source.shown, source.tensors, own)
            with fitting(f"adapter {source.shown} does not fit {base_name}"):
                if peft is None:
                    peft = PeftModel.from_pretrained(model, source.folder, adapter_name=name)
                else:
                    peft.load_adapter(source.folder, name)
        _check_arrived(peft, name, source.shown, tensors)
        check(source)
        names.append(name)
    return peft, names


@contextmanager
def fitting(fault: str) -> Iterator[None]:
    """peft's refusals inside are one line that begins with `fault`; its warnings are about what is
    checked, and refused, here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (RuntimeError, ValueError, TypeError, KeyError) as error:
        raise SubjectError(f"{fault}: {' '.join(str(error).split())}") from error


@contextmanager
def source_of(
    adapter: Adapter, scale: float, base_name: str, allow_other_base: bool
) -> Iterator[Source]:
    """The folder of an adapter as peft reads it.

    A folder at scale 1 is itself. Everything else is saved as a plain LoRA folder while inside: a
    scale multiplies `lora_alpha` and every `alpha_pattern`, a random LoRA has its own tensors.
    """
    shown = adapter if isinstance(adapter, str) else adapter.folder
    config, tensors = read_adapter(shown, base_name, allow_other_base)
    for option, reason in REFUSED.items():
        if config.get(option):
            raise SubjectError(f"adapter {shown} cannot be measured: {reason}")
    if isinstance(adapter, str) and scale == 1:
        yield Source(shown, shown, config, tensors)
        return
    if isinstance(adapter, Randomised):
        tensors = _random(adapter, config, tensors)
    with TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(_scaled(config, scale)), encoding="utf-8")
        save_file(tensors, Path(folder) / WEIGHTS)
        yield Source(shown, folder, config, tensors)


def _scaled(config: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """A LoRA configuration whose updates are `scale` times as large."""
    alpha = config.get("lora_alpha", LoraConfig.lora_alpha)
    pattern = config.get("alpha_pattern") or {}
    scaled = {"lora_alpha": alpha * scale}
    scaled["alpha_pattern"] = {module: own * scale for module, own in pattern.items()}
    return {**config, **scaled}


def _random(
    adapter: Randomised, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of a random adapter with the norms of the one in its folder."""
    for option in ("use_dora", "target_parameters"):
        if config.get(option):
            raise SubjectError(f"no random LoRA like {adapter.folder}: it has {option}")
    return random_like(tensors, adapter.seed)


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


def _embeddings(model: Any) -> dict[str, int]:
    """Parameters with a row per token -> how many rows they have."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    theirs = {id(layer.weight) for layer in layers if layer is not None}
    named = model.named_parameters(remove_duplicate=False)
    return {name: len(parameter) for name, parameter in named if id(parameter) in theirs}


def _check_rows(source: Source, rows: Mapping[str, int], base_name: str) -> None:
    """Embeddings that an adapter brings, or sits on, have as many rows as the model's."""
    for key, tensor in source.tensors.items():
        module, _, factor = key.removeprefix("base_model.model.").partition(".lora_embedding_")
        name = f"{module}.weight" if factor else module.replace(BASE_LAYER, ".")
        if name not in rows or factor == "B":
            continue
        if (found := tensor.shape[1 if factor else 0]) != rows[name]:
            raise SubjectError(
                f"adapter {source.shown} has {found} rows in {name}, {base_name} has {rows[name]}: "
                "it was trained on resized embeddings; save the model with its embeddings resized, "
                "and give that as the model"
            )


def _without_base(
    folder: str, tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
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
