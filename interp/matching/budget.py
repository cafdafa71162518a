"""How near a prompt can come to a LoRA, by how much of it is chosen: bits, not only tokens.

    found = sweep_budgets(bench, [("text", Plan("text", 2))], counts=(1, 54), draws=2)
    budget_table(found, bench)                 # for `interp.plots.curves`
    best_budget(found, bench, 54)              # the budget that fits best, for many queries

A text of n tokens is one of vocabulary ** n, n virtual tokens are so many numbers of 32 bits, and
a logit bias as many as it names tokens. Bits are the size of what is written down, not what is
needed to find it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from interp.matching.bench import Bench
from interp.matching.carrying import FIT_GROUP, HELDOUT, Scores, drawn_queries, scored
from interp.matching.examples import Examples, fit_answers
from interp.matching.fits import FitPlan, Fitted, fit_plan, fit_shots, spelled
from interp.matching.nulls import OTHER_LORA_SEEDS, equals
from interp.matching.strength import ScoredFit, Strength, over_draws

if TYPE_CHECKING:
    import pandas as pd

BIAS = "logit bias alone"
_NUMBER = 32
"""Bits of a logit bias's number."""


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


def sweep_budgets(
    bench: Bench,
    plans: Sequence[tuple[str, FitPlan]],
    counts: Sequence[int],
    draws: int,
    done: Callable[[int], None] = lambda of: None,
) -> BudgetScores:
    """Fit every plan to so many queries, with and without a bias, and score it on matched and
    held-out queries; all queries are fitted to once. `done` is called after each plan with the
    number of all."""
    most = len(bench.queries["matched"])
    rounds = [(n, number) for n in counts for number in range(1 if n >= most else draws)]
    found: BudgetScores = {}
    for (count, number), (kind, plan) in product(rounds, plans):
        chosen = drawn_queries(bench, count, number)
        wanted = bench.wanted["matched"].of(chosen)
        for one in _fits(bench, wanted, plan._replace(seed=bench.settings.seed + number)):
            for biased in (False, True):
                fitted = _tilted(bench, wanted, one) if biased else one
                _note(found, FitBudget(kind, one.size, count, biased), bench, fitted, chosen)
        done(len(rounds) * len(plans))
    for count, number in rounds:
        chosen = drawn_queries(bench, count, number)
        alone = _tilted(bench, bench.wanted["matched"].of(chosen), spelled(bench, ()))
        _note(found, FitBudget(BIAS, 0, count, True), bench, alone, chosen)
    return found


def _fits(bench: Bench, wanted: Examples, plan: FitPlan) -> Iterator[Fitted]:
    """What a plan gives: demonstrations in every number up to its size, all else in its size."""
    if plan.kind == "few_shot":
        yield from fit_shots(bench, wanted, plan.size)
    else:
        yield fit_plan(bench, wanted, plan)


def _tilted(bench: Bench, wanted: Examples, fitted: Fitted) -> Fitted:
    """The same with the logit bias that brings it nearest to the examples."""
    size = bench.settings.batch_size
    bias = fit_answers(bench.subject, wanted, fitted.setting, size, fitted.cache)
    setting = replace(fitted.setting, bias=bias)
    return replace(fitted, setting=setting, bits=fitted.bits + _NUMBER * len(bias))


def _note(
    found: BudgetScores, budget: FitBudget, bench: Bench, fitted: Fitted, chosen: Sequence[int]
) -> None:
    """Score a fit and file it; the caches of many fits would not fit into memory."""
    kept = found.setdefault(budget, _Reached(fitted.bits, {}))
    for group, draws in scored(bench, [fitted], [chosen]).items():
        kept.scores.setdefault(group, []).extend(draws)


def budget_table(found: BudgetScores, bench: Bench) -> pd.DataFrame:
    """The share of the target's effect that is missing (1 - strength), by the prompt's bits (those
    of a bias beside it are in `bits` only); one panel for what was fitted to and one for unseen
    queries, of every number of queries."""
    import pandas as pd

    counts = list(dict.fromkeys(budget.many for budget in found))
    bits = [reached.bits for reached in found.values()]
    others = equals(bench)
    rows = []
    for count, group in product(counts, (FIT_GROUP, HELDOUT)):
        panel = f"fitted to {count}, {'these' if group == FIT_GROUP else 'unseen'} queries"
        for budget, reached in found.items():
            if budget.many == count:
                series = budget.kind + (" + bias" if budget.biased and budget.size else "")
                at = {"size": budget.size, "biased": budget.biased, "bits": reached.bits}
                x = found.get(budget._replace(biased=False), reached).bits
                point = _missing(reached.scores[group], bench).point(panel, series, x)
                rows.append(point | at)
        if others:
            level = _missing(others[group], bench)
            rows += [level.point(panel, OTHER_LORA_SEEDS, x) for x in (min(bits), max(bits))]
    return pd.DataFrame(rows)


def _missing(draws: Sequence[ScoredFit], bench: Bench) -> Strength:
    """`1 - strength` in the place of strength."""
    found = over_draws(draws, bench.settings.bootstrap, bench.settings.seed)
    low, high = 1 - found.ci_high, 1 - found.ci_low
    return found._replace(strength=1 - found.strength, ci_low=low, ci_high=high)


def strong(found: BudgetScores, bench: Bench, count: int, least: float) -> FitBudget | None:
    """The smallest budget that gives so much of the target's effect on unseen queries; None if none
    does."""
    of = sorted((b for b in found if b.many == count), key=lambda b: found[b].bits)
    enough = (b for b in of if _missing(found[b].scores[HELDOUT], bench).strength <= 1 - least)
    return next(enough, None)


def budget_name(budget: FitBudget, found: BudgetScores) -> str:
    """A budget for people."""
    if not budget.size:
        return f"{budget.kind}, {found[budget].bits:.0f} bits"
    parts = f"{budget.kind} of {budget.size}" + (" and bias" if budget.biased else "")
    return f"{parts}, {found[budget].bits:.0f} bits"


def best_budget(found: BudgetScores, bench: Bench, count: int) -> FitBudget:
    """What comes nearest on the queries that it was fitted to."""
    of = [budget for budget in found if budget.many == count]
    return min(of, key=lambda budget: _missing(found[budget].scores[FIT_GROUP], bench).strength)
