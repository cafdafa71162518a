"""The main job: run an experiment and leave a run folder.

    run = diverge(Experiment(model=..., adapter=(...), prompt_file=(...), queries=..., out="RUN"))

The folder then holds `results.parquet`, `arrays.safetensors` and `manifest.json`; the report is
written from them by `interp.report.write`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from interp.answers import answer_table, encode_again, own_rows, query_table
from interp.capabilities import open_sum
from interp.conditions import Condition, resolve
from interp.config import Computing, Experiment
from interp.design import BASE, Design
from interp.engines import opened_engine
from interp.finite import told
from interp.halving import memory_errors, sizes_of
from interp.heads import head_view
from interp.manifest import describe_run, fingerprints, versions, without_nan
from interp.measures.certificate import Tolerance
from interp.measures.tally import Tally
from interp.names import Head
from interp.noise import floor
from interp.preparing import (
    FIT_BATCH,
    Prepared,
    another_subject,
    fit_biases,
    inputs_of,
    make_plan,
    open_subject,
    positions_of,
    prepare,
    read_groups,
    reopen,
)
from interp.progress import Progress, no_progress
from interp.runs.files import ANSWERS, QUERIES, as_table, token_hash, write_run
from interp.runs.heads import HeadView
from interp.runs.samples import ENTRY as SAMPLES
from interp.samples import read_samples
from interp.selection import measure_of, measures_of
from interp.statistics import PerQuery
from interp.store import SHARD, Store
from interp.subject import Subject
from interp.subject.loading import threads_for
from interp.sweep import kept_labels, no_numbers, sweep
from interp.tabulate import (
    by_model_layer,
    certificate_entries,
    closing_errors,
    grams,
    largest_cell,
    states,
    table_rows,
)
from interp.tabulate.contexts import context_rows
from interp.tabulate.families import family_rows
from interp.tabulate.geometry import geometry_rows

FEW = 8
"""Fewer queries than this show next to nothing: of 7, no p is below 0.016."""

EPHEMERAL = {
    "out",
    "resume",
    "overwrite",
    "batch_size",
    "memory",
    "device",
    *Computing.model_fields,
}
"""Fields that a resumed run may change: they do not change the numbers (beyond rounding)."""


def run_study(
    experiment: Experiment, progress: Progress = no_progress, subject: Subject | None = None
) -> Path:
    """Run an experiment; returns its folder, `out`. `subject`: the model, where it is open already.

    Raises `SubjectError`, `QueryError`, `RunError`, `ConfigError` or `ConditionError`, each with
    one line that says what to do."""
    built, asked, tokenizer = inputs_of(experiment)
    hashes = fingerprints(experiment, built)
    settings = experiment.model_dump(mode="json", exclude=EPHEMERAL) | {"shard": SHARD}
    settings |= {f"sha256 of {role}": digest for role, digest in hashes.items()}
    settings |= {f"version of {name}": version for name, version in versions(experiment).items()}
    first, frame = asked["matched"][0].turns, experiment.framed
    for name, condition in built.items():
        ids = resolve(condition, tokenizer, frame, first).prefix
        settings[f"token ids of {name}"] = token_hash(ids)
    with Store.open(
        experiment.out, settings, resume=experiment.resume, overwrite=experiment.overwrite
    ) as store:
        subject = subject or open_subject(experiment, built, asked["matched"], progress)
        another = partial(
            another_subject,
            built=built,
            queries=asked["matched"],
            hashes=hashes,
            settings=subject.settings,
        )
        with threads_for(subject.n_parameters), memory_errors():
            with opened_engine(experiment, subject, another, subject.device.type) as engine:
                prepared = prepare(experiment, subject, engine, built, asked, store, progress)
                tallies = {
                    name: sweep(engine, prepared.plan, queries, store, name, progress)
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
    subject, groups, written, plan, design = prepared
    checks = closing_errors(tallies)
    withheld = dict(plan.withheld)
    for identity, error in checks.items():  # on the probe it held
        if reason := open_sum(error, subject):
            withheld[identity.replace("_", " ")] = reason
    tolerance = Tolerance(experiment.tolerance_js, experiment.tolerance_top1)
    parts: list[Any] = []
    signed: list[dict[str, Any]] = []
    noise = float(floor("relative_l2", plan.noise))
    for name, tally in tallies.items():
        parts.append(table_rows(tally, plan.labels, name))
        parts.append(family_rows(tally, design.families, plan.labels, name, plan.seed, noise))
        signed += certificate_entries(tally, groups[name], name, tolerance)
    arrays = grams(tallies, list(built), plan)
    for label in kept_labels(plan.labels) if plan.sample else ():
        kept = states(tallies["matched"], plan, subject.n_layers, label)
        arrays["states_resid_post" if label == "last" else f"states_resid_post_{label}"] = kept
        parts.append(geometry_rows(kept, design, groups["matched"], plan, label))
    if experiment.keys_values:
        caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
        layers = subject.anatomy.layers("k")
        parts.append(context_rows(caches, layers, plan.pairs))
    parts.append(own_rows(written, plan.certified, groups, plan.replicates, plan.seed))
    manifest = describe_run(experiment, subject, built, design, groups)
    manifest |= {"hashes": dict(hashes), "certificates": signed, "checks": checks}
    manifest |= {"withheld": withheld, "unasked": sorted(plan.unasked)}
    sizes = {name: sizes_of(tally) for name, tally in tallies.items()}
    manifest["batch_sizes"] = {name: _by_size(found) for name, found in sizes.items()}
    manifest["notes"] = [*manifest["notes"], *_notes(experiment, prepared, tallies, sizes)]
    if "patterns" not in plan.unread.union(withheld):
        cell = largest_cell(tallies["matched"], design.headline or plan.pairs[0], plan)
        view = head_view(subject, cell, plan.pairs, groups["matched"], min(sizes["matched"]))
        manifest["head_view"] = view.manifest()
        arrays |= view.arrays()
    main = [BASE, *(design.headline or ()), *(design.null_pair or ())]
    readable = "patterns" not in plan.unread.union(withheld)
    few = read_samples(subject, groups["matched"], main, readable)
    manifest[SAMPLES], arrays = few.manifest(), arrays | few.arrays()
    table = by_model_layer(pd.concat(map(as_table, parts), ignore_index=True), plan.layers)
    rows = experiment.written - measures_of(withheld)
    table = table[table["measure"].map(measure_of).isin(rows)]
    beside = {QUERIES: query_table(groups), ANSWERS: answer_table(subject, written)}
    write_run(experiment.out, table, arrays, without_nan(manifest), beside)


def _by_size(sizes: Mapping[int, int]) -> list[dict[str, int]]:
    return [{"batch_size": size, "queries": count} for size, count in sizes.items()]


def _notes(
    experiment: Experiment,
    prepared: Prepared,
    tallies: Mapping[str, Tally],
    sizes: Mapping[str, Mapping[int, int]],
) -> Iterator[str]:
    """What is said of a run beside its numbers."""
    subject, groups, _, plan, _ = prepared
    yield from _halved(sizes, plan.batch_size)
    for group, tally in tallies.items():
        for name in subject.settings:
            kept = tally[no_numbers(name)]
            assert isinstance(kept, PerQuery)
            if note := told(name, kept, group):
                yield note
    if (n := len(groups["matched"])) < FEW:
        yield (
            f"{n} queries: the smallest p that a test over them can give is {2.0 ** (1 - n):.2g}, "
            "before any correction, and intervals over so few are rough: this shows how the "
            f"tools work, not what the model does (take {FEW} at the least, better 50)"
        )
    if experiment.max_positions is None and not positions_of(experiment, subject):
        heads = subject.n_layers * subject.n_heads
        yield f"no rows by position, as there are {heads:,} heads: --max-positions 32 makes them"


def _halved(sizes: Mapping[str, Mapping[int, int]], planned: int) -> Iterator[str]:
    """What is said of groups that memory did not hold as planned."""
    for name, found in sizes.items():
        if min(found) < planned:
            counts = ", ".join(f"{count} at {size}" for size, count in found.items())
            yield f"memory ran out at {planned} {name} queries per batch; measured: {counts}"


def head_of_run(folder: Path, name: str) -> HeadView:
    """One of `heads_of_run`."""
    [view] = heads_of_run(folder, [name])
    return view


def heads_of_run(folder: Path, names: Sequence[str]) -> Iterator[HeadView]:
    """Heads of a finished run, from its model, which is opened once and must be what it was."""
    heads = [Head.parse(name) for name in names]
    experiment, built = reopen(folder)
    asked = {"matched": read_groups(experiment)["matched"]}
    subject = open_subject(experiment, built, asked["matched"])
    queries = encode_again(folder, subject, built, asked)["matched"]
    design = Design.of(built, experiment.families, experiment.compare)
    with threads_for(subject.n_parameters):
        fit_biases(subject, built, queries, FIT_BATCH)
        plan = make_plan(experiment, subject, design, {"matched": queries}, {})
        for head in heads:
            yield head_view(subject, head, plan.pairs, queries, plan.batch_size)
