"""Distances from a target against plain Hugging Face and numpy; states that are reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import organism
from interp.conditions import Prompt
from interp.design import BASE
from interp.experiments.internal_distance import (
    OTHER_SEEDS,
    inside,
    internal_distance,
    internal_distances,
)
from interp.experiments.reachability import Reach, by_budget, layer_by_layer, nearest_kind, reach
from interp.matching.evaluation import TARGET, Evaluation
from interp.matching.examples import fit_answers
from interp.matching.settings import Emulation, bundled_emulation
from interp.statistics import poisson_weights

PROMPT = "opposite :"


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    settings = Emulation(**bundled_emulation(Path("unused")) | {"limit": 6, "bootstrap": 40})
    return Evaluation.open(settings, {"prompt": Prompt(text=PROMPT)})


def hidden(model: torch.nn.Module, tokenizer: object, text: str) -> tuple[list, list]:
    """Last token's residual stream after every block but the last (that one is normed), and its
    attention to the last tokens, by layer."""
    got = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True,
                output_attentions=True)  # fmt: skip
    streams = [h[0, -1].double().numpy() for h in got.hidden_states[1:-1]]
    return streams, [a[0, :, -1].double().numpy() for a in got.attentions]


@torch.no_grad()
def test_distances_are_those_of_plain_models(evaluation: Evaluation) -> None:
    target = inside(evaluation, "heldout")
    found = internal_distance(
        evaluation.subject, evaluation.subject.settings["prompt"], target, size=4
    )
    tokenizer = AutoTokenizer.from_pretrained(organism.MODEL)
    plain, other = (
        AutoModelForCausalLM.from_pretrained(organism.MODEL, attn_implementation="eager")
        for _ in range(2)
    )
    adapted = PeftModel.from_pretrained(other, evaluation.settings.adapter).eval()
    for i, query in enumerate(evaluation.queries["heldout"]):
        a, rows = hidden(plain.eval(), tokenizer, f"{PROMPT}\n{query.text}")
        b, own = hidden(adapted, tokenizer, query.text)
        for layer, (x, y) in enumerate(zip(a, b, strict=True)):
            norms = 0.5 * (np.linalg.norm(x) + np.linalg.norm(y))
            wanted = np.linalg.norm(x - y) / norms
            assert found.relative_l2[i, layer] == pytest.approx(wanted, rel=1e-4)
        for layer, (x, y) in enumerate(zip(rows, own, strict=True)):
            p, q = (
                r[:, -len(query.ids) :] / r[:, -len(query.ids) :].sum(-1, keepdims=True)
                for r in (x, y)
            )
            m = (p + q) / 2
            js = 0.5 * (p * np.log(p / m) + q * np.log(q / m)).sum(-1).mean()
            assert found.content_js[i, layer] == pytest.approx(js, rel=1e-3, abs=1e-7)
    # float32 in batches of another size: 1e-5 of a KL of 0.1 on one CPU
    assert found.kl == pytest.approx(evaluation.kl("prompt", "heldout"), rel=1e-4)
    signed = evaluation.certificate("prompt", "heldout")
    assert found.outputs[:, 0].mean() == pytest.approx(signed["mean_js"], rel=1e-4)


def test_the_target_is_at_itself_and_a_bias_moves_no_state(evaluation: Evaluation) -> None:
    subject, target = evaluation.subject, inside(evaluation, "matched")
    itself = internal_distance(subject, subject.settings[TARGET], target, size=64)
    assert not any(values.any() for values in (itself.kl, itself.relative_l2, itself.content_js))
    base = subject.settings[BASE]
    bias = fit_answers(subject, target, base, 64)
    still, biased = (
        internal_distance(subject, s, target, 64) for s in (base, replace(base, bias=bias))
    )
    assert np.array_equal(still.relative_l2, biased.relative_l2)
    assert np.array_equal(still.content_js, biased.content_js)
    assert biased.kl.mean() < still.kl.mean()


def test_a_ratio_of_means_resamples_queries(evaluation: Evaluation) -> None:
    generator = np.random.default_rng(0)
    above, below = generator.random((2, 6))
    estimate = evaluation.mean("matched", above, below)
    weights = poisson_weights([q.key for q in evaluation.queries["matched"]], 40, 0)
    ratios = (weights.T @ above) / (weights.T @ below)
    assert estimate.value == pytest.approx(above.sum() / below.sum())
    ends = np.nanquantile(ratios[1:], [0.025, 0.975], method="weibull")
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx(tuple(ends))


def test_tokens_tuned_to_states_come_nearer_to_them(evaluation: Evaluation) -> None:
    targets = {group: inside(evaluation, group) for group in evaluation.queries}
    plan = Reach(budgets=(1, 2), kinds=("prefix",), steps=12, longest=20)
    ticks: list[None] = []
    found = list(reach(evaluation, plan, targets, lambda: ticks.append(None)))
    assert len(ticks) == sum(steps for *_, steps in plan.searches()) == 5 * 12 + 20
    by_goal = {one.goal: one.apart["matched"] for one in found if one.tuned.tokens == 2}
    states, patterns = by_goal["states"], by_goal["patterns"]
    assert states.relative_l2.mean() < 0.9 * by_goal["outputs"].relative_l2.mean()
    assert patterns.content_js.mean() < 0.9 * by_goal["outputs"].content_js.mean()
    assert nearest_kind(found).apart["matched"] is states
    known = internal_distances(evaluation, [BASE], targets)
    assert known[OTHER_SEEDS]["matched"].relative_l2.mean() < states.relative_l2.mean()
    assert states.relative_l2.mean() < known[BASE]["matched"].relative_l2.mean()
    drawn = list(by_budget(evaluation, found, known, "relative_l2"))
    assert len(drawn) == 2 * 2 * (3 + 2)  # groups, budgets, goals and levels
    rows = list(layer_by_layer(evaluation, found, known, "heldout"))
    assert len(rows) == 2 * (3 + 2) * evaluation.subject.n_layers
    last = [r for r in rows if r["series"] == "to states"][-1]
    assert last["value"] == pytest.approx(
        nearest_kind(found).apart["heldout"].relative_l2[:, -1].mean()
    )
