"""Adapter folders as peft writes them: read, checked, and made ready for peft to mount.

    with source_of("adapters/opposite", 1.0, "gpt2", allow_other_base=False) as source:
        PeftModel.from_pretrained(hf, source.folder)

A pickle is never opened, and a type of adapter that cannot be measured is refused by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from interp.conditions import CONFIG, REWRITING, Randomised, beyond_lora, read_config
from interp.errors import ConditionError, SubjectError
from interp.subject.bases import BaseMatch, relation
from interp.subject.controls import random_like

WEIGHTS_FILE, PICKLE_FILE = "adapter_model.safetensors", "adapter_model.bin"

Adapter = str | Randomised
"""An adapter folder, or the random adapter that is like one."""

UNMEASURED = {
    "ADAPTION_PROMPT": "it adds keys inside attention, where no hook sees them",
    "CPT": "its virtual tokens stand for tokens of one prompt: save it as PROMPT_TUNING",
    "LILY": "it mixes its parts by the mean over all tokens of a run",
    "MULTITASK_PROMPT_TUNING": "it is told a task with every query: save one task as PROMPT_TUNING",
    "POLY": "it is told a task with every query",
    "SHADOW": "it runs a second model beside the first",
    "XLORA": "it runs the model once more to weigh other adapters: give these one by one",
}
"""Types of peft that do more than the modules that they sit on -> why they are not measured."""

VIRTUAL = {
    "CARTRIDGE": "prefix",
    "PREFIX_TUNING": "prefix",
    "PROMPT_TUNING": "soft_prompt",
    "P_TUNING": "soft_prompt",
}
"""Types that are virtual tokens -> the kind of condition that they are."""

MOUNTED = {kind.value for kind in PEFT_TYPE_TO_TUNER_MAPPING} - UNMEASURED.keys() - VIRTUAL.keys()
"""Types that peft mounts on a model's modules."""

ALPHAS = {
    "LORA": "lora_alpha", "ADALORA": "lora_alpha", "LOHA": "alpha", "LOKR": "alpha",
    "GRALORA": "alpha", "RANDLORA": "randlora_alpha", "FOURIERFT": "scaling", "WAVEFT": "scaling",
    "PEANUT": "scaling",
}  # fmt: skip
"""Type -> the field of its configuration that its effect is proportional to; no other has one."""

REFUSED = {
    "alora_invocation_tokens": "it is an aLoRA, which acts only after its invocation tokens, and "
    "conditions are not aligned to these yet",
    "megatron_config": "it is of Megatron's parallel layers, which peft would import by name",
    "arrow_config": "it is an Arrow router, which acts through the adapters mounted beside it",
    "layer_replication": "it replicates layers, so that its layers are not those of base",
    "sample_at_inference": "it draws other weights in every run",
}
"""Options by which an adapter does more than the modules that it sits on -> why not."""

_LOST = re.compile("corda|lora_ga|pissa_niter_.*")
"""Values of `init_lora_weights` whose start follows from data or from chance: taken out of base's
weights in training, it is not in the folder."""


class AdapterSource(NamedTuple):
    """What peft is to mount: the `folder` it reads, and the folder that people know (`shown`)."""

    shown: str
    folder: str
    config: Mapping[str, Any]
    tensors: Mapping[str, torch.Tensor]


def folder_of(adapter: Adapter) -> str:
    """The folder that an adapter is read from."""
    return adapter if isinstance(adapter, str) else adapter.folder


@contextmanager
def source_of(
    adapter: Adapter, scale: float, base_name: str, allow_other_base: bool
) -> Iterator[AdapterSource]:
    """The folder of an adapter as peft reads it.

    A folder at scale 1 is itself. Everything else is saved as a folder of its type while inside: a
    scale multiplies its alpha and every `alpha_pattern`, a random LoRA has its own tensors.
    """
    shown = folder_of(adapter)
    config, tensors = read_adapter(shown, base_name, allow_other_base)
    _check_measured(shown, config, scale)
    if isinstance(adapter, str) and scale == 1:
        yield AdapterSource(shown, shown, config, tensors)
        return
    if isinstance(adapter, Randomised):
        tensors = _random(adapter, config, tensors)
    with TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(_scaled(config, scale)), encoding="utf-8")
        save_file(tensors, Path(folder) / WEIGHTS_FILE)
        yield AdapterSource(shown, folder, config, tensors)


