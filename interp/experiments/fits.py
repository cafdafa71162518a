"""One emulation of one kind, fitted to some examples and kept in memory: what experiments repeat.

    fitted = fit_plan(evaluation, evaluation.targets["matched"].of([0, 3]), FitPlan("text", 2))
    fitted.kl("heldout")                                # nats, of every query
    fitted.bits                                         # how much was chosen

`interp match invert` searches longer and writes its result; this is for many small searches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from jaxtyping import Float
from numpy import ndarray

from interp.conditions import Prompt, Setting, prefix_body
from interp.conditions.placing import TokenIds
from interp.design import BASE
from interp.matching import coordinate, few_shot
from interp.matching.evaluation import Evaluation
from interp.matching.examples import Examples, fit_answers
from interp.matching.readable import readable_words, scorer, slot_of
from interp.matching.settings import EmulationKind
from interp.matching.virtual import Tuning, tune
from interp.queries import check_alignment

_NUMBER = 32
"""Bits of a logit bias's number."""


class FitPlan(NamedTuple):
    """What is fitted, and how long the search may be.

    `size`: virtual tokens, tokens of the text, or most demonstrations. `steps` of gradient or of
    the text search (0 leaves a text as it was drawn); `candidates` of `top` as in
    `coordinate.SearchBudget`; `rate` as in `Tuning`.
    """

    kind: EmulationKind
    size: int
    steps: int = 60
    seed: int = 0
    candidates: int = 32
    top: int = 32
    rate: float = 0.3


@dataclass(frozen=True)
class Fitted:
    """A setting on an evaluation, with the key/value cache of what precedes the query; `size` as in
    `FitPlan`, `bits` that say which emulation of its kind it is, and the text where it is one."""

    evaluation: Evaluation
    setting: Setting
    cache: Any
    size: int = 0
    bits: float = 0.0
    text: str = ""

    @classmethod
    def of(cls, evaluation: Evaluation, setting: Setting, *about: Any) -> Fitted:
        """A setting without virtual tokens; `about` are size, bits and text."""
        return cls(evaluation, setting, evaluation.subject.prefill(setting), *about)

    def kl(self, group: str) -> Float[ndarray, " query"]:
        """`KL(target ‖ setting)` of every query of a group, nats."""
        return self.evaluation.kl(self.setting, group, self.cache)

    def biased(self, wanted: Examples) -> Fitted:
        """The same with the constant logit bias that brings it nearest to the examples."""
        size = self.evaluation.settings.batch_size
        bias = fit_answers(self.evaluation.subject, wanted, self.setting, size, self.cache)
        setting = replace(self.setting, bias=(*self.setting.bias, *bias))
        return replace(self, setting=setting, bits=self.bits + _NUMBER * len(bias))


def fit_plan(evaluation: Evaluation, wanted: Examples, plan: FitPlan) -> Fitted:
    """The emulation of the plan's kind that comes nearest to the examples."""
    if plan.kind == "text":
        return _text(evaluation, wanted, plan)
    if plan.kind == "few_shot":
        return max(fit_shots(evaluation, wanted, plan.size), key=lambda fitted: fitted.size)
    return _virtual(evaluation, wanted, plan)


def fit_shots(evaluation: Evaluation, wanted: Examples, most: int) -> Iterator[Fitted]:
    """The demonstrations that greedy selection has after 1, 2, ... steps, as far as it goes."""
    pool, template = evaluation.settings.demonstrations(), evaluation.settings.template

    def prompt(shots: list[int]) -> Prompt:
        return Prompt(pairs=tuple(pool[i] for i in shots), template=template)

    def written(shots: list[int]) -> TokenIds:
        return tuple(prefix_body(prompt(shots), evaluation.subject.tokenizer))

    chosen = few_shot.select(scorer(evaluation, wanted), written, len(pool), most)
    for count in range(1, len(chosen.shots) + 1):
        shots = chosen.shots[-count:]  # the last added stands first
        shown = prompt(shots)
        fitted = spelled(evaluation, written(shots), shown.as_text())
        own, words = fitted.setting.prefix, evaluation.subject.tokenizer
        check_alignment(evaluation.queries["matched"], shown, words, "demonstrations", prefix=own)
        yield replace(fitted, size=count)


def _text(evaluation: Evaluation, wanted: Examples, plan: FitPlan) -> Fitted:
    slot = slot_of(evaluation, evaluation.settings.separator)
    budget = coordinate.SearchBudget(plan.size, plan.steps, plan.candidates, plan.top, plan.seed)
    found = coordinate.search_prompt(
        scorer(evaluation, wanted, slot), readable_words(evaluation, slot), budget
    )
    text = str(evaluation.subject.tokenizer.decode(list(found.prompt)))
    return replace(spelled(evaluation, (*found.prompt, *slot.after), text), size=plan.size)


def _virtual(evaluation: Evaluation, wanted: Examples, plan: FitPlan) -> Fitted:
    kind: Any = plan.kind
    base, size = evaluation.subject.settings[BASE], evaluation.settings.batch_size
    tuning = Tuning(kind, plan.size, plan.steps, plan.rate, size, seed=plan.seed)
    tuned = tune(evaluation.subject, base, wanted, tuning)
    bits = 8.0 * tuned.values.element_size() * tuned.parameters
    return Fitted(evaluation, *tuned.before(evaluation.subject, base), plan.size, bits)


def spelled(evaluation: Evaluation, ids: TokenIds, text: str = "") -> Fitted:
    """Token ids between base's own and the query; a token says log2(vocabulary) bits."""
    base = evaluation.subject.settings[BASE]
    setting = replace(base, prefix=(*base.prefix, *ids))
    bits = len(ids) * math.log2(evaluation.subject.n_words)
    return Fitted.of(evaluation, setting, len(ids), bits, text)
