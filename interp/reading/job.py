"""What is read of a run: its model under base, the two sides of its headline and their controls,
its matched queries, and unrelated texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from interp.answers import encode_again
from interp.conditions import Condition, Neutral, RandomLora, simple_parts
from interp.config import Experiment
from interp.design import BASE, ConditionPair, Design
from interp.errors import ConfigError
from interp.preparing import open_subject, present_segments, read_groups, reopen
from interp.progress import Progress, no_progress
from interp.queries import Encoded, Query, read_queries
from interp.reading.settings import DifferenceReading
from interp.subject import Subject
from interp.subject.aligning import encode_groups

MATCHED_QUERIES, UNRELATED_QUERIES = "matched", "unrelated"
"""The run's queries, and texts that have nothing to do with them."""

UNRELATED_TEXTS = Path(__file__).resolve().parent / "unrelated.jsonl"
"""Plain sentences that ask for nothing."""


class ReadJob(NamedTuple):
    """`pairs`: every pair that is read -> the pair that stands for its null (None: it has none);
    `neutral`, `random`: the neutral prompt and the random LoRA among the nulls, if any;
    `carrier`: the prompt of the patchscope;
    `labels`: group -> the positions that states are averaged over."""

    subject: Subject
    sides: tuple[str, ...]
    pairs: dict[ConditionPair, ConditionPair | None]
    groups: Mapping[str, Sequence[Encoded]]
    carrier: Encoded
    labels: Mapping[str, tuple[str, ...]]
    caches: Mapping[str, Any]
    neutral: str | None
    random: str | None
    seed: int
    batch_size: int

    @property
    def conditions(self) -> list[str]:
        """Base and every condition of a pair."""
        return list(dict.fromkeys([BASE, *(name for pair in self.pairs for name in pair)]))


def prepare_reading(settings: DifferenceReading, progress: Progress = no_progress) -> ReadJob:
    """The model of a run under what is compared; a ConfigError where nothing can be."""
    experiment, built = reopen(settings.run, settings.device, settings.limit)
    design = Design.of(built, experiment.families, experiment.compare)
    sides = _sides(settings, design, built)
    pairs = _pairs(design, built, sides)
    names = dict.fromkeys([BASE, *(name for pair in pairs for name in pair)])
    if settings.jacobian is not None and settings.jacobian not in names:
        among = ", ".join(names)
        raise ConfigError(f"--jacobian: no condition {settings.jacobian!r} among {among}")
    kept = {name: built[name] for name in names}
    asked = {MATCHED_QUERIES: read_groups(experiment)[MATCHED_QUERIES]}
    subject = open_subject(experiment, kept, asked[MATCHED_QUERIES], progress)
    if settings.jacobian is not None and not _weights_alone(subject, settings.jacobian):
        raise ConfigError(
            f"--jacobian {settings.jacobian}: the lens is fitted on texts alone, so that the "
            "condition must be base or change nothing but weights"
        )
    groups = encode_again(settings.run, subject, kept, asked)
    if len(groups[MATCHED_QUERIES]) < 2:
        raise ConfigError(f"{settings.run} has one matched query: a reading needs two or more")
    texts = {UNRELATED_QUERIES: read_queries(settings.texts or UNRELATED_TEXTS, settings.limit)}
    groups |= encode_groups(subject, kept, texts)
    alone = {"carrier": [Query(settings.carrier)]}
    (carrier,) = encode_groups(subject, {BASE: kept[BASE]}, alone)["carrier"]
    return ReadJob(
        subject,
        sides,
        pairs,
        groups,
        carrier,
        {name: _labels(experiment, queries) for name, queries in groups.items()},
        {name: subject.prefill(subject.settings[name]) for name in kept},
        _control(design, built, Neutral),
        _control(design, built, RandomLora),
        experiment.seed,
        settings.batch_size,
    )


def _labels(experiment: Experiment, queries: Sequence[Encoded]) -> tuple[str, ...]:
    """The last token and the segments; without these, the last token and all."""
    present = present_segments(experiment, queries)
    if all(len(query.answer_ids) < 2 for query in queries):  # the last token is all of it
        present = [name for name in present if name != "answer"]
    return ("last", *(present or ["mean"]))


def _sides(
    settings: DifferenceReading, design: Design, built: Mapping[str, Condition]
) -> tuple[str, ...]:
    """The headline's two conditions, as far as they have states of their own; without a headline
    all that are no control."""
    found = design.headline or [n for n, c in built.items() if c.role != "control"]
    sides = tuple(name for name in found if name != BASE and not built[name].only_logits)
    if not sides:
        raise ConfigError(f"{settings.run} has no condition with states of its own to read")
    return sides


def _pairs(
    design: Design, built: Mapping[str, Condition], sides: Sequence[str]
) -> dict[ConditionPair, ConditionPair | None]:
    """Each side against base, neutral text and random LoRAs too, then the second against the
    first."""
    controls = [name for name in design.nulls if _is_null(built[name])]
    pairs: dict[ConditionPair, ConditionPair | None] = {
        (side, BASE): design.controls.get((side, BASE)) for side in sides
    }
    pairs |= {(name, BASE): None for name in controls}
    if len(sides) == 2 and sides == design.headline:
        a, b = sides
        null = design.controls.get((a, b))
        turned = (null[1], null[0]) if null else None
        pairs |= {(b, a): turned} | ({turned: None} if turned else {})
    return {pair: null if null in pairs else None for pair, null in pairs.items()}


def _weights_alone(subject: Subject, condition: str) -> bool:
    """Whether a condition is base but for its weights (and for what it adds to logits)."""
    own, base = (
        replace(subject.settings[name], adapters=(), model=None, bias=())
        for name in (condition, BASE)
    )
    return own == base


def _is_null(control: Condition) -> bool:
    return any(isinstance(part, Neutral | RandomLora) for part in simple_parts(control))


def _control(design: Design, built: Mapping[str, Condition], kind: type[Condition]) -> str | None:
    """The first null of a kind."""
    parts = {name: simple_parts(built[name]) for name in design.nulls}
    return next((n for n, own in parts.items() if any(isinstance(p, kind) for p in own)), None)
