"""Edges that carry a run's two conditions: `interp edges` on a finished run.

    trace_edges(EdgeTracing(run="RUN"))         # RUN/edges.parquet, findings in its manifest

The run says which model, conditions and queries; its null control stands beside the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.answers import encode_again
from interp.conditions import Condition
from interp.design import BASE
from interp.edges.findings import (
    ExactEdges,
    edge_agreement,
    edge_overlap,
    edge_rows,
    edge_words,
    strongest_edges,
)
from interp.edges.nodes import Edge
from interp.edges.reading import receivers_of
from interp.edges.settings import EdgeTracing
from interp.edges.tracing import EdgeJob, patch_edges, trace
from interp.edges.writing import senders_of
from interp.engines import InProcess
from interp.errors import ConfigError
from interp.measures.tally import Key, Tally
from interp.names import short_name
from interp.patching.effects import Resampling
from interp.patching.interchange import PatchMove, rows_within
from interp.patching.job import pair_to_patch
from interp.preparing import open_subject, read_groups, reopen
from interp.progress import Progress, no_progress
from interp.runs.files import add_edges
from interp.runs.view import Run, load_run
from interp.statistics import PerQuery
from interp.store import Store
from interp.subject.loading import threads_for

__all__ = ["trace_edges"]

_SHOWN = 100
"""Most edges of a move that have a row in the table."""


def trace_edges(settings: EdgeTracing, progress: Progress = no_progress) -> Path:
    """Trace the edges of a finished run's two conditions; returns the run's folder.

    Raises what `interp.study.run_study` raises, each with one line that says what to do.
    """
    run = load_run(settings.run)
    with Store.of_run(settings, run.manifest, "edges", {"memory"}) as store:
        job, pair, seed = _prepare(settings, run, progress)
        with threads_for(job.subject.n_parameters):
            table, findings = _find(settings, job, pair, seed, store, progress)
        add_edges(settings.run, table, findings)
    return settings.run


def _prepare(
    settings: EdgeTracing, run: Run, progress: Progress
) -> tuple[EdgeJob, tuple[str, str], int]:
    """The model of a run under the two conditions, the control and base alone, and its matched
    queries; the pair, and the run's seed."""
    experiment, built = reopen(settings.run, settings.device, settings.limit)
    pair = pair_to_patch(settings, run.manifest, built)
    beside = _control(settings, run, pair, built)
    kept = {name: built[name] for name in (BASE, *pair, *beside)}
    asked = {"matched": read_groups(experiment)["matched"]}
    subject = open_subject(experiment, kept, asked["matched"], progress)
    receivers = receivers_of(subject)
    queries = encode_again(settings.run, subject, kept, asked)["matched"]
    if len(queries) < 2:
        raise ConfigError(f"{settings.run} has one matched query: edges need two or more")
    longest = max(len(query.forced) for query in queries)
    names, budget = list(kept), settings.memory * 1e9
    senders = senders_of(subject, [subject.settings[name] for name in names])
    writes = 8.0 * len(names) * len(senders) * longest * subject.d_model
    moves = [PatchMove(name, BASE) for name in names if name != BASE]
    moves += [PatchMove(BASE, move.source) for move in moves]
    job = EdgeJob(
        subject,
        moves,
        pair[1],
        queries,
        {name: subject.prefill(subject.settings[name]) for name in names},
        senders,
        receivers,
        rows=rows_within(subject, names, queries, budget),
        chunk=max(1, int(budget / writes)),
    )
    return job, pair, experiment.seed


def _control(
    settings: EdgeTracing, run: Run, pair: tuple[str, str], built: Mapping[str, Condition]
) -> list[str]:
    """The condition beside the pair, where there is one."""
    name = settings.control or run.null_control
    if settings.control and (name not in built or name in (BASE, *pair)):
        others = ", ".join(other for other in built if other not in (BASE, *pair))
        raise ConfigError(
            f"--control {name}: {settings.run} has {others or 'no condition'} beside the pair"
        )
    known = name in built and name not in pair and not built[str(name)].only_logits
    return [str(name)] if known else []


