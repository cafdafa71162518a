"""Faults that need no model, told before the imports that one needs.

refuse_early(settings)      # an InterpError, as the command itself would raise it later
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from interp.conditions import FineTuned, Lora, read_config, simple_parts
from interp.config import Experiment, OfRun, Settings, read_prompt
from interp.errors import ConfigError, SubjectError
from interp.queries import read_queries
from interp.runs.claiming import refuse_finished, refuse_unfinished
from interp.runs.files import read_manifest
from interp.untrusted import is_there

_ASKED = ("queries", "heldout", "pool")
_PROMPTS = ("prompt_file", "system_file")
_DONE = {"Distillation": "adapter_config.json", "Inversion": "invert.json"}
"""Settings -> the file that says that their result is there."""


def refuse_early(settings: Settings, *, new: bool = True) -> None:
    """Refuse files that are not there or cannot be read, and an `out` that is taken; `new`: the
    settings are of a run that is to be written there."""
    if isinstance(settings, OfRun):
        read_manifest(settings.run)
        return
    fields: dict[str, Any] = {name: getattr(settings, name, None) for name in (*_ASKED, *_PROMPTS)}
    for name in _ASKED:
        if fields[name] is not None:
            read_queries(fields[name])
    for name in _PROMPTS:
        for path in _each(fields[name]):
            read_prompt(path)
    if (model := getattr(settings, "model", None)) is not None:
        _check_folder(model)
    if isinstance(settings, Experiment):
        _check_conditions(settings)
        if new:
            given = {"resume": settings.resume, "overwrite": settings.overwrite}
            refuse_finished(settings.out, **given)
            refuse_unfinished(settings.out, **given)
    _refuse_done(settings)


def _refuse_done(settings: Any) -> None:
    """A `ConfigError` where `out` holds a result that nobody wants replaced."""
    file = _DONE.get(type(settings).__name__)
    if file and is_there(settings.out / file) and not settings.overwrite:
        raise ConfigError(
            f"{settings.out} holds a result; choose another --out or pass --overwrite"
        )


def _check_folder(model: str) -> None:
    """A `SubjectError` where a model is a folder that is not there, which no hub id looks like."""
    if (model[:1] in "./~" or model.count("/") > 1) and not is_there(Path(model)):
        raise SubjectError(f"no model {model!r}: no such folder")


def _each(given: Any) -> Iterator[Path]:
    yield from given if isinstance(given, tuple) else [given] if given is not None else []


def _check_conditions(experiment: Experiment) -> None:
    """A fault of the conditions themselves, or of a folder that they name."""
    for condition in experiment.build().values():
        for part in simple_parts(condition):
            if isinstance(part, Lora):
                read_config(part.adapter)
            elif isinstance(part, FineTuned):
                _check_folder(part.model)
