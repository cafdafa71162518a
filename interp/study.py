"""The main job: run an experiment and leave a run folder.

    run = diverge(Experiment(model=..., adapter=(...), prompt_file=(...), queries=..., out="RUN"))

The folder then holds `results.parquet`, `arrays.safetensors` and `manifest.json`; the report is
written from them by `interp.report.write`.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from interp import conditions as conditions_room
from interp.capture import chunk_size
from interp.conditions import Condition, FineTuned, Lora, Neutral, Prompt, parts
from interp.config import Experiment
from interp.errors import QueryError, RunError
from interp.measures.certificate import Tolerance
from interp.names import Head
from interp.probe import head_view
from interp.queries import Encoded, Query, check_alignment, encode, read_queries
from interp.results import HeadView, read_manifest, sha256, write_run
from interp.statistics import LEVEL, position_labels
from interp.store import Store
from interp.subject import Subject, load
from interp.subject.loading import threads_for
from interp.sweep import SHARD, Plan, Progress, sweep
from interp.tabulate import certificates, grams, largest_cell, rows

EPHEMERAL = {"out", "resume", "overwrite", "batch_size", "memory", "device"}
"""Fields that a resumed run may change: they do not change the numbers (beyond rounding)."""

BASE = "base"


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
        subject, groups, plan = prepare(experiment, built, asked)
        with threads_for(subject.n_parameters):
            tallies = {
                name: sweep(subject, plan, queries, store, name, progress)
                for name, queries in groups.items()
            }
        table = [r for name, tally in tallies.items() for r in rows(tally, plan.labels, name)]
        tolerance = Tolerance(experiment.tolerance_js, experiment.tolerance_top1)
        signed = [
            certificate
            for name, tally in tallies.items()
            for certificate in certificates(tally, groups[name], name, tolerance)
        ]
        pair = headline(built) or plan.pairs[0]
        head = Head(*largest_cell(tallies["matched"], pair))
        view = head_view(subject, head, plan.pairs, groups["matched"], plan.batch_size)
        manifest = describe(experiment, subject, built, groups, view)
        manifest |= {"hashes": hashes, "certificates": signed}
        write_run(experiment.out, table, grams(tallies, list(built)) | view.arrays(), manifest)
        store.finish()
    return experiment.out


def probe_run(folder: Path, name: str) -> HeadView:
    """One head of a finished run, from its model, which must be what it was."""
    manifest = read_manifest(folder)
    experiment = Experiment.model_validate(manifest["config"])
    head = Head.parse(name)
    built = experiment.build()
    now = fingerprints(experiment, built)
    if changed := [file for file, digest in manifest["hashes"].items() if now.get(file) != digest]:
        raise RunError(f"the {changed[0]} has changed since {folder} was made; run it again")
    subject, groups, plan = prepare(experiment, built, read_groups(experiment))
    return head_view(subject, head, plan.pairs, groups["matched"], plan.batch_size)


def read_groups(experiment: Experiment) -> dict[str, list[Query]]:
    """The queries as written: `matched`, and `heldout` where given."""
    groups = {"matched": read_queries(experiment.queries, experiment.limit)}
    if experiment.heldout is not None:
        groups["heldout"] = read_queries(experiment.heldout, experiment.limit)
    return groups


class Prepared(NamedTuple):
    """What a study runs on: the model, the token ids of its queries, and the plan."""

    subject: Subject
    groups: dict[str, list[Encoded]]
    plan: Plan


def prepare(
    experiment: Experiment, built: Mapping[str, Condition], asked: Mapping[str, Sequence[Query]]
) -> Prepared:
    """Load and check everything that can be wrong before the first measurement."""
    subject = open_subject(experiment, built, asked["matched"])
    groups = encode_groups(subject, built, asked)
    return Prepared(subject, groups, make_plan(experiment, subject, built, groups))


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


def encode_groups(
    subject: Subject, built: Mapping[str, Condition], asked: Mapping[str, Sequence[Query]]
) -> dict[str, list[Encoded]]:
    """Token ids of all queries, aligned in every condition and within the model's context."""
    groups = {name: encode(queries, subject.tokenizer, name) for name, queries in asked.items()}
    for queries in groups.values():
        longest = max(queries, key=lambda query: len(query.ids))
        for name, condition in built.items():
            last = parts(condition)[-1]
            if isinstance(last, Prompt):
                check_alignment(queries, last.render(subject.tokenizer), subject.tokenizer, name)
            setting = subject.settings[name]
            length = len(setting.prefix) + setting.shift + len(longest.ids)
            if length > subject.context:
                raise QueryError(
                    f"condition {name}: {len(setting.prefix)} tokens and the query "
                    f"{longest.text!r} make {length}, the model reads {subject.context}: "
                    "shorten the prompt or the query"
                )
    return groups