def _find(
    settings: EdgeTracing,
    job: EdgeJob,
    pair: tuple[str, str],
    seed: int,
    store: Store,
    progress: Progress,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of the run's table, and what its manifest says of them."""
    edges, keys = job.edges, [query.key for query in job.queries]
    scale = Resampling.of(keys, settings.bootstrap, 0, seed, 0.0)
    scores = _by_move(job, _sharded("edges", _tracing, job, store, progress))
    strongest = {move: strongest_edges(own, _SHOWN) for move, own in scores.items()}
    exact = _patched(settings, job, strongest, edges, store, progress)
    shown = _with_each_other(strongest)
    table = edge_rows(scores, exact, edges, shown, scale, job.subject.n_layers)
    tests = (settings.top, settings.permutations, seed)
    overlaps, agreement = edge_overlap(scores, edges, BASE, *tests), edge_agreement(scores, exact)
    named = {move: [edges[i] for i in own] for move, own in strongest.items()}
    findings = {
        "condition": pair[0],
        "reference": pair[1],
        "control": [name for name in job.conditions if name not in (BASE, *pair)],
        "n": len(keys),
        "edges": len(edges),
        "interval": {"replicates": settings.bootstrap},
        "strongest": [
            {"source": s, "target": t, "edges": [str(e) for e in own[: settings.top]]}
            for (s, t), own in named.items()
        ],
        "overlap": overlaps,
        "agreement": agreement,
        "verdict": [*edge_words(pair, BASE, named, overlaps, agreement)],
        "notes": [f"{short_name(job.subject.name)} has {len(edges)} edges"],
    }
    return table, findings


def _with_each_other(
    strongest: Mapping[tuple[str, str], np.ndarray],
) -> dict[tuple[str, str], list[int]]:
    """The strongest edges of every move into base's run (or out of it) have rows under all such
    moves, so that conditions can be compared edge by edge."""
    alike: dict[bool, list[int]] = {}
    for (_, target), own in strongest.items():
        known = alike.setdefault(target == BASE, [])
        known += [int(i) for i in own if i not in known]
    return {move: alike[move[1] == BASE] for move in strongest}


def _patched(
    settings: EdgeTracing,
    job: EdgeJob,
    strongest: Mapping[tuple[str, str], np.ndarray],
    edges: Sequence[Edge],
    store: Store,
    progress: Progress,
) -> dict[tuple[str, str], ExactEdges]:
    """The strongest edges of every move, run one by one."""
    if not settings.exact:
        return {}
    wanted = {move: own[: settings.exact] for move, own in strongest.items()}
    named = {move: [edges[i] for i in own] for move, own in wanted.items()}
    total = _sharded("paths", partial(_patching, named), job, store, progress)
    found = _by_move(job, total)
    return {move: ExactEdges(wanted[move], found[move]) for move in wanted}


def _tracing(job: EdgeJob) -> Callable[[Sequence[int]], Tally]:
    def compute(numbers: Sequence[int]) -> Tally:
        found = trace(job, [job.queries[i] for i in numbers])
        return {Key("edges", *move, ""): PerQuery.of(numbers, v) for move, v in found.items()}

    return compute


def _patching(
    named: Mapping[tuple[str, str], Sequence[Edge]], job: EdgeJob
) -> Callable[[Sequence[int]], Tally]:
    def compute(numbers: Sequence[int]) -> Tally:
        here = [job.queries[i] for i in numbers]
        return {
            Key("edges", *move, ""): PerQuery.of(
                numbers, patch_edges(job, PatchMove(*move), some, here)
            )
            for move, some in named.items()
        }

    return compute


def _sharded(
    name: str,
    begin: Callable[[EdgeJob], Callable[[Sequence[int]], Tally]],
    job: EdgeJob,
    store: Store,
    progress: Progress,
) -> Tally:
    count = len(job.queries)

    def done(newly: int) -> None:
        progress(name, newly, count)

    return store.sharded(name, count, begin, job.chunk, done, InProcess(job))


def _by_move(job: EdgeJob, total: Tally) -> dict[tuple[str, str], np.ndarray]:
    found = {}
    for move in job.moves:
        kept = total[Key("edges", move.source, move.target, "")]
        assert isinstance(kept, PerQuery)
        found[move.source, move.target] = kept.compute()
    return found
