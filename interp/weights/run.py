"""Weights and prompts in one currency: `interp weights` on a finished run.

    weigh(Weighing(run="RUN"))          # RUN/weights.parquet, findings in its manifest

The run says which model, conditions and queries. `interp.report.write` then draws what was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from interp.answers import encode_again
from interp.conditions import Condition, Neutral, ShuffledTokens, simple_parts
from interp.design import BASE
from interp.errors import ConfigError
from interp.measures import DTYPE_NOISE
from interp.preparing import open_subject, read_groups, reopen
from interp.progress import Progress, no_progress
from interp.queries import Encoded
from interp.runs.files import add_weights, as_table
from interp.runs.view import load_run
from interp.store import Store
from interp.subject import Subject
from interp.subject.loading import threads_for
from interp.weights import prompted
from interp.weights.measured import alike, measure_updates
from interp.weights.settings import Weighing

__all__ = ["weigh"]

_FEWEST = 4
"""Queries whose updates can be compared, leaving one out."""


class _Found(NamedTuple):
    """What one stage leaves: rows of the run's table, entries of its manifest, notes."""

    table: pd.DataFrame
    entries: dict[str, Any]
    notes: list[str]


def weigh(settings: Weighing, progress: Progress = no_progress) -> Path:
    """Weigh what a finished run's conditions do to the weights; returns the run's folder.

    Raises what `interp.study.run_study` raises, each with one line that says what to do.
    """
    manifest = load_run(settings.run).manifest
    with Store.of_run(settings, manifest, "weights"):
        job = _prepare(settings, progress)
        with threads_for(job.subject.n_parameters):
            stages = [_spectral(settings, job, progress), _prompts(settings, job, progress)]
        entries = {name: value for stage in stages for name, value in stage.entries.items()}
        entries["notes"] = [note for stage in stages for note in stage.notes]
        tables = [stage.table for stage in stages]
        add_weights(settings.run, pd.concat(tables, ignore_index=True), entries)
    return settings.run


class _Job(NamedTuple):
    """What is weighed: the model, the conditions that change its weights, those that stand before
    a query instead, and the queries of these."""

    subject: Subject
    weights: list[str]
    prompts: list[str]
    queries: list[Encoded]


def _prepare(settings: Weighing, progress: Progress = no_progress) -> _Job:
    """The model of a run, under base, the conditions that change the weights, and prompts."""
    experiment, built = reopen(settings.run, settings.device)
    names = _changing(settings, built)
    ahead = [
        name
        for name, condition in built.items()
        if settings.implicit and name != BASE and all(map(_precedes, simple_parts(condition)))
    ]
    kept = {name: built[name] for name in (BASE, *names, *ahead)}
    matched = read_groups(experiment)["matched"]
    subject = open_subject(experiment, kept, matched, progress)
    few = {"matched": matched[: settings.implicit]} if ahead else {}
    queries = encode_again(settings.run, subject, kept, few)
    return _Job(subject, names, ahead, queries.get("matched", []))


def _precedes(part: Condition) -> bool:
    """Whether a part is tokens before the query, a prompt's or as many as a prompt's."""
    return part.role == "prompt" or isinstance(part, Neutral | ShuffledTokens)


def _changing(settings: Weighing, built: Mapping[str, Condition]) -> list[str]:
    """The conditions that change the weights, as far as they were asked for."""
    changing = [name for name, condition in built.items() if condition.reweights]
    asked = list(dict.fromkeys(settings.compare)) or changing
    if unknown := [name for name in asked if name not in changing]:
        raise ConfigError(
            f"no condition {unknown[0]!r} in {settings.run} that changes the weights: it has "
            f"{', '.join(changing) or 'none'}"
        )
    if not asked:
        raise ConfigError(f"{settings.run} has no adapter and no other weights to weigh")
    return asked


def _spectral(settings: Weighing, job: _Job, progress: Progress) -> _Found:
    """Singular values, norms, intruder dimensions and overlaps of every change of the weights."""
    conditions, notes = _distinct(job)
    rows, more = measure_updates(job.subject, conditions, settings, progress)
    table = as_table(rows)
    entries = {
        "conditions": conditions,
        "top": settings.top,
        "epsilon": settings.epsilon,
        "overlap": settings.overlap,
        "alike": alike(table),
    }
    return _Found(table, entries, [*notes, *more])


def _prompts(settings: Weighing, job: _Job, progress: Progress) -> _Found:
    """What prompts would be as updates of the MLPs: are they one over queries, and the LoRA's?"""
    if not job.prompts:
        return _Found(as_table([]), {}, [])
    if len(job.queries) < _FEWEST:
        note = f"implicit updates of prompts need {_FEWEST} queries: not measured"
        return _Found(as_table([]), {}, [note])
    adapters, _ = _distinct(job)
    try:
        rows, errors = prompted.measure_prompts(
            job.subject, BASE, job.prompts, adapters, job.queries, settings, progress
        )
    except Exception as error:  # whatever it raises, the MLPs are others than assumed
        note = f"implicit updates of prompts are not measured: {' '.join(str(error).split())[:200]}"
        return _Found(as_table([]), {}, [note])
    limit = DTYPE_NOISE[job.subject.dtype]
    open_ones = {name: error for name, error in errors.items() if not error <= limit}
    notes = [
        f"implicit updates of {name} are not measured: they miss a block's output by {error:.1g} "
        f"of it (rounding: {limit:g})"
        for name, error in open_ones.items()
    ]
    table = as_table(rows)
    table = table[~table["condition"].isin(open_ones)]
    prompts = [name for name in job.prompts if name not in open_ones]
    return _Found(table, {"prompts": prompts, "identity": errors}, notes)


def _distinct(job: _Job) -> tuple[list[str], list[str]]:
    """One condition of every state of the weights; notes on the others."""
    first: dict[Any, str] = {}
    notes = []
    for name in job.weights:
        same = first.setdefault(job.subject.settings[name].weights, name)
        if same != name:
            notes.append(f"{name} has the weights of {same}: it is weighed once")
    return list(first.values()), notes
