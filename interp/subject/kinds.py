"""Which models can be measured: those that predict a text's next token, told by configuration.

    check_kind("t5-small")      # SubjectError: t5-small is an encoder-decoder (...); only ...

Nothing but configuration files is read, and nothing is ever installed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

from interp.errors import SubjectError

_CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
_WITH_IMAGES = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
_MASKED = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
"""transformers' model types of three tasks."""

_DIFFUSION = ("diffusion", "llada", "dream", "sdar", "bd3lm")
"""In the name of a type or class: a diffusion language model."""

_TAKEN = "only models that predict a token from those before it can be measured"


def check_kind(model: str, **hub: Any) -> None:
    """A `SubjectError` for a model of another kind, or of an architecture that cannot be hooked.

    A configuration that cannot be read passes: what is wrong with it, the tokenizer or the weights
    will say.
    """
    _check_file(model, hub.get("gguf_file"))
    try:
        fields, _ = PreTrainedConfig.get_config_dict(model, **hub)
    except Exception:
        return
    _check_decoder(model, fields)
    try:
        config = AutoConfig.from_pretrained(model, **hub)
    except Exception:
        return
    _check_hooked(model, _named(fields), config)


def check_config(model: str, architecture: str, config: Any) -> None:
    """The same of a model in memory: its class, and its configuration."""
    _check_decoder(model, {**config.to_dict(), "architectures": [architecture]})
    _check_hooked(model, architecture, config)


def _check_decoder(model: str, fields: Mapping[str, Any]) -> None:
    if kind := other_kind(fields):
        raise SubjectError(f"{model} is {kind} ({_named(fields)}); {_TAKEN}")


def _check_hooked(model: str, architecture: str, config: Any) -> None:
    if reason := _unhooked(config):
        raise SubjectError(f"{model} ({architecture}) cannot be hooked: {reason}")


def other_kind(fields: Mapping[str, Any]) -> str:
    """What a configuration describes where it is no decoder of text; "" where it may be one."""
    kind, names = str(fields.get("model_type", "")), fields.get("architectures") or []
    known = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING_NAMES else None
    said = [kind.lower(), *map(str.lower, names)]
    if any(name.startswith(_DIFFUSION) or "diffusion" in name for name in said):
        return "a diffusion language model"
    if fields.get("is_encoder_decoder", getattr(known, "is_encoder_decoder", False)):
        return "an encoder-decoder"
    if kind in _MASKED and not fields.get("is_decoder", False):
        return "a masked language model"
    if known is None or "auto_map" in fields or kind in _CAUSAL or kind in _WITH_IMAGES:
        return ""
    return "no text decoder"


def _named(fields: Mapping[str, Any]) -> str:
    """The class that a configuration names, or its type."""
    return str((fields.get("architectures") or [fields.get("model_type")])[0])


def auto_class(config: Any) -> Any:
    """The automatic class that opens a model: a wrapper of text and images is opened whole, since
    its adapters name its modules so; only text is ever put into it."""
    if config.model_type in _WITH_IMAGES and config.model_type not in _CAUSAL:
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _unhooked(config: Any) -> str:
    """Why TransformerBridge cannot hook an architecture; "" where it may."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources._hf_format import (
        determine_architecture_from_hf_config,
    )

    config, mapping = copy.copy(config), auto_class(config)._model_mapping
    if type(config) in mapping:
        config.architectures = [mapping[type(config)].__name__]
    try:
        adapter = SUPPORTED_ARCHITECTURES[determine_architecture_from_hf_config(config)]
    except ValueError:
        return "TransformerBridge does not know it"
    libraries = getattr(adapter, "required_libraries", [])
    missing = [name for name in libraries if find_spec(name) is None]
    return f"TransformerBridge needs {' and '.join(missing)} for it" if missing else ""


def _check_file(model: str, file: str | None) -> None:
    """A `SubjectError` where a GGUF file is asked for that cannot be read."""
    if file is None:
        return
    if find_spec("gguf") is None:
        raise SubjectError("--gguf-file needs the package gguf: pip install gguf")
    root = Path(model)
    if root.is_dir() and not (root / file).is_file():
        there = ", ".join(sorted(path.name for path in root.glob("*.gguf")))
        raise SubjectError(f"{model} has no file {file}; its GGUF files: {there or 'none'}")
