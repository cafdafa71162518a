"""The passes of `interp patch` over the queries, shard by shard: what is done is not done again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from interp.engines import Engine
from interp.errors import SubjectError
from interp.measures.tally import Key, Tally
from interp.patching import contexts
from interp.patching.ablation import Ablated, AdapterPart, ablate
from interp.patching.attribution import Attribution, attribute, attributed
from interp.patching.contexts import Contexts
from interp.patching.effects import Effects
from interp.patching.interchange import PatchMove, no_op_change, partners, run_interchange
from interp.patching.job import Job
from interp.progress import Progress
from interp.statistics import PerQuery
from interp.store import Store

_Compute = Callable[[Sequence[int]], Tally]
"""What is kept of the queries of some numbers."""


def refuse_noise(job: Job) -> float:
    """Base's own values put back into base's run must change nothing at all."""
    changed = no_op_change(job.subject, job.plan, job.queries[: job.chunk], job.caches)
    if changed != 0:
        raise SubjectError(
            f"{job.subject.name}: putting base's own states back changes a logit by {changed:.2g}; "
            "this architecture cannot be patched"
        )
    return changed


def run_moves(job: Job, engine: Engine[Job], store: Store, progress: Progress) -> list[Effects]:
    """All moves on all queries."""
    total = _sharded("interchange", _moving, job, engine, store, progress)
    cells = {move: job.plan.cells(job.subject, move) for move in job.plan.moves}
    return [
        Effects(*move, its, **_rows(total, _move("interchange", move)))
        for move, its in cells.items()
    ]


def _moving(job: Job) -> _Compute:
    number_of = partners([query.key for query in job.queries], job.plan.seed)

    def compute(numbers: Sequence[int]) -> Tally:
        here = [job.queries[i] for i in numbers]
        there = [job.queries[number_of[i]] for i in numbers]
        found = run_interchange(job.subject, job.plan, here, there, job.caches, job.rows)
        return _kept({_move("interchange", own): own for own in found}, numbers)

    return compute


def contexts_exchanged(
    job: Job, plan: Contexts, engine: Engine[Job], store: Store, progress: Progress
) -> list[Effects]:
    """What stands before the query, exchanged in all queries' runs."""
    total = _sharded("contexts", partial(_exchanging, plan), job, engine, store, progress)
    return [
        Effects(*move, plan.cells, **_rows(total, _move("contexts", move))) for move in plan.moves
    ]


def _exchanging(plan: Contexts, job: Job) -> _Compute:
    def compute(numbers: Sequence[int]) -> Tally:
        here = [job.queries[i] for i in numbers]
        found = contexts.exchange(job.subject, plan, here, job.caches)
        return _kept({_move("contexts", own): own for own in found}, numbers)

    return compute


def estimated(job: Job, engine: Engine[Job], store: Store, progress: Progress) -> list[Attribution]:
    """All moves on all queries, to first order."""
    size = job.backward_chunk
    total = _sharded("attribution", _attributing, job, engine, store, progress, size)
    cells = attributed(job.subject, job.plan)
    moves = [move for move in job.plan.moves if not move.control]
    return [
        Attribution(move.source, move.target, cells, **_rows(total, _estimate(move)))
        for move in moves
    ]


def _attributing(job: Job) -> _Compute:
    def compute(numbers: Sequence[int]) -> Tally:
        here = [job.queries[i] for i in numbers]
        found = attribute(job.subject, job.plan, here, job.caches)
        return _kept({_estimate(own): own for own in found}, numbers)

    return compute


def ablated(
    job: Job,
    parts: Mapping[str, Sequence[AdapterPart]],
    engine: Engine[Job],
    store: Store,
    progress: Progress,
) -> dict[str, Ablated]:
    """Every condition of `parts` without each of them, on all queries."""
    if not parts:
        return {}
    total = _sharded("ablation", partial(_ablating, parts), job, engine, store, progress)
    return {condition: Ablated(**_rows(total, _without(condition))) for condition in parts}


def _ablating(parts: Mapping[str, Sequence[AdapterPart]], job: Job) -> _Compute:
    def compute(numbers: Sequence[int]) -> Tally:
        here = [job.queries[i] for i in numbers]
        found = {_without(c): ablate(job.subject, c, some, here) for c, some in parts.items()}
        return _kept(found, numbers)

    return compute


def _sharded(
    name: str,
    begin: Callable[[Job], _Compute],
    job: Job,
    engine: Engine[Job],
    store: Store,
    progress: Progress,
    size: int | None = None,
) -> Tally:
    """What `begin` makes of the numbers of all queries, at most `size` (the job's chunk) at a
    time."""
    count = len(job.queries)

    def done(newly: int) -> None:
        progress(name, newly, count)

    return store.sharded(name, count, begin, size or job.chunk, done, engine)


def _move(stage: str, move: PatchMove | Effects) -> Key:
    return Key(stage, move.source, move.target, move.control)


def _estimate(move: PatchMove | Attribution) -> Key:
    return Key("attribution", move.source, move.target, "")


def _without(condition: str) -> Key:
    return Key("ablation", condition, "", "")


def _kept(found: Mapping[Key, Effects | Attribution | Ablated], numbers: Sequence[int]) -> Tally:
    """One accumulator per record and field that has a row per query: `stage.field`."""
    return {
        place._replace(measure=f"{place.measure}.{field}"): PerQuery.of(numbers, values)
        for place, record in found.items()
        for field, values in vars(record).items()
        if isinstance(values, np.ndarray)
    }


def _rows(total: Tally, place: Key) -> dict[str, Any]:
    """Field -> what was kept of every query, in their order."""
    return {
        key.measure.removeprefix(f"{place.measure}."): kept.compute()
        for key, kept in total.items()
        if key[1:] == place[1:] and isinstance(kept, PerQuery)
    }
