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

from interp.answers import (
    WrittenAnswers,
    answer_table,
    encode_again,
    forced,
    own_rows,
    query_table,
    write_answers,
)
from interp.capabilities import find, measures, open_sum
from interp.capture import chunk_size
from interp.conditions import (
    Condition,
    FittedBias,
    resolve,
    simple_parts,
    token_id,
)
from interp.config import Experiment
from interp.design import BASE, Design
from interp.errors import RunError
from interp.generating import Sampling
from interp.geometry import sample
from interp.logit_bias import fit_bias
from interp.manifest import describe_run, fingerprints, versions
from interp.measures import DTYPE_NOISE
from interp.measures.certificate import Tolerance
from interp.measures.tally import KEYS_VALUES, STATE_SITES, Plan, Tally
from interp.names import HOOKS, Head
from interp.noise import floor
from interp.probe import head_view
from interp.progress import Progress, no_progress
from interp.queries import Encoded, Query, read_queries
from interp.results import (
    ANSWERS,
    QUERIES,
    HeadView,
    as_table,
    read_manifest,
    token_hash,
    write_run,
)
from interp.statistics import SEGMENTS, position_labels
from interp.store import Store
from interp.subject import Subject, load
from interp.subject.aligning import encode_groups
from interp.subject.loading import threads_for
from interp.subject.quantization import saved_method
from interp.subject.tokenizers import open_tokenizer
from interp.sweep import SHARD, kept_labels, sweep
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

EPHEMERAL = {"out", "resume", "overwrite", "batch_size", "memory", "device"}
"""Fields that a resumed run may change: they do not change the numbers (beyond rounding)."""

FIT_BATCH = 8
"""Queries per forward pass of such a fit, where no batch size is given."""

FITTED = 256
"""Matched queries that a logit bias is fitted to."""


def run_study(
    experiment: Experiment, progress: Progress = no_progress, subject: Subject | None = None
) -> Path:
    """Run an experiment; returns its folder, `out`. `subject`: the model, where it is open already.

    Raises `SubjectError`, `QueryError`, `RunError`, `ConfigError` or `ConditionError`, each with
    one line that says what to do."""
    built = experiment.build()
    asked = read_groups(experiment)
    tokenizer = open_tokenizer(
        experiment.model, built.values(), experiment.tokenizer, **experiment.hub
    )
    built = applicable(experiment, built, tokenizer)
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
        with threads_for(subject.n_parameters):
            prepared = prepare(experiment, subject, built, asked, store, progress)
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
    manifest["withheld"] = withheld
    if "patterns" not in withheld:
        cell = largest_cell(tallies["matched"], design.headline or plan.pairs[0], plan)
        view = head_view(subject, cell, plan.pairs, groups["matched"], plan.batch_size)
        manifest["head_view"] = view.manifest()
        arrays |= view.arrays()
    table = by_model_layer(pd.concat(map(as_table, parts), ignore_index=True), plan.layers)
    table = table[~table["measure"].isin(measures(withheld))]
    beside = {QUERIES: query_table(groups), ANSWERS: answer_table(subject, written)}
    write_run(experiment.out, table, arrays, manifest, beside)


def applicable(
    experiment: Experiment, built: Mapping[str, Condition], tokenizer: Any
) -> dict[str, Condition]:
    """The conditions of an experiment as far as its model has a use for them: an empty system
    message is a control where the template writes one of its own, and untrained weights where the
    model's are not packed."""
    useless = set()
    if not experiment.framed.writes_default(tokenizer):
        useless.add("empty_system")
    if experiment.quantization or saved_method(experiment.model, **experiment.hub):
        useless.add("untrained")
    useless -= experiment.conditions.keys()
    return {name: c for name, c in built.items() if name not in useless}


def probe_run(folder: Path, name: str) -> HeadView:
    """One head of a finished run, from its model, which must be what it was."""
    head = Head.parse(name)
    experiment, built = reopen(folder)
    asked = {"matched": read_groups(experiment)["matched"]}
    subject = open_subject(experiment, built, asked["matched"])
    queries = encode_again(folder, subject, built, asked)["matched"]
    design = Design.of(built, experiment.families, experiment.compare)
    with threads_for(subject.n_parameters):
        _fit_biases(subject, built, queries, FIT_BATCH)
        plan = make_plan(experiment, subject, design, {"matched": queries}, {})
        return head_view(subject, head, plan.pairs, queries, plan.batch_size)


