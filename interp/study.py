"""The main job: run an experiment and leave a run folder.

    run = diverge(Experiment(model=..., adapter=(...), prompt_file=(...), queries=..., out="RUN"))

The folder then holds `results.parquet`, `arrays.safetensors` and `manifest.json`; the report is
written from them by `interp.report.write`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from interp.capture import chunk_size
from interp.conditions import (
    Condition,
    FittedBias,
    token_id,
)
from interp.config import Experiment
from interp.design import BASE, Design
from interp.errors import RunError, SubjectError
from interp.geometry import sample
from interp.manifest import describe, fingerprints, versions
from interp.matching.tilt import fit_bias
from interp.measures import NOISE
from interp.measures.certificate import Tolerance
from interp.measures.tally import Plan, Tally
from interp.names import Head
from interp.noise import floor
from interp.probe import head_view
from interp.queries import Encoded, Query, read_queries
from interp.results import HeadView, as_table, read_manifest, write_run
from interp.statistics import position_labels
from interp.store import Store
from interp.subject import Subject, load
from interp.subject.aligning import encode_groups
from interp.subject.loading import threads_for
from interp.sweep import SHARD, Progress, sweep
from interp.tabulate import certificates, closing_errors, grams, largest_cell, rows, states
from interp.tabulate.families import family_rows
from interp.tabulate.geometry import geometry_rows

EPHEMERAL = {"out", "resume", "overwrite", "batch_size", "memory", "device"}
"""Fields that a resumed run may change: they do not change the numbers (beyond rounding)."""

FITTED = 256
"""Matched queries that a logit bias is fitted to."""

CLOSING = 10.0
"""An identity that is out by more than so many times the rounding of the dtype does not hold."""


def silent(group: str, done: int, total: int) -> None:
    """No progress shown."""


def diverge(experiment: Experiment, progress: Progress = silent) -> Path:
    """Run an experiment; returns its folder. Raises `SubjectError`, `QueryError`, `RunError`,
    `ConfigError` or `ConditionError`, each with one line that says what to do."""
    built = experiment.build()
    asked = read_groups(experiment)
    hashes = fingerprints(experiment, built)
    settings = experiment.model_dump(mode="json", exclude=EPHEMERAL) | {"shard": SHARD}
    settings |= {f"sha256 of {role}": digest for role, digest in hashes.items()}
    settings |= {f"version of {name}": version for name, version in versions().items()}
    with Store.open(
        experiment.out, settings, resume=experiment.resume, overwrite=experiment.overwrite
    ) as store:
        prepared = prepare(experiment, built, asked)
        with threads_for(prepared.subject.n_parameters):
            tallies = {
                name: sweep(prepared.subject, prepared.plan, queries, store, name, progress)
                for name, queries in prepared.groups.items()
            }
            _write(experiment, built, prepared, tallies, hashes)
        store.finish()
    return experiment.out


def _write(
    experiment: Experiment,
    built: Mapping[str, Condition],
    prepared: Prepared,
    tallies: Mapping[str, Tally],
    hashes: Mapping[str, str],
) -> None:
    """From accumulators to the run's files."""
    subject, groups, plan, design = prepared
    checks = closing_errors(tallies)
    _refuse_open(checks, subject)
    tolerance = Tolerance(experiment.tolerance_js, experiment.tolerance_top1)
    parts: list[Any] = []
    signed: list[dict[str, Any]] = []
    noise = float(floor("relative_l2", plan.noise))
    for name, tally in tallies.items():
        parts.append(rows(tally, plan.labels, name))
        parts.append(family_rows(tally, design.families, plan.labels, name, plan.seed, noise))
        signed += certificates(tally, groups[name], name, tolerance)
    arrays = grams(tallies, list(built), plan.labels)
    if plan.sample:
        kept = states(tallies["matched"], plan, subject.n_layers)
        arrays["states_resid_post"] = kept
        parts.append(geometry_rows(kept, design, groups["matched"], plan))
    pair = design.headline or plan.pairs[0]
    head = Head(*largest_cell(tallies["matched"], pair, plan.noise))
    view = head_view(subject, head, plan.pairs, groups["matched"], plan.batch_size)
    manifest = describe(experiment, subject, built, design, groups, view)
    manifest |= {"hashes": dict(hashes), "certificates": signed, "checks": checks}
    table = pd.concat(map(as_table, parts), ignore_index=True)
    write_run(experiment.out, table, arrays | view.arrays(), manifest)


