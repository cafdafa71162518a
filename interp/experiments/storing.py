"""Facts that a model never learned, stored in a text, in virtual tokens, or in a LoRA.

    facts = shuffled_facts(read_queries("facts.jsonl"), seed=0)
    for stored in store(settings, facts, StorageBudget(counts=(4, 16))):
        stored.given.mean(), stored.others.mean()

A text spells the facts out before the query; virtual tokens and a LoRA are trained on them, at an
equal number of parameters. Asked are the facts that were given and the others.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from interp.capture import chunks
from interp.conditions import Base, Lora, Prompt, Setting, prefix_body, resolve
from interp.errors import ConfigError
from interp.experiments.recall import answered_right, certain, taught
from interp.matching.examples import Examples, examples
from interp.matching.lora import Example, Recipe, train, with_lora
from interp.matching.plain import open_plain_model
from interp.matching.settings import Emulation
from interp.matching.virtual import Tuning, VirtualKind, initial, tune
from interp.queries import Encoded, Query, encode
from interp.statistics import generator_of
from interp.subject import Subject, load
from interp.subject.loading import quiet, threads_for
from interp.subject.tokenizers import open_tokenizer

TEXT_LABEL, SOFT_PROMPT_LABEL, PREFIX_LABEL, LORA_LABEL = "text", "soft prompt", "prefix", "LoRA"
_KINDS: dict[str, VirtualKind] = {SOFT_PROMPT_LABEL: "soft_prompt", PREFIX_LABEL: "prefix"}


class StorageBudget(NamedTuple):
    """How many facts are stored, and in how much: the rank of a LoRA of all linear layers fixes the
    number of parameters, and so how many virtual tokens there are. All take as many steps; `rate`
    and `learning_rate` are those of virtual tokens (a share of their start) and of the LoRA."""

    counts: tuple[int, ...]
    ranks: tuple[int, ...] = (1,)
    steps: int = 200
    rate: float = 0.3
    learning_rate: float = 2e-2


@dataclass(frozen=True)
class Stored:
    """What is recalled after the first `count` facts were stored: `right` is 1 or 0 of every fact.
    `size`: tokens, virtual tokens, or rank; `parameters`: trained numbers (a text has none)."""

    way: str
    count: int
    rank: int
    size: int
    parameters: int
    right: Float[ndarray, " fact"]

    @property
    def given(self) -> Float[ndarray, " fact"]:
        """Of the facts that were stored."""
        return self.right[: self.count]

    @property
    def budget(self) -> str:
        """Rank or number of virtual tokens, in words; a text is as long as its facts."""
        return {TEXT_LABEL: "", LORA_LABEL: f", rank {self.size}"}.get(
            self.way, f", {self.size} tokens"
        )

    @property
    def others(self) -> Float[ndarray, " fact"]:
        """Of the facts that were not."""
        return self.right[self.count :]


def shuffled_facts(facts: Sequence[Query], seed: int) -> list[Query]:
    """The facts in a random order, of which the first are stored; each needs an answer."""
    if missing := [fact.text for fact in facts if not fact.answer]:
        raise ConfigError(f"the fact {missing[0]!r} has no answer")
    order = generator_of(f"facts:{seed}").permutation(len(facts))
    return [facts[i] for i in order]


def chance(facts: Sequence[Query]) -> Float[ndarray, " fact"]:
    """How often a guess among the answers of the fact's own label is right."""
    counts = Counter((fact.label, fact.answer) for fact in facts)
    labels = Counter(label for label, _ in counts)
    return np.array([1 / labels[fact.label] for fact in facts])


def store(
    settings: Emulation,
    facts: Sequence[Query],
    budget: StorageBudget,
    done: Callable[[], None] = lambda: None,
) -> list[Stored]:
    """Every way of storing every number of facts, and first of all the model as it is; `done` is
    called after each way."""
    loras = {}
    for place in product(budget.counts, budget.ranks):
        loras[place] = _train_lora(settings, facts, budget, *place)
        done()
    adapted = {_name(*place): Lora(str(lora.folder)) for place, lora in loras.items()}
    conditions = {"base": Base(), **adapted}
    subject = load(settings.model, conditions, [facts[0].text], **settings.loading)
    base, queries = subject.settings["base"], encode(facts, subject.tokenizer, "fact")
    told = taught(examples(subject, base, queries, settings.batch_size), queries)
    desk = _Desk(settings, subject, base, facts, queries, told)
    found = [Stored("base", 0, 0, 0, 0, desk.recalled(base))]
    found += [text for count in budget.counts if (text := desk.in_text(count))]
    for place, lora in loras.items():
        got = desk.recalled(subject.settings[_name(*place)])
        found.append(Stored(LORA_LABEL, *place, place[1], lora.parameters, got))
        for way in _KINDS:
            found.append(desk.in_virtual(way, *place, lora.parameters, budget))
            done()
    return found


