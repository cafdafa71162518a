"""The passes of `interp patch` over the queries, shard by shard: what is done is not done again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from interp.capture import chunks
from interp.errors import SubjectError
from interp.measures.tally import Key, Tally, absorb_
from interp.patching import contexts
from interp.patching.ablation import Ablated, AdapterPart, ablate
from interp.patching.attribution import Attribution, attribute, attributed
from interp.patching.contexts import Contexts
from interp.patching.effects import Effects
from interp.patching.interchange import PatchMove, no_op_change, partners, run_interchange
from interp.patching.job import Job
from interp.patching.sites import PatchSite
from interp.progress import Progress
from interp.statistics import PerQuery
from interp.store import Store
from interp.sweep import SHARD


def refuse_noise(job: Job) -> float:
    """Base's own values put back into base's run must change nothing at all."""
    changed = no_op_change(job.subject, job.plan, job.queries[: job.chunk], job.caches)
    if changed != 0:
        raise SubjectError(
            f"{job.subject.name}: putting base's own states back changes a logit by {changed:.2g}; "
            "this architecture cannot be patched"
        )
    return changed


def run_moves(job: Job, store: Store, progress: Progress) -> list[Effects]:
    """All moves on all queries."""
    number_of = partners([query.key for query in job.queries], job.plan.seed)

    def compute(numbers: Sequence[int]) -> Tally:
        here = [job.queries[i] for i in numbers]
        there = [job.queries[number_of[i]] for i in numbers]
        found = run_interchange(job.subject, job.plan, here, there, job.caches, job.rows)
        return {_key(effects): _packed(effects, numbers) for effects in found}

    total = _sharded("interchange", compute, job, store, progress)
    cells = {move: job.plan.cells(job.subject, move) for move in job.plan.moves}
    return [_unpacked(move, its, _rows(total, _key(move))) for move, its in cells.items()]


def contexts_exchanged(job: Job, plan: Contexts, store: Store, progress: Progress) -> list[Effects]:
    """What stands before the query, exchanged in all queries' runs."""

    def compute(numbers: Sequence[int]) -> Tally:
        here = [job.queries[i] for i in numbers]
        found = contexts.exchange(job.subject, plan, here, job.caches)
        return {_context(effects): _packed(effects, numbers) for effects in found}

    total = _sharded("contexts", compute, job, store, progress)
    return [_unpacked(move, plan.cells, _rows(total, _context(move))) for move in plan.moves]


def estimated(job: Job, store: Store, progress: Progress) -> list[Attribution]:
    """All moves on all queries, to first order."""

    def compute(numbers: Sequence[int]) -> Tally:
        here = [job.queries[i] for i in numbers]
        found = attribute(job.subject, job.plan, here, job.caches)
        return {_estimate(own): PerQuery.of(numbers, own.values) for own in found}

    total = _sharded("attribution", compute, job, store, progress, size=job.backward_chunk)
    cells = attributed(job.subject, job.plan)
    moves = [move for move in job.plan.moves if not move.control]
    return [Attribution(*move[:2], cells, _rows(total, _estimate(move))) for move in moves]


def ablated(
    job: Job, parts: Mapping[str, Sequence[AdapterPart]], store: Store, progress: Progress
) -> dict[str, Ablated]:
    """Every condition of `parts` without each of them, on all queries."""

    def compute(numbers: Sequence[int]) -> Tally:
        here = [job.queries[i] for i in numbers]
        found = {c: ablate(job.subject, c, some, here) for c, some in parts.items()}
        return {
            _ablation(c): PerQuery.of(numbers, np.column_stack(list(vars(own).values())))
            for c, own in found.items()
        }

    if not parts:
        return {}
    total = _sharded("ablation", compute, job, store, progress)
    return {c: _without(_rows(total, _ablation(c))) for c in parts}


def _sharded(
    name: str,
    compute: Callable[[Sequence[int]], Tally],
    job: Job,
    store: Store,
    progress: Progress,
    size: int | None = None,
) -> Tally:
    """What `compute` makes of the numbers of all queries, at most `size` (the job's chunk) at a
    time; shards of an earlier attempt are not done again."""
    total: Tally = {}
    for number, shard in enumerate(chunks(range(len(job.queries)), SHARD)):
        place = f"{name}-{number:05d}"
        done = store.get(place)
        if done is None:
            done = {}
            for part in chunks(shard, size or job.chunk):
                absorb_(done, compute(part))
                progress(name, len(part), len(job.queries))
            store.put(place, done)
        else:
            progress(name, len(shard), len(job.queries))
        absorb_(total, done)
    return total


def _rows(total: Tally, key: Key) -> np.ndarray:
    """What was kept of every query, in their order."""
    kept = total[key]
    assert isinstance(kept, PerQuery)
    return kept.compute()


def _ablation(condition: str) -> Key:
    return Key("ablation", condition, "", "")


def _without(columns: np.ndarray) -> Ablated:
    damage, moved, change = np.split(columns[:, :-1], 3, axis=1)
    return Ablated(damage, moved, change, columns[:, -1])


def _estimate(move: PatchMove | Attribution) -> Key:
    return Key("attribution", move.source, move.target, "")


def _key(move: PatchMove | Effects) -> Key:
    return Key("interchange", move.source, move.target, move.control)


def _context(move: PatchMove | Effects) -> Key:
    return Key("contexts", move.source, move.target, move.control)


def _packed(effects: Effects, numbers: Sequence[int]) -> PerQuery:
    """One row per query: three numbers per cell, then the three of the query itself."""
    own = (effects.apart, effects.source_odds, effects.target_odds)
    by_cell = (effects.to_target, effects.to_source, effects.log_odds)
    return PerQuery.of(numbers, np.column_stack([*by_cell, *own]))


def _unpacked(move: PatchMove, cells: tuple[PatchSite, ...], values: np.ndarray) -> Effects:
    by_cell = np.split(values[:, :-3], 3, axis=1)
    return Effects(*move, cells, *by_cell, *values[:, -3:].T)
