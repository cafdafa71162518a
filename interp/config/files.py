"""An experiment as a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from interp.config.experiment import Experiment
from interp.config.parsing import explain
from interp.errors import ConfigError
from interp.untrusted import is_there, read_yaml

FILE_ONLY = {"conditions", "families", "frame"}
"""Fields that a YAML file has and the command line has not."""


def from_yaml(path: Path) -> dict[str, Any]:
    """The validated fields of a YAML experiment; its relative paths are looked up beside it first.

    Fields that the file leaves out are not in the result: flags may still give them.
    """
    try:
        written = read_yaml(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(written, dict):
        raise ConfigError(f"{path}: write fields like `model: gpt2`")
    located = {key: _beside(path.parent, key, value) for key, value in written.items()}
    required = {name: "-" for name, f in Experiment.model_fields.items() if f.is_required()}
    try:
        checked = Experiment.model_validate({**required, **located})
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Experiment.model_fields)}") from error
    return {name: getattr(checked, name) for name in located}


_PATHS = {
    "model", "queries", "out", "adapter", "prompt_file", "system_file", "heldout", "file",
    "conditions", "vector", "tokenizer",
}  # fmt: skip


def _beside(folder: Path, key: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _beside(folder, k, v) for k, v in value.items()}
    if isinstance(value, list):
        return [_beside(folder, key, item) for item in value]
    if key in _PATHS and isinstance(value, str):
        whole = value.rpartition(":")[0] if key == "adapter" else ""  # of `adapter:subfolder`
        if is_there(folder / value) or (whole and is_there(folder / whole)):
            return str(folder / value)
    return value