def ways(budget: StorageBudget) -> int:
    """How many times `store` calls `done`."""
    return len(budget.counts) * len(budget.ranks) * (1 + len(_KINDS))


def _name(count: int, rank: int) -> str:
    return f"lora_{count}_{rank}"


class _TrainedLora(NamedTuple):
    """Its folder, and how many numbers it has."""

    folder: Path
    parameters: int


def _train_lora(
    settings: Emulation, facts: Sequence[Query], budget: StorageBudget, count: int, rank: int
) -> _TrainedLora:
    """A LoRA of all linear layers that is trained on the first facts."""
    out = settings.out / _name(count, rank)
    with quiet():
        tokenizer = open_tokenizer(settings.model, (), settings.tokenizer, **settings.hub)
        model = open_plain_model(settings.model, settings)
        recipe = Recipe(
            rank=rank,
            alpha=2 * rank,
            targets=("all-linear",),
            learning_rate=budget.learning_rate,
            epochs=math.ceil(budget.steps / math.ceil(count / settings.batch_size)),
            batch_size=settings.batch_size,
            target_kl=0.0,
            patience=budget.steps,
            seed=settings.seed,
        )
        student = with_lora(model, recipe)
    words = model.get_output_embeddings().weight.shape[0]
    sequences = [
        Example((*q.ids, *q.answer_ids[:-1]), len(q.ids) - 1, certain(q.answer_ids, words))
        for q in encode(facts[:count], tokenizer, "fact")
    ]
    with threads_for(student.num_parameters()):
        train(student, resolve(Base(), tokenizer).prefix, lambda _: sequences, recipe, out)
    return _TrainedLora(out, sum(p.numel() for p in student.parameters() if p.requires_grad))


@dataclass(frozen=True)
class _Desk:
    """A parity-checked subject with the LoRAs, and every fact as something to be said."""

    options: Emulation
    subject: Subject
    base: Setting
    facts: Sequence[Query]
    queries: list[Encoded]
    told: Examples

    def recalled(self, setting: Setting, cache: Any = None) -> Float[ndarray, " fact"]:
        """1 for every fact that is said, else 0."""
        cache, found = cache or self.subject.prefill(setting), []
        for some in chunks(range(len(self.queries)), self.options.batch_size):
            logits = self.subject.run(setting, self.told.of(some).batch, cache)
            found.append(answered_right([self.queries[i] for i in some], logits))
        return np.concatenate(found)

    def in_text(self, count: int) -> Stored | None:
        """The facts written before the query; None where the model cannot read them all."""
        pairs = tuple((fact.text, str(fact.answer)) for fact in self.facts[:count])
        prompt = Prompt(pairs=pairs, template=self.options.template)
        ids = prefix_body(prompt, self.subject.tokenizer)
        setting = replace(self.base, prefix=(*self.base.prefix, *ids))
        if len(setting.prefix) + self.told.batch.ids.shape[1] > self.subject.context:
            return None
        return Stored(TEXT_LABEL, count, 0, len(ids), 0, self.recalled(setting))

    def in_virtual(
        self, way: str, count: int, rank: int, parameters: int, budget: StorageBudget
    ) -> Stored:
        """Virtual tokens of no more parameters (but one at least), trained on the first facts."""
        base = self.base
        tuning = Tuning(
            _KINDS[way],
            tokens=1,
            steps=budget.steps,
            rate=budget.rate,
            batch_size=self.options.batch_size,
            patience=budget.steps,
            seed=self.options.seed,
        )
        tokens = max(1, parameters // initial(self.subject, base, tuning).numel())
        tuning = tuning._replace(tokens=tokens)
        with threads_for(self.subject.n_parameters):
            tuned = tune(self.subject, base, self.told.of(range(count)), tuning)
            got = self.recalled(*tuned.before(self.subject, base))
        return Stored(way, count, rank, tokens, tuned.parameters, got)