def make_plan(
    experiment: Experiment,
    subject: Subject,
    built: Mapping[str, Condition],
    groups: Mapping[str, Sequence[Encoded]],
) -> Plan:
    """Pairs, positions and batch size of an experiment."""
    longest = max(len(query.ids) for queries in groups.values() for query in queries)
    fitting = chunk_size(subject, longest, experiment.memory * 1e9)
    return Plan(
        pairs=pairs(built),
        base=BASE,
        labels=tuple(position_labels(longest, experiment.max_positions)),
        replicates=experiment.bootstrap,
        seed=experiment.seed,
        batch_size=experiment.batch_size or fitting,
    )


def pairs(built: Mapping[str, Condition]) -> tuple[tuple[str, str], ...]:
    """Every condition against base, and every one without weights of its own against each that
    has them: (condition, reference)."""
    others = [name for name in built if name != BASE]
    reweighted = [
        n for n in others if any(isinstance(p, Lora | FineTuned) for p in parts(built[n]))
    ]
    against = [(name, other) for name in others if name not in reweighted for other in reweighted]
    return (*against, *((name, BASE) for name in others))


def headline(built: Mapping[str, Condition]) -> tuple[str, str] | None:
    """The pair a study is about: its first prompt against its first adapter or fine-tune."""
    prompt = next((name for name, c in built.items() if isinstance(c, Prompt)), None)
    weights = next((name for name, c in built.items() if isinstance(c, Lora | FineTuned)), None)
    return (prompt, weights) if prompt and weights else None


def _control(built: Mapping[str, Condition], pair: tuple[str, str] | None) -> list[str] | None:
    neutral = next((name for name, c in built.items() if isinstance(c, Neutral)), None)
    return [neutral, pair[1]] if neutral and pair else None


def describe(
    experiment: Experiment,
    subject: Subject,
    built: Mapping[str, Condition],
    groups: Mapping[str, Sequence[Encoded]],
    view: HeadView,
) -> dict[str, Any]:
    """What the manifest says of a run, but for its hashes and certificates."""
    pair = headline(built)
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": experiment.model_dump(mode="json", exclude_none=True),
        "seed": experiment.seed,
        "versions": versions(),
        "model": {
            "name": "/".join(Path(experiment.model).parts[-2:]),
            "architecture": type(subject.bridge.original_model).__name__,
            "n_layers": subject.n_layers,
            "n_heads": subject.n_heads,
            "d_model": subject.d_model,
            "dtype": experiment.dtype,
        },
        "conditions": {
            name: {
                "description": conditions_room.describe(condition),
                "kind": conditions_room.kind(condition),
                "n_prefix": len(subject.settings[name].prefix),
            }
            for name, condition in built.items()
        },
        "headline": {"condition": pair[0], "reference": pair[1]} if pair else None,
        "null_pair": dict(zip(("condition", "reference"), control, strict=True))
        if (control := _control(built, pair))
        else None,
        "queries": {name: len(queries) for name, queries in groups.items()},
        "interval": {
            "level": LEVEL,
            "replicates": experiment.bootstrap,
            "method": "Poisson bootstrap over queries",
        },
        "notes": subject.notes,
        "head_view": view.manifest(),
    }


def fingerprints(experiment: Experiment, built: Mapping[str, Condition]) -> dict[str, str]:
    """sha256 of everything an experiment reads from disk, by role (a hub id stands for itself)."""
    files: dict[str, str | Path] = {"model": experiment.model, "queries": experiment.queries}
    if experiment.heldout is not None:
        files["heldout"] = experiment.heldout
    for name, condition in built.items():
        for part in parts(condition):
            if isinstance(part, Lora):
                files[f"adapter of {name}"] = part.adapter
            if isinstance(part, FineTuned):
                files[f"model of {name}"] = part.model
    hashes = {role: sha256(f) if Path(f).exists() else str(f) for role, f in files.items()}
    for name, condition in built.items():
        hashes[f"condition {name}"] = hashlib.sha256(repr(condition).encode()).hexdigest()
    return hashes


def versions() -> dict[str, str]:
    """The libraries that the numbers depend on."""
    names = ("interp", "torch", "transformers", "transformer-lens", "peft", "numpy")
    return {name: importlib.metadata.version(name) for name in names}
