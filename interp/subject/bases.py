"""Is the base that an adapter names the model that it is to act on?

    relation("unsloth/Llama-3.2-1B-bnb-4bit", "meta-llama/Llama-3.2-1B")    # SAME: a twin of it
    relation("org/other", "meta-llama/Llama-3.2-1B")                        # OTHER
    relation("C:\\\\models\\\\mine", "meta-llama/Llama-3.2-1B")                 # UNKNOWN

A name on the hub tells; a folder of the trainer's machine does not, unless it is here as well. What
is unknown is compared by shape, since every tensor of an adapter must find its place.
"""

from __future__ import annotations

import hashlib
import os
import re
from enum import Enum
from pathlib import Path

from interp.conditions import hub_name, read_config
from interp.untrusted import is_there

_QUANTISED = re.compile(
    r"([-_.](unsloth|bnb|\d+-?bit|int\d|nf4|fp\d+|bf16|gptq|awq|hqq|gguf|mlx|w\d+a\d+|dynamic))+$"
)
"""What the name of a quantised or converted twin adds to that of its model."""

_PATH = re.compile(r"[/\\.~].*|[A-Za-z]:.*|.*\\.*|.*/.*/.*")
"""A folder's name, which no hub id looks like."""

BaseMatch = Enum("BaseMatch", ["SAME", "UNKNOWN", "OTHER"])


def relation(trained_on: str, base: str) -> BaseMatch:
    """Of the base that an adapter names to the model that it is to act on."""
    if _model_name(trained_on) == _model_name(base):
        return BaseMatch.SAME
    if not _PATH.fullmatch(trained_on) or hub_name(trained_on):
        return BaseMatch.OTHER
    there, here = (_weights(folder) for folder in (trained_on, base))
    if os.path.isabs(trained_on) and there and here:
        return BaseMatch.SAME if _equal(there, here) else BaseMatch.OTHER
    return BaseMatch.UNKNOWN


def doubt(folder: str, base: str) -> str | None:
    """A note on an adapter that names its base by a folder which tells nothing."""
    trained_on = read_config(folder).get("base_model_name_or_path")
    if not trained_on or relation(trained_on, base) is not BaseMatch.UNKNOWN:
        return None
    return (
        f"adapter {folder} was made for {trained_on}, which may be another model than {base}: its "
        "tensors have the right shapes, and nothing more is known"
    )


def _model_name(model: str) -> str:
    """The last part of a hub id or of a folder (POSIX or Windows), without what a twin adds."""
    model = os.path.abspath(model) if os.path.isfile(f"{model}/config.json") else model
    last = re.split(r"[/\\]", (hub_name(model) or model).rstrip("/\\"))[-1]
    return _QUANTISED.sub("", last.lower()).removeprefix("meta-")


def _weights(folder: str) -> dict[str, Path]:
    """A model folder's weight files by name."""
    root = Path(folder)
    return {f.name: f for f in sorted(root.glob("*.safetensors"))} if is_there(root) else {}


def _equal(a: dict[str, Path], b: dict[str, Path]) -> bool:
    """Whether weight files are the same, to the byte."""
    if a.keys() != b.keys() or any(a[n].stat().st_size != b[n].stat().st_size for n in a):
        return False
    return all(_sha256(a[name]) == _sha256(b[name]) for name in a)


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