def _refuse_open(checks: Mapping[str, float], subject: Subject) -> None:
    """No number leaves a run whose identities do not hold."""
    bound = CLOSING * NOISE[subject.dtype]
    for identity, error in checks.items():
        if not error <= bound:
            raise SubjectError(
                f"{subject.name}: the parts of {identity} do not add up (relative error "
                f"{error:.2g}, bound {bound:.2g}); this architecture or adapter cannot be used"
            )


def probe_run(folder: Path, name: str) -> HeadView:
    """One head of a finished run, from its model, which must be what it was."""
    head = Head.parse(name)
    experiment, built = reopen(folder)
    subject, groups, plan, _ = prepare(experiment, built, read_groups(experiment))
    with threads_for(subject.n_parameters):
        return head_view(subject, head, plan.pairs, groups["matched"], plan.batch_size)


def reopen(folder: Path) -> tuple[Experiment, dict[str, Condition]]:
    """What a finished run was made from; a `RunError` where an input has changed since."""
    manifest = read_manifest(folder)
    experiment = Experiment.model_validate(manifest["config"])
    built = experiment.build()
    now = fingerprints(experiment, built)
    if changed := [file for file, digest in manifest["hashes"].items() if now.get(file) != digest]:
        raise RunError(f"the {changed[0]} has changed since {folder} was made; run it again")
    return experiment, built


def read_groups(experiment: Experiment) -> dict[str, list[Query]]:
    """The queries as written: `matched`, and `heldout` where given."""
    groups = {"matched": read_queries(experiment.queries, experiment.limit)}
    if experiment.heldout is not None:
        groups["heldout"] = read_queries(experiment.heldout, experiment.limit)
    return groups


class Prepared(NamedTuple):
    """What a study runs on: the model, the token ids of its queries, the plan and its design."""

    subject: Subject
    groups: dict[str, list[Encoded]]
    plan: Plan
    design: Design


def prepare(
    experiment: Experiment, built: Mapping[str, Condition], asked: Mapping[str, Sequence[Query]]
) -> Prepared:
    """Load and check everything that can be wrong before the first measurement."""
    design = Design.of(built, experiment.families)
    subject = open_subject(experiment, built, asked["matched"])
    groups = encode_groups(subject, built, asked)
    plan = make_plan(experiment, subject, design, groups)
    _fit_biases(subject, built, groups["matched"], plan.batch_size)
    return Prepared(subject, groups, plan, design)


def _fit_biases(
    subject: Subject, built: Mapping[str, Condition], queries: Sequence[Encoded], batch_size: int
) -> None:
    """A fitted bias is known once the model has spoken."""
    for name, condition in built.items():
        if isinstance(condition, FittedBias):
            own = subject.settings[name]
            like = next(subject.settings[n] for n, c in built.items() if c == condition.like)
            bias = fit_bias(subject, queries[:FITTED], own, like, batch_size)
            subject.settings[name] = replace(own, bias=bias)


def open_subject(
    experiment: Experiment, built: Mapping[str, Condition], queries: Sequence[Query]
) -> Subject:
    """The parity-checked model of an experiment, probed with its shortest and longest query."""
    by_length = sorted(queries, key=lambda query: len(query.text))
    return load(
        experiment.model,
        built,
        [query.text for query in (by_length[0], by_length[-1])],
        device=experiment.device,
        dtype=experiment.dtype,
        revision=experiment.revision,
        trust_remote_code=experiment.trust_remote_code,
        allow_other_base=experiment.allow_other_base,
    )


def make_plan(
    experiment: Experiment,
    subject: Subject,
    design: Design,
    groups: Mapping[str, Sequence[Encoded]],
) -> Plan:
    """Pairs, positions, samples and batch size of an experiment."""
    longest = max(len(query.ids) for queries in groups.values() for query in queries)
    fitting = chunk_size(subject, longest, experiment.memory * 1e9)
    keys = [query.key for query in groups["matched"]]
    compared = [*(design.headline or subject.settings), *design.nulls, BASE]
    return Plan(
        base=BASE,
        pairs=design.pairs,
        certified=design.certified,
        controls=design.controls if experiment.permutations else {},
        members=design.members if len(design.families) > 1 else (),
        kept=tuple(name for name in subject.settings if name in compared),
        sample=frozenset(sample(keys, experiment.sample, experiment.seed)),
        speaker=design.headline[1] if design.headline else design.pairs[0][0],
        against=token_id(experiment.against, subject.tokenizer) if experiment.against else None,
        bos=bool(subject.settings[BASE].n_prefix),
        labels=tuple(position_labels(longest, experiment.max_positions)),
        replicates=experiment.bootstrap,
        permutations=experiment.permutations,
        seed=experiment.seed,
        batch_size=experiment.batch_size or fitting,
        noise=NOISE[subject.dtype],
    )
