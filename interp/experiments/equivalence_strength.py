"""How strong is the best prompt-equivalent of a LoRA, for one query and for many?

A prompt's strength is the share of the LoRA's effect on the output that it gives: 1 is the LoRA
itself, 0 is base. Here prompts of four kinds are fitted with growing budgets, with and without a
logit bias beside them, once to single queries and once to all, and scored on these queries and on
unseen ones. If strength comes up to that of another seed of the LoRA, the prompt is its equal as
far as these queries tell; if it stops short however large the budget, something in the weights has
no equivalent in a prompt. A logit bias alone says how much needs no prompt at all.

Size is counted in bits: a text of n tokens is one of vocabulary ** n, n virtual tokens are so many
numbers of 32 bits, and a logit bias as many as it names tokens. Bits are the size of what is
written down, not what is needed to find it.

    interp experiment equivalence_strength                    # the bundled model
    interp experiment equivalence_strength --virtual 1 16 --steps 300
    interp experiment equivalence_strength --model M --adapter A --queries Q.jsonl \\
        --heldout H.jsonl --pool P.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import pandas as pd
from pydantic import Field

from interp.experiments.draws import (
    FIT_GROUP,
    HELDOUT,
    OTHER_LORA_SEEDS,
    ScoredFit,
    Scores,
    asked,
    drawn_queries,
    equal_scores,
    over_draws,
    scored,
    strength_of,
)
from interp.experiments.fits import FitPlan, Fitted, fit_plan, fit_shots, spelled
from interp.experiments.trial import Measurement, Trial
from interp.matching.evaluation import Evaluation
from interp.matching.examples import Examples
from interp.matching.strength import Strength
from interp.plots.curves import Curves, curves
from interp.progress import Progress

_X, _Y = "bits of the prompt", "1 - strength"
_NOTE = "Share of the LoRA's effect that is missing. Lower is nearer to it. Grey: controls"
_BIAS = "logit bias alone"


class FitBudget(NamedTuple):
    """A kind of emulation, its size, how `many` queries it was fitted to, and whether a fitted
    logit bias stands beside it."""

    kind: str
    size: int
    many: int
    biased: bool = False


class _Reached(NamedTuple):
    """What was reached with a budget: its bits, and how every fit does on every group."""

    bits: float
    scores: Scores


BudgetScores = dict[FitBudget, _Reached]


class EquivalenceStrength(Trial):
    """Fit prompts of growing size to one query and to all, and score them on others."""

    point = 0
    claim = "A prompt can be found that emulates the LoRA, on unseen queries too."
    unit = "fits"

    virtual: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of virtual tokens of the soft prompts and prefixes."""
    tokens: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of tokens of the texts."""
    shots: int = Field(default=8, ge=1)
    """Largest number of demonstrations (without --pool: none)."""
    draws: int = Field(default=2, ge=1)
    """Number of single queries that a prompt is fitted to, one at a time."""
    steps: int = Field(default=60, ge=1)
    """Gradient steps for virtual tokens."""
    rate: float = Field(default=FitPlan._field_defaults["rate"], gt=0)
    """Adam's learning rate for virtual tokens, relative to the size of the initial values."""
    text_steps: int = Field(default=12, ge=1)
    """Steps of the text search."""
    threshold: float = 0.9
    """Strength on held-out queries at which a prompt counts as equivalent."""

    @property
    def plans(self) -> list[tuple[str, FitPlan]]:
        """Every search, by the kind of prompt."""
        return [
            *(("text", FitPlan("text", n, self.text_steps)) for n in self.tokens),
            *(
                ("soft prompt", FitPlan("soft_prompt", n, self.steps, rate=self.rate))
                for n in self.virtual
            ),
            *(("prefix", FitPlan("prefix", n, self.steps, rate=self.rate)) for n in self.virtual),
            *([("demonstrations", FitPlan("few_shot", self.shots))] if self.pool else []),
        ]

    def measure(self, progress: Progress) -> Measurement:
        """Fits of every size, scored, and the verdict on what fits all queries best."""
        with self.evaluation(asked=asked(self)) as evaluation:
            most = len(evaluation.queries["matched"])
            done = partial(progress, "equivalence strength", 1)
            found = sweep_budgets(evaluation, self.plans, sorted({1, most}), self.draws, done)
            points = budget_table(found, evaluation)
            biased = points["biased"].eq(True)
            drawn = {
                "equivalence_strength": (points[~biased | points["series"].eq(_BIAS)], _X),
                "with_logit_bias": (
                    points[biased | points["series"].eq(OTHER_LORA_SEEDS)],
                    f"{_X}, bias not counted",
                ),
            }
            caption = evaluation.caption(f"{_NOTE}. {self.draws} single queries, one at a time")
            figures, grey = {}, [OTHER_LORA_SEEDS, _BIAS]
            for name, (rows, x) in drawn.items():
                title = "How strong is the best prompt-equivalent?"
                title += " With a fitted logit bias" if name == "with_logit_bias" else ""
                look = Curves(title, x, _Y, log_x=True, log_y=True, levels={"base": 1.0}, grey=grey)
                figures[name] = curves(rows, look, caption)
            best = best_budget(found, evaluation, most)
            there = strength_of(found[best].scores, HELDOUT, evaluation)
            what = (
                f"strength on unseen queries of what fits {most} best ({budget_name(best, found)})"
            )
            contrast = there.against(self.threshold, what)
            sentence = " ".join(_sentences(found, evaluation, self.threshold))
            return Measurement(
                sentence, contrast, len(evaluation.queries[HELDOUT]), points, figures
            )