def _check_measured(folder: str, config: Mapping[str, Any], scale: float) -> None:
    """What is known from a configuration alone to be something that is not measured."""
    for option, reason in REFUSED.items():
        if config.get(option):
            raise SubjectError(f"adapter {folder} cannot be measured: {reason}")
    if _LOST.fullmatch(init := str(config.get("init_lora_weights"))):
        raise SubjectError(
            f"adapter {folder} cannot be measured: init_lora_weights={init} took a start out of "
            "base's weights that is not in the folder; convert it to a plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if scale != 1 and config["peft_type"] not in ALPHAS:
        raise SubjectError(
            f"adapter {folder} is of type {config['peft_type']}, which has no scale: write scale 1"
        )


def rewrites(config: Mapping[str, Any]) -> bool:
    """Whether peft changes the weights below an adapter of this configuration to mount it."""
    return config.get("init_lora_weights") in REWRITING or bool(config.get("kasa_config"))


def _scaled(config: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """A configuration whose updates are `scale` times as large."""
    kind = config["peft_type"]
    field = ALPHAS[kind]
    alpha = config.get(field, getattr(PEFT_TYPE_TO_CONFIG_MAPPING[kind], field))
    pattern = config.get("alpha_pattern") or {}
    try:
        patterns = {module: own * scale for module, own in pattern.items()}
        scaled = alpha * scale
    except (AttributeError, TypeError) as error:
        raise SubjectError(f"an adapter with {field} {alpha!r} has no scale ({error})") from error
    return {**config, field: scaled, **({"alpha_pattern": patterns} if pattern else {})}


def _random(
    adapter: Randomised, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The tensors of a random adapter with the norms of the one in its folder."""
    if unlike := beyond_lora(config):
        raise SubjectError(
            f"no random LoRA like {adapter.folder}: it has {unlike}, and only a plain LoRA has one"
        )
    return random_like(tensors, adapter.seed)


def read_adapter(
    folder: str, base_name: str, allow_other_base: bool, types: Collection[str] = MOUNTED
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and tensors of a peft folder, refused where it is not what it should be."""
    try:
        config = read_config(folder)
    except ConditionError as error:
        raise SubjectError(str(error)) from error
    root = Path(folder)
    if not (root / WEIGHTS_FILE).is_file():
        pickled = (root / PICKLE_FILE).is_file()
        fix = "it is a pickle, which can run code: convert it to safetensors" if pickled else ""
        raise SubjectError(f"adapter {folder} has no {WEIGHTS_FILE}; {fix or 'save it again'}")
    try:
        tensors = load_file(root / WEIGHTS_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise SubjectError(f"adapter {folder} is damaged: {error}") from error
    if (kind := config.get("peft_type")) not in types:
        raise SubjectError(f"adapter {folder} is of type {kind}: {_wrong_type(kind, types)}")
    trained_on = config.get("base_model_name_or_path") or base_name
    if relation(trained_on, base_name) is BaseMatch.OTHER and not allow_other_base:
        raise SubjectError(
            f"adapter {folder} was made for {trained_on}, not {base_name}; "
            "pass --allow-other-base if they are the same weights"
        )
    tensors = {name: _readable(tensor) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise SubjectError(f"adapter {folder}: {name} has NaN or infinite values")
    return config, tensors


def _wrong_type(kind: Any, types: Collection[str]) -> str:
    """What stands against a type of adapter where others are wanted."""
    if kind in UNMEASURED:
        return f"{UNMEASURED[kind]}; it cannot be measured"
    if kind in VIRTUAL and types is MOUNTED:
        return (
            f"it is virtual tokens, write it as the condition `{VIRTUAL[kind]}: {{adapter: ...}}`"
        )
    known = "a type that this peft mounts" if types is MOUNTED else " or ".join(types)
    return f"it is not {known}"


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """A float8 tensor in float32, which holds all of its values; any other as it is."""
    eight_bits = tensor.is_floating_point() and tensor.element_size() == 1
    return tensor.float() if eight_bits else tensor
