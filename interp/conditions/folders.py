"""Adapter folders by the names that people give them, and what their configuration says.

    local_folder("org/name:checkpoint-500")    # downloaded once; the folder on this machine
    local_folder("runs/lora:checkpoint-500")   # "runs/lora/checkpoint-500"
    located(Lora("org/name"), revision="v2")   # the same condition, with its folder
    read_config("runs/lora")                   # adapter_config.json

Torch-free, and nothing but the hub is asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from interp.errors import ConditionError
from interp.hub import asked_in_vain, refusal
from interp.untrusted import is_there, read_json

CONFIG = "adapter_config.json"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_SNAPSHOT = re.compile(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots[/\\][0-9a-f]+[/\\]?(.*)$")
"""A hub id's folder in the hub's cache."""

_FILES = ("adapter_*", "tokenizer*", "special_tokens_map.json", "chat_template.jinja")
"""What is fetched of an adapter on the hub."""

REWRITING = ("pissa", "olora", "loftq")
"""Values of `init_lora_weights` by which peft takes a LoRA's start out of base's weights, and takes
it out again when it loads the folder."""

_BEYOND = (
    "use_dora", "target_parameters", "kasa_config", "lora_bias", "bias", "modules_to_save",
    "trainable_token_indices",
)  # fmt: skip
"""Options by which a LoRA is more than the product of two factors per module."""

_PATTERNS = ("target_modules", "exclude_modules", "layers_pattern", "target_parameters")
"""Fields that are a regular expression where they are one text."""

_Part = TypeVar("_Part")


def local_folder(adapter: str, revision: str | None = None) -> str:
    """The folder on this machine of an adapter: a folder, a hub id, or either with `:subfolder`.

    What names nothing comes back as it is; a `ConditionError` says what the hub answered.
    """
    if is_there(Path(adapter)):
        return adapter
    whole, _, inside = adapter.rpartition(":") if ":" in adapter else (adapter, "", "")
    if is_there(Path(whole)):
        return str(Path(whole) / inside)
    if not _HUB_ID.fullmatch(whole) or ".." in Path(inside).parts:
        return adapter
    if reason := refusal(whole, revision):
        raise ConditionError(f"no adapter {adapter!r}: {reason}")
    from huggingface_hub import snapshot_download  # takes half a second

    below = f"{inside.strip('/')}/" if inside else ""
    try:
        root = snapshot_download(
            whole, revision=revision, allow_patterns=[below + file for file in _FILES]
        )
    except (OSError, ValueError) as error:
        reason = asked_in_vain(whole, error, revision) or " ".join(str(error).split())[:200]
        raise ConditionError(f"no adapter {adapter!r}: {reason}") from error
    return str(Path(root) / inside)


def located(part: _Part, revision: str | None = None) -> _Part:
    """A condition, or a part of one, with the folder on this machine of every adapter in it."""
    if isinstance(part, tuple):
        return cast("_Part", tuple(located(each, revision) for each in part))
    if not is_dataclass(part) or isinstance(part, type):
        return part
    found = {field.name: located(getattr(part, field.name), revision) for field in fields(part)}
    if isinstance(adapter := found.get("adapter"), str):
        found["adapter"] = local_folder(adapter, revision)
    return replace(part, **found)


def hub_name(folder: str) -> str | None:
    """The hub id (`org/name`, or `org/name:subfolder`) of a folder in the hub's cache."""
    if found := _SNAPSHOT.search(folder):
        owner, name, inside = found.groups()
        return f"{owner}/{name}:{inside}" if inside else f"{owner}/{name}"
    return None


def adapter_name(folder: str) -> str:
    """An adapter's name for people: its hub id, or its folder's last name."""
    return hub_name(folder) or Path(folder).name


def type_of(folder: str) -> str:
    """An adapter's type for people: LoRA, or as peft calls any other; LoRA of an unread folder."""
    try:
        kind = read_config(folder).get("peft_type", "LORA")
    except (ConditionError, OSError):
        kind = "LORA"
    return "LoRA" if kind == "LORA" else str(kind)


def read_config(folder: str) -> dict[str, Any]:
    """The configuration of an adapter folder; a `ConditionError` where it has none."""
    path = Path(folder) / CONFIG
    if not is_there(path):
        below = sorted(str(file.parent.relative_to(folder)) for file in _nested(Path(folder)))
        hint = f"; write {folder}:FOLDER for one of {', '.join(below)}" if below else ""
        raise ConditionError(f"{folder} is not a peft adapter: it has no {CONFIG}{hint}")
    try:
        config = read_json(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError(f"{CONFIG} has no fields")
    except (OSError, ValueError) as error:
        raise ConditionError(f"adapter {folder} is damaged: {error}") from error
    _check_config(folder, config)
    return config


def _check_config(folder: str, config: Mapping[str, Any]) -> None:
    """A `ConditionError` where a field that is read here, or by peft as a pattern, is no such
    thing."""
    for name in ("peft_type", "base_model_name_or_path"):
        if not isinstance(config.get(name), str | None):
            raise ConditionError(f"adapter {folder}: {name} is {config[name]!r}, not a text")
    named = ((name, config.get(name)) for name in _PATTERNS)
    patterns = [(name, found) for name, found in named if isinstance(found, str)]
    patterns += [(n, p) for n in ("rank_pattern", "alpha_pattern") for p in config.get(n) or ()]
    for name, pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError, TypeError) as error:
            raise ConditionError(
                f"adapter {folder}: {name} {str(pattern)[:60]!r} is no regular expression ({error})"
            ) from error


def _nested(root: Path) -> list[Path]:
    """Configurations one or two folders down, where trainers keep checkpoints."""
    if not is_there(root):
        return []
    return [*root.glob(f"*/{CONFIG}"), *root.glob(f"*/*/{CONFIG}")]


def beyond_lora(config: Mapping[str, Any]) -> str | None:
    """What an adapter has that a random LoRA of its size has not, as its configuration calls it;
    None of a plain LoRA."""
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        return f"type {kind}"
    if (init := config.get("init_lora_weights")) in REWRITING:
        return f"init_lora_weights={init}"
    return next((name for name in _BEYOND if config.get(name) and config[name] != "none"), None)