def sweep_budgets(
    evaluation: Evaluation,
    plans: Sequence[tuple[str, FitPlan]],
    counts: Sequence[int],
    draws: int,
    done: Callable[[int], None] = lambda of: None,
) -> BudgetScores:
    """Fit every plan to so many queries, with and without a bias, and score it on matched and
    held-out queries; all queries are fitted to once. `done` is called after each plan with the
    number of all."""
    most = len(evaluation.queries["matched"])
    rounds = [(n, number) for n in counts for number in range(1 if n >= most else draws)]
    found: BudgetScores = {}
    for (count, number), (kind, plan) in product(rounds, plans):
        chosen = drawn_queries(evaluation, count, number)
        wanted = evaluation.targets["matched"].of(chosen)
        for one in _fits(evaluation, wanted, plan._replace(seed=evaluation.settings.seed + number)):
            for biased in (False, True):
                fitted = one.biased(wanted) if biased else one
                _note(found, FitBudget(kind, one.size, count, biased), evaluation, fitted, chosen)
        done(len(rounds) * len(plans))
    for count, number in rounds:
        chosen = drawn_queries(evaluation, count, number)
        alone = spelled(evaluation, ()).biased(evaluation.targets["matched"].of(chosen))
        _note(found, FitBudget(_BIAS, 0, count, True), evaluation, alone, chosen)
    return found


def _fits(evaluation: Evaluation, wanted: Examples, plan: FitPlan) -> Iterator[Fitted]:
    """What a plan gives: demonstrations in every number up to its size, all else in its size."""
    if plan.kind == "few_shot":
        yield from fit_shots(evaluation, wanted, plan.size)
    else:
        yield fit_plan(evaluation, wanted, plan)


def _note(
    found: BudgetScores,
    budget: FitBudget,
    evaluation: Evaluation,
    fitted: Fitted,
    chosen: Sequence[int],
) -> None:
    """Score a fit and file it; the caches of many fits would not fit into memory."""
    kept = found.setdefault(budget, _Reached(fitted.bits, {}))
    for group, draws in scored(evaluation, [fitted], [chosen]).items():
        kept.scores.setdefault(group, []).extend(draws)


def budget_table(found: BudgetScores, evaluation: Evaluation) -> pd.DataFrame:
    """The share of the target's effect that is missing (1 - strength), by the prompt's bits (those
    of a bias beside it are in `bits` only); one panel for what was fitted to and one for unseen
    queries, of every number of queries."""
    counts = list(dict.fromkeys(budget.many for budget in found))
    bits = [reached.bits for reached in found.values()]
    others = equal_scores(evaluation)
    rows = []
    for count, group in product(counts, (FIT_GROUP, HELDOUT)):
        panel = f"fitted to {count}, {'these' if group == FIT_GROUP else 'unseen'} queries"
        for budget, reached in found.items():
            if budget.many == count:
                series = budget.kind + (" + bias" if budget.biased and budget.size else "")
                at = {"size": budget.size, "biased": budget.biased, "bits": reached.bits}
                x = found.get(budget._replace(biased=False), reached).bits
                point = _missing(reached.scores[group], evaluation).point(panel, series, x)
                rows.append(point | at)
        if others:
            level = _missing(others[group], evaluation)
            rows += [level.point(panel, OTHER_LORA_SEEDS, x) for x in (min(bits), max(bits))]
    return pd.DataFrame(rows)


def _missing(draws: Sequence[ScoredFit], evaluation: Evaluation) -> Strength:
    """`1 - strength` in the place of strength."""
    found = over_draws(draws, evaluation.settings.bootstrap, evaluation.settings.seed)
    low, high = 1 - found.ci_high, 1 - found.ci_low
    return found._replace(strength=1 - found.strength, ci_low=low, ci_high=high)


def strong(
    found: BudgetScores, evaluation: Evaluation, count: int, least: float
) -> FitBudget | None:
    """The smallest budget that gives so much of the target's effect on unseen queries; None if none
    does."""
    of = sorted((b for b in found if b.many == count), key=lambda b: found[b].bits)
    enough = (b for b in of if _missing(found[b].scores[HELDOUT], evaluation).strength <= 1 - least)
    return next(enough, None)


def budget_name(budget: FitBudget, found: BudgetScores) -> str:
    """A budget for people."""
    if not budget.size:
        return f"{budget.kind}, {found[budget].bits:.0f} bits"
    parts = f"{budget.kind} of {budget.size}" + (" and bias" if budget.biased else "")
    return f"{parts}, {found[budget].bits:.0f} bits"


def best_budget(found: BudgetScores, evaluation: Evaluation, count: int) -> FitBudget:
    """What comes nearest on the queries that it was fitted to."""
    of = [budget for budget in found if budget.many == count]
    return min(
        of, key=lambda budget: _missing(found[budget].scores[FIT_GROUP], evaluation).strength
    )


def _sentences(found: BudgetScores, evaluation: Evaluation, threshold: float) -> Iterator[str]:
    """How strong what fits one query, or all, is there and on unseen ones; and the LoRA's seeds."""
    for count in sorted({1, len(evaluation.queries["matched"])}):
        best = best_budget(found, evaluation, count)
        here, there = (strength_of(found[best].scores, g, evaluation) for g in (FIT_GROUP, HELDOUT))
        small = strong(found, evaluation, count, threshold)
        yield (
            f"Fitted to {count}, the best ({budget_name(best, found)}) has strength "
            f"{here.strength:.4f} there and {there.strength:.4f} on unseen queries; the smallest "
            f"of {threshold:g} on these is {budget_name(small, found) if small else 'none'}."
        )
    if seeds := equal_scores(evaluation):
        level = strength_of(seeds, HELDOUT, evaluation).strength
        yield f"Other seeds of the LoRA have {level:.4f} on unseen queries."
