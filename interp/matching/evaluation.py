"""One target, and how near other conditions come to it, on groups of queries.

evaluation = Evaluation.open(settings, {"prompt": Prompt(text="opposite :")})
evaluation.kl("prompt", "heldout")       # KL(target ‖ prompt) of every query, nats
evaluation.strength(evaluation.kl("prompt", "heldout"), "heldout")
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from interp.conditions import RAW, Base, Condition, Frame, Lora, Setting
from interp.design import BASE
from interp.matching.examples import Examples, examples
from interp.matching.settings import Emulation
from interp.matching.strength import Strength, strength
from interp.measures.certificate import Tolerance, answer_outputs, certificate
from interp.progress import Progress
from interp.queries import Groups, Query, read_queries
from interp.statistics import Estimate, pooled
from interp.subject import Batch, Subject, load
from interp.subject.aligning import check_lengths, encode_groups

Answered = Callable[[Subject, Groups], Groups]
"""Gives every group's queries their answers."""

TARGET, FLOOR_PREFIX = "target", "floor_"


@dataclass(frozen=True)
class Evaluation:
    """A subject with `base`, `target`, the target's equals (`floor_0`, ...) and other conditions;
    its queries and what the target says on them, by group."""

    settings: Emulation
    subject: Subject
    queries: Groups
    targets: dict[str, Examples] = field(repr=False)

    @classmethod
    def open(
        cls,
        settings: Emulation,
        conditions: Mapping[str, Condition] | None = None,
        asked: Mapping[str, Sequence[Query]] | None = None,
        frame: Frame = RAW,
        answered: Answered | None = None,
        progress: Progress = lambda stage, newly, total: None,
    ) -> Evaluation:
        """Load and verify the model under all conditions; `asked` are the matched and held-out
        queries of the settings, unless others are given, `answered` gives them other answers than
        their own, `frame` says where they stand. `progress` is told how far loading is."""
        groups = asked or read_emulation_groups(settings)
        floor = {f"{FLOOR_PREFIX}{i}": Lora(adapter) for i, adapter in enumerate(settings.floor)}
        every = {BASE: Base(), TARGET: settings.target, **floor, **(conditions or {})}
        subject = load(
            settings.model,
            every,
            [next(iter(groups.values()))[0]],
            frame=frame,
            progress=progress,
            **settings.loading,
        )
        queries: Groups = encode_groups(subject, every, groups)
        if answered is not None:
            queries = answered(subject, queries)
            for some in queries.values():
                check_lengths(subject, some)
        target, size = subject.settings[TARGET], settings.batch_size
        targets = {name: examples(subject, target, some, size) for name, some in queries.items()}
        return cls(settings, subject, queries, targets)

    def kl(
        self, condition: str | Setting, group: str, cache: Any = None
    ) -> Float[ndarray, " query"]:
        """`KL(target ‖ condition)` of every query of a group, nats."""
        setting = self.subject.settings[condition] if isinstance(condition, str) else condition
        cache = self.subject.prefill(setting) if cache is None else cache
        target, size, found = self.targets[group], self.settings.batch_size, []
        for start in range(0, len(target), size):
            some = target.of(range(start, min(start + size, len(target))))
            said = some.logits_of(self.subject, setting, cache)
            found.append(some.divergence(said).cpu().numpy())
        return np.concatenate(found)

    def mean(
        self,
        group: str,
        above: Float[ndarray, "query *rest"],
        below: Float[ndarray, "query *rest"] | float = 1.0,
    ) -> Estimate:
        """The mean over a group's queries, or the ratio of two such means, with its interval."""
        keys = [query.key for query in self.queries[group]]
        return pooled(above, below, keys, self.settings.bootstrap, self.settings.seed)

    def strength(self, kl: Float[ndarray, " query"], group: str) -> Strength:
        """What share of the target's effect an emulation of this divergence gives."""
        keys = [query.key for query in self.queries[group]]
        return strength(kl, self.kl(BASE, group), keys, self.settings.bootstrap, self.settings.seed)

    def caption(self, note: str = "") -> str:
        """What a figure of this evaluation must say: model, target, queries, interval, seed."""
        counts = " and ".join(f"{len(some)} {name}" for name, some in self.queries.items())
        parts = [
            note,
            f"Model: {self.settings.model_name}",
            f"Target: {self.settings.target.describe()}",
            f"n = {counts} queries",
            f"95 % interval, Poisson bootstrap over queries, {self.settings.bootstrap} replicates",
            f"Seed {self.settings.seed}",
        ]
        return ". ".join(part.rstrip(".") for part in parts if part) + "."

    @property
    def equal_names(self) -> list[str]:
        """The conditions that are the target's equals."""
        return [name for name in self.subject.settings if name.startswith(FLOOR_PREFIX)]

    def floor(self, group: str) -> float | None:
        """The mean divergence of the target's equals; None where none are given."""
        found = [self.kl(name, group).mean() for name in self.equal_names]
        return float(np.mean(found)) if found else None

    def equals(self, group: str) -> Strength | None:
        """The strength of the target's equals, their mean by query; None where none are given."""
        each = [self.kl(name, group) for name in self.equal_names]
        return self.strength(np.mean(each, axis=0), group) if each else None

    def certificate(self, condition: str, group: str) -> dict[str, Any]:
        """The match certificate of the target and a condition."""
        pair = [self.subject.settings[name] for name in (TARGET, condition)]
        caches = [self.subject.prefill(setting) for setting in pair]
        queries, size, rows = self.queries[group], self.settings.batch_size, []
        answers = [len(query.segments["answer"]) for query in queries]
        longest = max(answers)
        for start in range(0, len(queries), size):
            batch = Batch.forced(queries[start : start + size], self.subject.device)
            p, q = (self.subject.run(s, batch, c) for s, c in zip(pair, caches, strict=True))
            rows.append(answer_outputs(p, q, batch.answer, longest))
        tolerance = Tolerance(self.settings.tolerance_js, self.settings.tolerance_top1)
        texts = [query.text for query in queries]
        return certificate(np.concatenate(rows), texts, tolerance, answers)


def read_emulation_groups(settings: Emulation) -> dict[str, list[Query]]:
    """The matched queries, and the held-out ones where there are some."""
    groups = {"matched": read_queries(settings.queries, settings.limit)}
    if settings.heldout is not None:
        groups["heldout"] = read_queries(settings.heldout, settings.limit)
    return groups
