"""The causal half of a study: `interp patch` on a finished run.

    patch(Patching(run="RUN"))          # RUN/interchange.parquet, findings in its manifest

The run says which model, conditions and queries; its match certificate stands beside what is found
here. `interp.report.write` then draws both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from interp.capture import chunks
from interp.causal.effects import Effects, Scale, by_move, rows
from interp.causal.findings import best_layers, carrying, verdict
from interp.causal.interchange import Move, Sweep, interchange, no_op, partners, rows_within
from interp.causal.settings import Patching
from interp.conditions import Condition, FittedBias
from interp.design import BASE
from interp.errors import ConfigError, SubjectError
from interp.measures.tally import Key, Tally, absorb_
from interp.queries import Encoded
from interp.results import TABLE, add_interchange, load_run
from interp.statistics import PerQuery, position_labels
from interp.store import Store
from interp.study import encode_groups, open_subject, read_groups, reopen, silent
from interp.subject import Subject
from interp.subject.loading import threads_for
from interp.sweep import SHARD, Progress


class Job(NamedTuple):
    """What is patched: the model, the queries, and how many of their rows fit a forward pass."""

    subject: Subject
    plan: Sweep
    queries: Sequence[Encoded]
    caches: Mapping[str, Any]
    rows: int

    @property
    def chunk(self) -> int:
        """Queries that are worked on at once."""
        return min(SHARD, self.rows)


def patch(settings: Patching, progress: Progress = silent) -> Path:
    """Run every interchange of a finished run's two conditions; returns the run's folder.

    Raises what `interp.study.diverge` raises, each with one line that says what to do.
    """
    manifest = load_run(settings.run).manifest
    fields = settings.model_dump(mode="json", exclude={"run", "resume", "memory", "device"})
    begun = {**fields, "command": "patch", "sha256 of the run": manifest["files"][TABLE]}
    with Store.open(settings.run, begun, resume=settings.resume, overwrite=True) as store:
        job = prepare(settings, manifest)
        with threads_for(job.subject.n_parameters):
            idle = _refuse_noise(job)
            effects = sweep(job, store, progress)
            table, findings = find(settings, job, effects, progress)
        add_interchange(settings.run, table, {"no_op": idle, **findings})
        store.finish()
    return settings.run


def prepare(settings: Patching, manifest: Mapping[str, Any]) -> Job:
    """The model of a run under the two conditions and base alone, and its matched queries."""
    experiment, built = reopen(settings.run)
    changes: dict[str, Any] = {"limit": settings.limit or experiment.limit}
    if settings.device is not None:
        changes["device"] = settings.device
    experiment = experiment.model_copy(update=changes)
    a, b = _pair(settings, manifest, built)
    kept = {name: built[name] for name in (BASE, a, b)}
    asked = {"matched": read_groups(experiment)["matched"]}
    subject = open_subject(experiment, kept, asked["matched"])
    queries = encode_groups(subject, kept, asked)["matched"]
    if len(queries) < 2:
        raise ConfigError(f"{settings.run} has one matched query: an interchange needs two or more")
    longest = max(len(query.ids) for query in queries)
    plan = Sweep(
        a,
        b,
        BASE,
        whole=tuple(dict.fromkeys(["resid_post", *settings.sites])),
        by_head=tuple(dict.fromkeys(["z", *settings.head_sites])),
        positions=_positions(longest, settings.positions),
        pattern=settings.pattern,
        seed=experiment.seed,
    )
    names = plan.conditions
    caches = {name: subject.prefill(subject.settings[name]) for name in names}
    rows = rows_within(subject, names, longest, settings.memory * 1e9)
    return Job(subject, plan, queries, caches, rows)


def _positions(longest: int, most: int) -> tuple[str, ...]:
    """`last` and single indices, where a query has more than one token."""
    if longest == 1 or not most:
        return ()
    return tuple(label for label in position_labels(longest, most) if label != "mean")


def _pair(
    settings: Patching, manifest: Mapping[str, Any], built: Mapping[str, Condition]
) -> tuple[str, str]:
    """The two conditions: as asked, or the run's headline."""
    headline = manifest["headline"] or {}
    found = []
    for role in ("condition", "reference"):
        name = getattr(settings, role) or headline.get(role)
        if name is None:
            raise ConfigError(f"{settings.run} has no prompt and adapter: name --{role}")
        if name not in built or name == BASE:
            others = ", ".join(other for other in built if other != BASE)
            raise ConfigError(f"no condition {name!r} to patch in {settings.run}: it has {others}")
        if isinstance(built[name], FittedBias):
            raise ConfigError(f"{name} only moves logits: it has no internal state of its own")
        found.append(name)
    a, b = found
    if a == b:
        raise ConfigError(f"--condition and --reference are both {a}: an interchange needs two")
    return a, b


