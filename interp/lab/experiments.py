"""Whole studies: of an experiment, or of a lab's conditions with the model that the lab has.

diverge(lab, "queries.jsonl", "RUN", bootstrap=500)
experiment_of(lab, "queries.jsonl", "RUN", {"bootstrap": 500}).build() == dict(lab.conditions)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from pydantic import ValidationError

from interp.config import Experiment, Framing, explain, write_condition
from interp.design import BASE
from interp.errors import ConfigError
from interp.progress import Progress, no_progress
from interp.queries import Query
from interp.runs.files import write_atomic
from interp.study import run_study

if TYPE_CHECKING:
    from interp.lab import Lab

DECIDED = {"model", "conditions", "adapter", "prompt_file", "system_file", "separator", "controls"}
"""What of an experiment a lab has decided already, beside how its model is loaded and framed."""


@overload
def diverge(study: Experiment, progress: Progress = no_progress) -> Path: ...


@overload
def diverge(
    study: Lab,
    queries: str | Path | Iterable[str | Query],
    out: str | Path,
    progress: Progress = no_progress,
    **fields: Any,
) -> Path: ...


def diverge(study: Experiment | Lab, *given: Any, **named: Any) -> Path:
    """Run an experiment, or that of a lab's conditions on `queries` with the model that the lab
    has; returns its folder, `out`.

    Of a lab, `queries` is a JSONL file, or texts, which are written into one; `fields` are those of
    an `Experiment`. No controls are added: those that are wanted are conditions of the lab. Raises
    what `interp.study.run_study` raises, each with one line that says what to do."""
    if isinstance(study, Experiment):
        return run_study(study, *given, **named)
    if not hasattr(study, "conditions"):
        raise ConfigError(f"diverge runs an Experiment or a Lab, not {type(study).__name__}")
    return _diverge_lab(study, *given, **named)


def _diverge_lab(
    lab: Lab,
    queries: str | Path | Iterable[str | Query],
    out: str | Path,
    progress: Progress = no_progress,
    **fields: Any,
) -> Path:
    experiment = lab.experiment(queries, out, **fields)
    own = replace(lab.subject, settings=dict(lab.subject.settings))  # fitted biases go in there
    return run_study(experiment, progress, own)


def experiment_of(
    lab: Lab,
    queries: str | Path | Iterable[str | Query],
    out: str | Path,
    fields: Mapping[str, Any],
) -> Experiment:
    """A `ConfigError` of a model in memory, which no run could name, and of fields that the lab has
    decided. Queries that are no file are written beside `out`, as `OUT.jsonl`."""
    if lab.path is None:
        raise ConfigError(
            "a run names the files that it was made from: save the model and its tokenizer "
            "(save_pretrained), and open the lab from their folder"
        )
    framed = Framing.model_fields.keys() - {"answer_tokens", "temperature"}
    if decided := sorted(fields.keys() & (DECIDED | framed)):
        raise ConfigError(f"{decided[0]} was decided when the lab was loaded: load another for it")
    specs: dict[str, Any] = {}
    for name, condition in lab.conditions.items():
        if name != BASE:
            specs[name] = write_condition(name, condition, lab.conditions)
    given = {"conditions": specs, "controls": (), "out": Path(out), **fields}
    options = lab.options.model_dump(exclude_defaults=True)
    try:
        return Experiment.model_validate(
            {"model": lab.path, "queries": _file(queries, given), **options, **given}
        )
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def _file(queries: str | Path | Iterable[str | Query], given: Mapping[str, Any]) -> Path:
    if isinstance(queries, str | Path):
        return Path(queries)
    asked = [one if isinstance(one, Query) else Query(one) for one in queries]
    lines = [json.dumps(_line(query), ensure_ascii=False) for query in asked]
    content = "".join(f"{line}\n" for line in lines).encode()
    file = given["out"].with_name(f"{given['out'].name}.jsonl")
    if file.exists() and file.read_bytes() != content and not given.get("overwrite"):
        raise ConfigError(f"{file} holds other queries: choose another out, or overwrite=True")
    write_atomic(file, content)
    return file


def _line(query: Query) -> dict[str, Any]:
    """A query as `read_queries` reads it."""
    said = {name: value for name, value in asdict(query).items() if value}
    if query.messages:
        said.pop("text")
    return said
