"""Fits kept in memory say what they cost; strength over several fits is a ratio of sums."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from interp.design import BASE
from interp.experiments.draws import (
    FIT_GROUP,
    HELDOUT,
    REWORDED,
    ScoredFit,
    asked,
    by_replicate,
    drawn_queries,
    over_draws,
    scored,
    strength_lost,
)
from interp.experiments.equivalence_strength import (
    FitBudget,
    best_budget,
    budget_table,
    strong,
    sweep_budgets,
)
from interp.experiments.fits import FitPlan, fit_plan, fit_shots, spelled
from interp.matching.evaluation import Evaluation
from interp.matching.settings import Emulation, bundled_emulation
from interp.organism import QUERIES

WORDINGS = QUERIES / "reworded.jsonl"


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    settings = Emulation(**bundled_emulation(Path("unused")) | {"limit": 6, "bootstrap": 30})
    return Evaluation.open(settings, asked=asked(settings, WORDINGS))


def test_a_text_costs_the_logarithm_of_the_vocabulary_and_virtual_tokens_their_numbers(evaluation):
    wanted = evaluation.targets["matched"].of([0])
    text = fit_plan(evaluation, wanted, FitPlan("text", 2, steps=0))
    assert text.bits == pytest.approx(2 * math.log2(len(evaluation.subject.tokenizer)))
    soft = fit_plan(evaluation, wanted, FitPlan("soft_prompt", 2, steps=1))
    assert soft.bits == 32 * 2 * evaluation.subject.d_model


def test_a_spelled_prompt_is_the_prompt(evaluation):
    ids = tuple(evaluation.subject.tokenizer("opposite :", add_special_tokens=False)["input_ids"])
    one = spelled(evaluation, ids)
    assert (
        evaluation.kl(one.setting, "matched", one.cache).mean()
        < 0.1 * evaluation.kl(BASE, "matched").mean()
    )
    nothing = spelled(evaluation, ())
    assert (evaluation.kl(nothing.setting, "matched") == evaluation.kl(BASE, "matched")).all()


def test_fewer_demonstrations_are_those_of_an_earlier_step(evaluation):
    shots = list(fit_shots(evaluation, evaluation.targets["matched"].of([0, 1]), 2))
    assert [one.size for one in shots] == list(range(1, len(shots) + 1))
    assert all(b.text.endswith(a.text) for a, b in itertools.pairwise(shots))


def test_a_smaller_draw_is_part_of_a_larger_one(evaluation):
    assert drawn_queries(evaluation, 4, 0)[:2] == drawn_queries(evaluation, 2, 0)
    assert drawn_queries(evaluation, 6, 0) != drawn_queries(evaluation, 6, 1)


def test_scores_are_of_the_fitted_queries_and_of_all_wordings_together(evaluation):
    scores = scored(evaluation, [spelled(evaluation, ())], [[3, 1]])
    assert scores[FIT_GROUP][0].keys == ["matched:3", "matched:1"]
    kl = evaluation.kl(BASE, "matched")
    assert scores[FIT_GROUP][0].kl.tolist() == [kl[3], kl[1]]
    together = scores[REWORDED][0]
    assert len(together.kl) == 6 * len(scores[HELDOUT][0].kl)
    assert set(together.keys) == set(scores[HELDOUT][0].keys)


def test_strength_over_draws_is_a_ratio_of_sums_and_its_interval_holds_it():
    generator = np.random.default_rng(0)
    draws = [
        ScoredFit([f"q:{i}" for i in range(20)], generator.exponential(0.1, 20), np.ones(20))
        for _ in range(3)
    ]
    found = over_draws(draws, 200, 0)
    assert found.strength == pytest.approx(1 - np.mean([draw.kl for draw in draws]))
    assert found.ci_low < found.strength < found.ci_high
    assert found.n == 20
    one = over_draws(draws[:1], 200, 0)
    assert one.ci_high - one.ci_low > 0


def test_nothing_is_lost_from_scores_to_themselves():
    draws = [ScoredFit(["a", "b", "c"], np.array([0.1, 0.2, 0.3]), np.ones(3))] * 2
    assert strength_lost(draws, draws, 50, 0) == (0, 0, 0)
    worse = [draw._replace(kl=draw.kl + 0.5) for draw in draws]
    assert strength_lost(draws, worse, 50, 0) == pytest.approx((0.5, 0.5, 0.5))


def test_an_effect_of_nothing_has_no_strength():
    draw = ScoredFit(["a"], np.zeros(1), np.zeros(1))
    assert np.isnan(by_replicate([draw], 5, 0)).all()


def test_a_bias_never_harms_the_queries_that_it_is_fitted_to(evaluation):
    plans = [("text", FitPlan("text", 1, steps=2, candidates=8))]
    found = sweep_budgets(evaluation, plans, (1, 6), draws=1)
    for many in (1, 6):
        plain, biased = (found[FitBudget("text", 1, many, b)] for b in (False, True))
        assert biased.scores[FIT_GROUP][0].kl.mean() <= plain.scores[FIT_GROUP][0].kl.mean() + 1e-6
        assert biased.bits == plain.bits + 32 * 256
    chosen = best_budget(found, evaluation, 6)
    rows = budget_table(found, evaluation)
    fitted = rows[(rows["panel"] == "fitted to 6, these queries") & (rows["size"].notna())]
    assert fitted["value"].min() == fitted.loc[fitted["bits"] == found[chosen].bits, "value"].min()
    assert strong(found, evaluation, 6, least=-1e9) == FitBudget("text", 1, 6)
    assert strong(found, evaluation, 6, least=1.1) is None