def _refuse_noise(job: Job) -> float:
    """Base's own values put back into base's run must change nothing at all."""
    changed = no_op(job.subject, job.plan, job.queries[: job.chunk], job.caches)
    if changed != 0:
        raise SubjectError(
            f"{job.subject.name}: putting base's own states back changes a logit by {changed:.2g}; "
            "this architecture cannot be patched"
        )
    return changed


# --- sweeps --------------------------------------------------------------------------------------


def sweep(job: Job, store: Store, progress: Progress) -> list[Effects]:
    """All moves on all queries; finished shards of an earlier attempt are not done again."""
    number_of = partners([query.key for query in job.queries], job.plan.seed)
    others = [job.queries[number] for number in number_of]
    total: Tally = {}
    for number, shard in enumerate(chunks(range(len(job.queries)), SHARD)):
        name = f"interchange-{number:05d}"
        done = store.get(name)
        if done is None:
            done = {}
            for part in chunks(shard, job.chunk):
                here, there = ([some[i] for i in part] for some in (job.queries, others))
                found = interchange(job.subject, job.plan, here, there, job.caches, job.rows)
                absorb_(done, {_key(effects): _packed(effects, part) for effects in found})
                progress("interchange", len(part), len(job.queries))
            store.put(name, done)
        else:
            progress("interchange", len(shard), len(job.queries))
        absorb_(total, done)
    return [_unpacked(job, move, total) for move in job.plan.moves]


def _key(move: Move | Effects) -> Key:
    return Key("interchange", move.source, move.target, move.control)


def _packed(effects: Effects, numbers: Sequence[int]) -> PerQuery:
    """One row per query: three numbers per cell, then the three of the query itself."""
    own = (effects.apart, effects.source_odds, effects.target_odds)
    by_cell = (effects.to_target, effects.to_source, effects.log_odds)
    return PerQuery.of(numbers, np.column_stack([*by_cell, *own]))


def _unpacked(job: Job, move: Move, total: Tally) -> Effects:
    kept = total[_key(move)]
    assert isinstance(kept, PerQuery)
    cells = job.plan.cells(job.subject, move)
    values = kept.compute()
    by_cell = np.split(values[:, :-3], 3, axis=1)
    return Effects(*move, cells, *by_cell, *values[:, -3:].T)


# --- what came of it -----------------------------------------------------------------------------


def find(
    settings: Patching, job: Job, effects: Sequence[Effects], progress: Progress
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of the run's second table, and what its manifest says of them."""
    plan, keys = job.plan, [query.key for query in job.queries]
    scale = Scale.of(keys, settings.bootstrap, settings.permutations, plan.seed, settings.tolerance)
    moves, pair = by_move(effects), (plan.a, plan.b)
    table = rows(effects, scale, plan.base)
    heads = carrying(moves, pair, plan.base, scale, keys, settings.permutations, plan.seed)
    findings = {
        "condition": plan.a,
        "reference": plan.b,
        "n": len(keys),
        "tolerance": settings.tolerance,
        "interval": {"replicates": settings.bootstrap},
        "pattern": plan.pattern,
        "verdict": verdict(table, pair, plan.base, job.subject.n_layers),
        "best_layers": best_layers(moves, pair, plan.base, scale, keys, plan.seed),
        "heads": heads,
    }
    return table, findings
