"""Many candidate prefixes at once: every number is that of one whole sequence."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_kl import Asked, Plain
from tiny_models import save_adapter, save_model

from interp.conditions import Base, Lora
from interp.errors import ConfigError
from interp.matching.examples import examples
from interp.matching.prefixes import Scorer
from interp.queries import Query, encode
from interp.subject import load

ASKED = [("hot is the opposite", "of cold."), ("a river", "is wide"), ("lily", None)]
MODULES = {"neox": ["query_key_value"], "llama": ["q_proj"], "gemma3": ["q_proj"]}
PREFIXES = [(7,), (5, 9, 300), (7,), tuple(range(20, 40)), (11, 12, 13), (), (310, 4)]
"""Of many lengths, one twice, one longer than the sliding windows (8) of the tiny Gemma."""


class Case(NamedTuple):
    scorer: Scorer
    said: Plain
    wanted: list[tuple[Asked, torch.Tensor]]

    def kl(self, prefix: tuple[int, ...]) -> list[float]:
        before = (*self.scorer.setting.prefix, *prefix, *self.scorer.tail)
        return [float(self.said.kl(logits, asked, before)) for asked, logits in self.wanted]


@pytest.fixture(scope="module", params=MODULES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Base is to say what a LoRA says; NeoX has no BOS."""
    root, name = tmp_path_factory.mktemp(request.param), request.param
    model = save_model(name, root / "model")
    lora = save_adapter(model, root / "lora", MODULES[name])
    subject = load(model, {"base": Base(), "lora": Lora(lora)}, ["a river"])
    queries = encode([Query(*asked) for asked in ASKED], subject.tokenizer)
    wanted = examples(subject, subject.settings["lora"], queries, 2)
    asked = [Asked.of(model, *one) for one in ASKED]
    bos, target = subject.settings["base"].prefix, Plain.of(model, lora)
    rows = [(one, target.logits(one, bos)) for one in asked]
    scorer = Scorer(subject, subject.settings["base"], wanted, rows=4, tail=(9,))
    return Case(scorer, Plain.of(model), rows)


def test_every_candidate_is_scored_as_alone(case: Case) -> None:
    expected = np.array([case.kl(prefix) for prefix in PREFIXES])
    got = case.scorer.kl(PREFIXES).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert np.ptp(expected[:, 0]) > 0.01


@settings(max_examples=4)
@given(rows=st.integers(1, 30), order=st.permutations(range(len(PREFIXES))))
def test_neither_order_nor_the_size_of_batches_matters(
    case: Case, rows: int, order: list[int]
) -> None:
    some = [PREFIXES[i] for i in order]
    got = replace(case.scorer, rows=rows).kl(some)
    torch.testing.assert_close(got, case.scorer.kl(PREFIXES)[order], rtol=1e-4, atol=1e-6)


def test_the_prefix_may_be_nothing_at_all(case: Case) -> None:
    bare = replace(case.scorer, tail=())
    got = bare.kl([()])[0].tolist()
    assert got == pytest.approx(case._replace(scorer=bare).kl(()), rel=1e-4)


def surprise(case: Case, prefix: tuple[int, ...]) -> float:
    whole = (*case.scorer.setting.prefix, *prefix)
    logits = case.said.hf(torch.tensor([whole])).logits[0].double().log_softmax(-1)
    said = [-float(logits[i - 1, whole[i]]) for i in range(1, len(whole))]
    return float(np.mean(said[-len(prefix) :]))


def test_surprise_is_the_mean_negative_log_probability(case: Case) -> None:
    some = [prefix for prefix in PREFIXES if len(prefix) > 1]
    expected = [surprise(case, prefix) for prefix in some]
    np.testing.assert_allclose(case.scorer.surprises(some), expected, rtol=1e-4)
    assert float(case.scorer.surprise(some[0])) == pytest.approx(expected[0], rel=1e-4)


def test_the_loss_adds_surprise_by_its_weight(case: Case) -> None:
    some = [prefix for prefix in PREFIXES if len(prefix) > 1]
    fluent = replace(case.scorer, fluency=0.3)
    expected = [np.mean(case.kl(prefix)) + 0.3 * surprise(case, prefix) for prefix in some]
    np.testing.assert_allclose(fluent.losses(some), expected, rtol=1e-4)
    alone = [np.mean(case.kl(prefix)) for prefix in some]
    np.testing.assert_allclose(case.scorer.losses(some), alone, rtol=1e-4)


def test_one_token_that_nothing_precedes_has_no_surprise(case: Case) -> None:
    if case.scorer.setting.prefix:
        assert float(case.scorer.surprise((7,))) == pytest.approx(surprise(case, (7,)), rel=1e-4)
        return
    with pytest.raises(ConfigError, match="--fluency"):
        case.scorer.surprise((7,))
