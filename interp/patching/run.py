"""The causal half of a study: `interp patch` on a finished run.

    patch(Patching(run="RUN"))          # RUN/interchange.parquet, findings in its manifest

The run says which model, conditions and queries; its match certificate stands beside what is found
here. `interp.report.write` then draws both.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from interp.config import Computing
from interp.engines import Engine, opened_engine
from interp.measures import DTYPE_NOISE
from interp.patching import ablation, attribution, contexts, effects, function_vectors
from interp.patching.contexts import Contexts
from interp.patching.effects import Pairs, Resampling, by_move, halves, matched
from interp.patching.findings import (
    by_segment,
    chosen_layers,
    head_overlap,
    patching_verdict,
    plain,
)
from interp.patching.greedy import greedy_heads
from interp.patching.interchange import PatchMove
from interp.patching.job import Job, prepare_patching
from interp.patching.ranking import heads_of_sweep, how_many, strongest_heads, sufficiency
from interp.patching.settings import Patching
from interp.patching.stages import (
    ablated,
    contexts_exchanged,
    estimated,
    refuse_noise,
    run_moves,
)
from interp.progress import Progress, no_progress
from interp.runs.files import add_interchange
from interp.runs.view import load_run
from interp.store import Store
from interp.subject.directions import ranks
from interp.subject.loading import threads_for

__all__ = ["patch"]

_EPHEMERAL = {"memory", *Computing.model_fields}
"""Fields that do not change the numbers (beyond rounding)."""


def patch(settings: Patching, progress: Progress = no_progress) -> Path:
    """Run every interchange of a finished run's two conditions; returns the run's folder.

    Raises what `interp.study.run_study` raises, each with one line that says what to do.
    """
    manifest = load_run(settings.run).manifest
    with Store.of_run(settings, manifest, "patch", _EPHEMERAL) as store:
        job = prepare_patching(settings, manifest, progress)
        with threads_for(job.subject.n_parameters):
            idle = refuse_noise(job)
            another = partial(prepare_patching, manifest=manifest)
            with opened_engine(settings, job, another, job.subject.device.type) as engine:
                table, findings = _find(settings, job, engine, store, progress)
        add_interchange(settings.run, table, {"no_op": idle, **findings})
    return settings.run


def _find(
    settings: Patching, job: Job, engine: Engine[Job], store: Store, progress: Progress
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of the run's second table, and what its manifest says of them."""
    plan, keys = job.plan, [query.key for query in job.queries]
    noise = DTYPE_NOISE[job.subject.dtype]
    scale = Resampling.of(
        keys, settings.bootstrap, settings.permutations, plan.seed, settings.tolerance, noise
    )
    found = run_moves(job, engine, store, progress)
    moves, pair = by_move(found), (plan.a, plan.b)
    table = effects.effect_rows(found, scale, plan.base)
    tables: list[pd.DataFrame] = []
    more: dict[str, Any] = {}
    swap = (
        Contexts.of(job.subject, plan.a, plan.b, job.caches, settings.every, plan.seed)
        if settings.contexts
        else None
    )
    if swap is not None:
        swapped = contexts.context_exchange_rows(
            contexts_exchanged(job, swap, engine, store, progress), scale
        )
        tables.append(swapped)
    if settings.attribution:
        estimates = estimated(job, engine, store, progress)
        tables.append(attribution.attribution_rows(estimates, scale))
        more["attribution"] = attribution.agreement(estimates, found)
    if plan.segments:
        more["segments"] = by_segment(moves, pair, plan.base, scale, plan.segments, keys, plan.seed)
    if plan.by_head:
        tests = (settings.permutations, plan.seed)
        more["heads"] = head_overlap(moves, pair, plan.base, scale, keys, *tests)
        vectors, joint = _together(settings, job, moves, scale, progress)
        tables, more = [*tables, *vectors], more | joint
    parts, notes = _ablation_parts(settings, job)
    without = ablated(job, parts, engine, store, progress)
    findings = {
        "condition": plan.a,
        "reference": plan.b,
        "n": len(keys),
        "tolerance": settings.tolerance,
        "interval": {"replicates": settings.bootstrap},
        "pattern": plan.pattern,
        "verdict": patching_verdict(table, pair, plan.base, job.subject.n_layers),
        "best_layers": chosen_layers(moves, pair, plan.base, scale, keys, plan.seed),
        **more,
        "notes": [*job.notes, *notes],
    }
    tables += [ablation.ablation_rows(c, parts[c], left, scale) for c, left in without.items()]
    return pd.concat([table, *tables], ignore_index=True), findings


def _together(
    settings: Patching, job: Job, moves: Pairs, scale: Resampling, progress: Progress
) -> tuple[list[pd.DataFrame], dict[str, Any]]:
    """Both conditions' heads together in base's run: greedy joint patching, function vectors."""
    selection, _ = halves([query.key for query in job.queries], job.plan.seed)
    vectors, greedily, used = [], [], []
    for condition in (job.plan.a, job.plan.b):
        into = moves[condition, job.plan.base, ""]
        if matched(into, scale):
            continue
        helpful = sufficiency(into, selection, scale)
        ranked = [heads_of_sweep(into)[i] for i in strongest_heads(helpful, len(helpful))]
        move = PatchMove(condition, job.plan.base)
        run = (job.subject, move, job.queries, job.caches, job.rows)
        if settings.greedy:
            candidates = ranked[: settings.greedy]
            greedily.append(plain(greedy_heads(*run, candidates, selection, scale)._asdict()))
        chosen = ranked[: how_many(len(ranked))]
        vectors.append(function_vectors.function_vector_rows(*run, chosen, selection, scale))
        names = [str(head) for head in chosen]
        used.append({"condition": condition, "heads": names, "n": int((~selection).sum())})
        progress("heads together", 1, 2)
    return vectors, {"greedy": greedily, "function_vectors": used}


def _ablation_parts(
    settings: Patching, job: Job
) -> tuple[dict[str, list[ablation.AdapterPart]], list[str]]:
    """The parts of both conditions' adapters, and notes on what cannot be taken apart."""
    parts, notes = {}, []
    for condition in (job.plan.a, job.plan.b):
        weights, setting = job.subject.weights, job.subject.settings[condition]
        if not setting.adapters or not settings.ablate:
            continue
        parts[condition] = ablation.parts_of(job.subject, condition, settings.ablate)
        if "directions" in settings.ablate and not ranks(weights, weights.only_adapter(setting)):
            notes.append(
                f"{condition} was not ablated by direction: it is not one plain LoRA "
                "(without DoRA and biases)"
            )
    return parts, notes
