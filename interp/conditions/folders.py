"""Adapter folders by the names that people give them, and what their configuration says.

    local_folder("org/name:checkpoint-500")    # downloaded once; the folder on this machine
    local_folder("runs/lora:checkpoint-500")   # "runs/lora/checkpoint-500"
    located(Lora("org/name"), revision="v2")   # the same condition, with its folder
    read_config("runs/lora")                   # adapter_config.json

Torch-free, and nothing but the hub is asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from interp.errors import ConditionError

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

_Part = TypeVar("_Part")


def local_folder(adapter: str, revision: str | None = None) -> str:
    """The folder on this machine of an adapter: a folder, a hub id, or either with `:subfolder`.

    What names nothing comes back as it is; a `ConditionError` says what the hub answered.
    """
    if Path(adapter).exists():
        return adapter
    whole, _, inside = adapter.rpartition(":") if ":" in adapter else (adapter, "", "")
    if Path(whole).exists():
        return str(Path(whole) / inside)
    if not _HUB_ID.fullmatch(whole) or ".." in Path(inside).parts:
        return adapter
    from huggingface_hub import snapshot_download  # takes half a second

    below = f"{inside.strip('/')}/" if inside else ""
    try:
        root = snapshot_download(
            whole, revision=revision, allow_patterns=[below + file for file in _FILES]
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConditionError(
            f"no adapter {adapter!r}: no such folder, and the hub answered: {reason[:200]}"
        ) from error
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
    if not path.is_file():
        below = sorted(str(file.parent.relative_to(folder)) for file in _nested(Path(folder)))
        hint = f"; write {folder}:FOLDER for one of {', '.join(below)}" if below else ""
        raise ConditionError(f"{folder} is not a peft adapter: it has no {CONFIG}{hint}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConditionError(f"adapter {folder} is damaged: {error}") from error
    return config if isinstance(config, dict) else {}


def _nested(root: Path) -> list[Path]:
    """Configurations one or two folders down, where trainers keep checkpoints."""
    return [*root.glob(f"*/{CONFIG}"), *root.glob(f"*/*/{CONFIG}")]


def beyond_lora(config: Mapping[str, Any]) -> str | None:
    """What an adapter has that a random LoRA of its size has not, as its configuration calls it;
    None of a plain LoRA."""
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        return f"type {kind}"
    if (init := config.get("init_lora_weights")) in REWRITING:
        return f"init_lora_weights={init}"
    return next((name for name in _BEYOND if config.get(name) and config[name] != "none"), None)