def reopen(folder: Path) -> tuple[Experiment, dict[str, Condition]]:
    """What a finished run was made from; a `RunError` where an input has changed since."""
    manifest = read_manifest(folder)
    experiment = Experiment.model_validate(manifest["config"])
    built = {n: c for n, c in experiment.build().items() if n in manifest["conditions"]}
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
    """What a study runs on: the model, the token ids of its queries with the answers that are
    forced on all conditions, what these wrote themselves, the plan and its design."""

    subject: Subject
    groups: dict[str, list[Encoded]]
    written: WrittenAnswers
    plan: Plan
    design: Design


def prepare(
    experiment: Experiment,
    subject: Subject,
    built: Mapping[str, Condition],
    asked: Mapping[str, Sequence[Query]],
    store: Store,
    progress: Progress = no_progress,
) -> Prepared:
    """Check everything that can be wrong before the first measurement; write the answers."""
    design = Design.of(built, experiment.families, experiment.compare)
    groups = encode_groups(subject, built, asked)
    by_length = sorted(groups["matched"], key=lambda query: len(query.ids))
    withheld = find(subject, [by_length[0], by_length[-1]], BASE, experiment.unasked)
    _fit_biases(subject, built, groups["matched"], experiment.batch_size or FIT_BATCH)
    written: WrittenAnswers = {}
    if experiment.answer_tokens:
        sampling = Sampling(experiment.temperature, experiment.seed)
        n_tokens = experiment.answer_tokens
        written = write_answers(subject, groups, n_tokens, sampling, store, progress)
        if experiment.answers_from is not None:
            groups = forced(subject, groups, written, experiment.answers_from)
    plan = make_plan(experiment, subject, design, groups, withheld)
    return Prepared(subject, groups, written, plan, design)


def _fit_biases(
    subject: Subject, built: Mapping[str, Condition], queries: Sequence[Encoded], batch_size: int
) -> None:
    """A fitted bias is known once the model has spoken."""
    for name, condition in built.items():
        for part in simple_parts(condition):
            if isinstance(part, FittedBias):
                own = subject.settings[name]
                like = next(subject.settings[n] for n, c in built.items() if c == part.like)
                bias = fit_bias(subject, queries[:FITTED], own, like, batch_size)
                subject.settings[name] = replace(own, bias=own.bias + bias)


def open_subject(
    experiment: Experiment,
    built: Mapping[str, Condition],
    queries: Sequence[Query],
    progress: Progress = no_progress,
) -> Subject:
    """The parity-checked model of an experiment, probed with its shortest and longest query."""
    by_length = sorted(queries, key=lambda query: len(query.text))
    return load(
        experiment.model,
        built,
        [by_length[0], by_length[-1]],
        frame=experiment.framed,
        progress=progress,
        **experiment.loading,
    )


def make_plan(
    experiment: Experiment,
    subject: Subject,
    design: Design,
    groups: Mapping[str, Sequence[Encoded]],
    withheld: Mapping[str, str],
) -> Plan:
    """Pairs, positions, samples and batch size of an experiment."""
    everyone = [query for queries in groups.values() for query in queries]
    longest = max(len(query.ids) for query in everyone)
    answer = max(len(query.answer_ids) for query in everyone)
    present = present_segments(experiment, everyone)
    read = max(len(query.forced) for query in everyone)
    fitting = chunk_size(subject, read, experiment.memory * 1e9)
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
        speaker=_speaker(design),
        against=token_id(experiment.against, subject.tokenizer) if experiment.against else None,
        bos=bool(subject.settings[BASE].n_prefix),
        labels=tuple(
            position_labels(longest, experiment.max_positions, present, answer if present else 0)
        ),
        longest_answer=max(1, answer),
        sites=(*STATE_SITES, *(KEYS_VALUES if experiment.keys_values else ())),
        replicates=experiment.bootstrap,
        permutations=experiment.permutations,
        seed=experiment.seed,
        batch_size=experiment.batch_size or fitting,
        noise=DTYPE_NOISE[subject.dtype],
        withheld=withheld,
        unasked=experiment.unasked,
        layers=layers_of(subject),
    )


def layers_of(subject: Subject) -> dict[str, tuple[int, ...]]:
    """The layers of every site in tables: a bias stands where its head does."""
    layers = {name: subject.anatomy.layers(name) for name in HOOKS}
    return {**layers, "attn_bias": layers["z"]}


def present_segments(experiment: Experiment, queries: Sequence[Encoded]) -> list[str]:
    """The segments that have rows; none where a query is raw text and its answer one token."""
    if not (experiment.framed.chat or any(len(query.answer_ids) > 1 for query in queries)):
        return []
    return [name for name in SEGMENTS if any(len(query.segments[name]) for query in queries)]


def _speaker(design: Design) -> str:
    """The condition whose top token is a query's target: the headline's reference, but not base."""
    a, b = design.headline or design.pairs[0]
    return b if design.headline and b != BASE else a
