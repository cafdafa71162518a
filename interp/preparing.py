"""What a study runs on: the model under its conditions, its queries, and what is compared.

experiment, built = reopen("RUN")                    # or experiment.build()
asked = read_groups(experiment)
subject = open_subject(experiment, built, asked["matched"])
prepared = prepare(experiment, subject, InProcess(subject), built, asked, store)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from interp.answers import WrittenAnswers, forced, write_answers
from interp.capabilities import find
from interp.capture import chunk_size
from interp.conditions import Condition, FittedBias, Setting, simple_parts, token_id
from interp.config import Experiment
from interp.design import BASE, Design
from interp.engines import Engine
from interp.errors import ConfigError, RunError
from interp.generating import Sampling
from interp.geometry import sample
from interp.logit_bias import fit_bias
from interp.manifest import fingerprints
from interp.measures import DTYPE_NOISE
from interp.measures.plan import KEYS_VALUES, STATE_SITES, Plan
from interp.names import HOOKS
from interp.positions import SEGMENTS, position_labels
from interp.progress import Progress, no_progress
from interp.queries import Encoded, Query, read_queries
from interp.runs.files import read_manifest
from interp.selection import GROUP_OF, measures_of
from interp.store import SHARD, Store
from interp.subject import Subject, load
from interp.subject.aligning import encode_groups
from interp.subject.quantization import saved_method
from interp.subject.tokenizers import open_tokenizer

FIT_BATCH = 8
"""Queries per forward pass of such a fit, where no batch size is given."""

FITTED = 256
"""Matched queries that a logit bias is fitted to."""


def reopen(
    folder: Path, device: str | None = None, limit: int | None = None
) -> tuple[Experiment, dict[str, Condition]]:
    """What a finished run was made from, on another `device` where one is given, of at most `limit`
    queries of each group; a `RunError` where an input has changed since."""
    manifest = read_manifest(folder)
    experiment = Experiment.model_validate(manifest["config"])
    built = {n: c for n, c in experiment.build().items() if n in manifest["conditions"]}
    if changed := changed_inputs(experiment, built, manifest["hashes"]):
        raise RunError(f"the {changed[0]} has changed since {folder} was made; run it again")
    if device is not None:
        experiment = experiment.model_copy(update={"device": device})
    limits = [most for most in (limit, experiment.limit) if most is not None]
    return experiment.model_copy(update={"limit": min(limits, default=None)}), built


def changed_inputs(
    experiment: Experiment, built: Mapping[str, Condition], hashes: Mapping[str, str]
) -> list[str]:
    """What an experiment reads from disk that is not what it was, by role."""
    now = fingerprints(experiment, built)
    return [role for role, digest in hashes.items() if now.get(role) != digest]


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


def read_groups(experiment: Experiment) -> dict[str, list[Query]]:
    """The queries as written: `matched`, and `heldout` where given."""
    groups = {"matched": read_queries(experiment.queries, experiment.limit)}
    if experiment.heldout is not None:
        groups["heldout"] = read_queries(experiment.heldout, experiment.limit)
    return groups


def inputs_of(
    experiment: Experiment,
) -> tuple[dict[str, Condition], dict[str, list[Query]], Any]:
    """The conditions of an experiment that its model has a use for, its queries as written, and its
    tokenizer."""
    built, asked = experiment.build(), read_groups(experiment)
    tokenizer = open_tokenizer(
        experiment.model, built.values(), experiment.tokenizer, **experiment.hub
    )
    return applicable(experiment, built, tokenizer), asked, tokenizer


def probe_of(queries: Sequence[Encoded]) -> list[Encoded]:
    """The shortest and the longest query: what can be measured is tried on them."""
    by_length = sorted(queries, key=lambda query: len(query.ids))
    return [by_length[0], by_length[-1]]


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
    engine: Engine[Subject],
    built: Mapping[str, Condition],
    asked: Mapping[str, Sequence[Query]],
    store: Store,
    progress: Progress = no_progress,
) -> Prepared:
    """Check everything that can be wrong before the first measurement; write the answers, which is
    the first work of the `engine`: what its workers open is complete by then."""
    design = Design.of(built, experiment.families, experiment.compare)
    groups = encode_groups(subject, built, asked)
    withheld = find(subject, probe_of(groups["matched"]), BASE, experiment.unasked)
    fit_biases(subject, built, groups["matched"], experiment.batch_size or FIT_BATCH)
    written: WrittenAnswers = {}
    if experiment.answer_tokens:
        sampling = Sampling(experiment.temperature, experiment.seed)
        n_tokens = experiment.answer_tokens
        names = list(subject.settings)
        written = write_answers(engine, names, groups, n_tokens, sampling, store, progress)
        if experiment.answers_from is not None:
            groups = forced(subject, groups, written, experiment.answers_from)
    plan = make_plan(experiment, subject, design, groups, withheld)
    return Prepared(subject, groups, written, plan, design)


def fit_biases(
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


def another_subject(
    experiment: Experiment,
    built: Mapping[str, Condition],
    queries: Sequence[Query],
    hashes: Mapping[str, str],
    settings: Mapping[str, Setting],
) -> Subject:
    """The subject of an experiment in another process: with the `settings` of the first, where
    biases are fitted already. A `RunError` where a file has another hash here."""
    if changed := changed_inputs(experiment, built, hashes):
        raise RunError(f"the {changed[0]} that a worker reads is another one than the run's")
    return replace(open_subject(experiment, built, queries), settings=dict(settings))


def make_plan(
    experiment: Experiment,
    subject: Subject,
    design: Design,
    groups: Mapping[str, Sequence[Encoded]],
    withheld: Mapping[str, str],
) -> Plan:
    """Pairs, positions, samples and batch size of an experiment; a `ConfigError` where nothing that
    it names can be measured."""
    _check_left(experiment, subject, design, withheld)
    everyone = [query for queries in groups.values() for query in queries]
    longest = max(len(query.ids) for query in everyone)
    answer = max(len(query.answer_ids) for query in everyone)
    present = present_segments(experiment, everyone)
    read = max(len(query.forced) for query in everyone)
    fitting = chunk_size(subject, read, experiment.memory * 1e9)
    keys = [query.key for query in groups["matched"]]
    geometry, families = (name not in experiment.unasked for name in ("geometry", "families"))
    compared = [*(design.headline or subject.settings), *design.nulls, BASE]
    return Plan(
        base=BASE,
        pairs=design.pairs,
        certified=design.certified,
        controls=design.controls if experiment.permutations else {},
        members=design.members if families and len(design.families) > 1 else (),
        kept=tuple(name for name in subject.settings if geometry and name in compared),
        sample=frozenset(sample(keys, experiment.sample if geometry else 0, experiment.seed)),
        speaker=_speaker(design),
        against=token_id(experiment.against, subject.tokenizer) if experiment.against else None,
        bos=bool(subject.settings[BASE].n_prefix),
        labels=tuple(
            position_labels(
                longest, positions_of(experiment, subject), present, answer if present else 0
            )
        ),
        longest_answer=max(1, answer),
        sites=_sites(experiment, subject),
        replicates=experiment.bootstrap,
        permutations=experiment.permutations,
        seed=experiment.seed,
        batch_size=min(SHARD, experiment.batch_size or fitting),
        noise=DTYPE_NOISE[subject.dtype],
        withheld=withheld,
        unasked=experiment.unasked,
        layers=layers_of(subject),
    )


_POSITIONS, _MANY_HEADS = 32, 512
"""Positions with rows of their own where nothing is asked for, in a model of at most so many
heads."""


def positions_of(experiment: Experiment, subject: Subject) -> int:
    """How many positions of a query have rows of their own."""
    if experiment.max_positions is not None:
        return experiment.max_positions
    return _POSITIONS if subject.n_layers * subject.n_heads <= _MANY_HEADS else 0


def _check_left(
    experiment: Experiment, subject: Subject, design: Design, withheld: Mapping[str, str]
) -> None:
    missing = dict(withheld)
    if not subject.anatomy.layers("router"):
        missing["routing"] = "the model routes to no experts"
    if len(design.families) < 2:
        missing["families"] = "there are fewer than two"
    if not experiment.written - measures_of(missing):
        named = {GROUP_OF[name] for name in experiment.written}
        why = "; ".join(f"{name}: {why}" for name, why in missing.items() if name in named)
        raise ConfigError(f"nothing that --measures names can be measured ({why}): name others")


def _sites(experiment: Experiment, subject: Subject) -> tuple[str, ...]:
    """The sites whose states are compared, or read for another measure that is asked for."""
    if {"states", "families"} - experiment.unasked:
        return (*STATE_SITES, *(KEYS_VALUES if experiment.keys_values else ()))
    read = [] if "geometry" in experiment.unasked else ["resid_post"]
    if "change decomposition" not in experiment.unasked and subject.anatomy.mixed:
        read.append("z")
    return tuple(read)


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
