"""The equivalence ladder of a finished run: `interp ladder`.

    ladder(Ladder(run="RUN"))           # RUN/ladder.parquet, findings in its manifest
    load_run("RUN").ladder.words        # the lowest rung that suffices, map by map

The run says which model, conditions and queries; its match certificate stands beside what is found
here. `interp.report.write` then draws it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from interp.config import Computing
from interp.engines import opened_engine
from interp.errors import SubjectError
from interp.measures import DTYPE_NOISE
from interp.patching.interchange import Sweep, no_op_change
from interp.progress import Progress, no_progress
from interp.rungs.climbing import climb
from interp.rungs.job import LadderJob, prepare_ladder
from interp.rungs.settings import Ladder
from interp.rungs.table import Drawing, ladder_rows
from interp.runs.files import add_ladder, as_table
from interp.runs.ladder import STREAM_SITE, Laddered
from interp.runs.view import Run, load_run
from interp.store import Store
from interp.subject.loading import threads_for

__all__ = ["ladder"]

_EPHEMERAL = {"memory", "sums", *Computing.model_fields}
"""Fields that do not change the numbers (beyond rounding)."""


def ladder(settings: Ladder, progress: Progress = no_progress) -> Path:
    """Fit and score every map of a finished run's two conditions; returns the run's folder.

    Raises what `interp.study.run_study` raises, each with one line that says what to do.
    """
    run = load_run(settings.run)
    with Store.of_run(settings, run.manifest, "ladder", _EPHEMERAL) as store:
        job = prepare_ladder(settings, run.manifest, progress)
        with threads_for(job.subject.n_parameters):
            idle = _refuse_noise(job)
            another = partial(prepare_ladder, manifest=run.manifest)
            noise = DTYPE_NOISE[job.subject.dtype]
            drawing = Drawing(settings.bootstrap, job.seed, settings.tolerance, noise)
            tables: list[pd.DataFrame] = []
            with opened_engine(settings, job, another, job.subject.device.type) as engine:
                for move, layers, tally in climb(job, engine, store, progress):
                    tables += ladder_rows(job, move, layers, tally, drawing)
        table = as_table(pd.concat(tables, ignore_index=True))
        findings = {"no_op": idle, **_findings(settings, job, run, table)}
        add_ladder(settings.run, table, findings)
    return settings.run


def _refuse_noise(job: LadderJob) -> float:
    """A condition's own states put back into its run must change nothing at all."""
    name = job.moves[0].target
    plan = Sweep(name, name, name, whole=(STREAM_SITE,), by_head=(), positions=())
    changed = no_op_change(job.subject, plan, job.scored[: job.chunk], job.caches)
    if changed != 0:
        raise SubjectError(
            f"{job.subject.name}: putting {name}'s own states back changes a logit by "
            f"{changed:.2g}; this architecture cannot be patched"
        )
    return changed


def _findings(settings: Ladder, job: LadderJob, run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """What the manifest says of a ladder."""
    found: dict[str, Any] = {
        "condition": job.sides[0],
        "reference": job.sides[-1] if len(job.sides) > 1 else None,
        "maps": [move._asdict() for move in job.moves],
        "stand_ins": dict(job.stands_for),
        "rungs": job.rungs,
        "positions": list(job.positions),
        "layers": list(job.layers),
        "margin": settings.margin,
        "tolerance": settings.tolerance,
        "n": {"fitted": len(job.fitted)} | {g: job.groups.count(g) for g in set(job.groups)},
        "tokens": sum(len(query.forced) for query in job.fitted),
        "interval": {"replicates": settings.bootstrap},
        "notes": list(job.notes),
    }
    other = replace(run, table=table, manifest={**run.manifest, "ladder": found})
    return {**found, "words": Laddered.of(other).words}
