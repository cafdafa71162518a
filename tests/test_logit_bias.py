"""A fitted bias: mean probabilities are the wanted ones, and no other bias leaves less."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import save_adapter, save_model

from interp.conditions import Base, Lora, Prompt, Setting
from interp.logit_bias import TOKENS, fit_bias
from interp.matching.examples import Examples, examples, fit_answers
from interp.queries import Encoded, Query, encode
from interp.subject import Batch, Subject, load

ASKED = [("hot is the opposite", "of cold."), ("a river", "is wide"), ("lily", None), ("up", "is")]


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The tokenizer of the tiny Qwen2 has a token more than the model has embeddings."""
    root = tmp_path_factory.mktemp(request.param)
    model = save_model(request.param, root / "model")
    lora = Lora(save_adapter(model, root / "lora", ["q_proj", "down_proj"]))
    prompt = Prompt(text="up is the opposite of down")
    return load(model, {"base": Base(), "prompt": prompt, "lora": lora}, ["a river"])


def queries_of(subject: Subject) -> list[Encoded]:
    return encode([Query(*asked) for asked in ASKED], subject.tokenizer)


def wanted_by(subject: Subject, name: str = "lora") -> Examples:
    return examples(subject, subject.settings[name], queries_of(subject), 3)


def last(subject: Subject, setting: Setting) -> torch.Tensor:
    """Probabilities `[query, d_vocab]` at the queries' last tokens."""
    batch = Batch.of(queries_of(subject))
    logits = subject.run(setting, batch, subject.prefill(setting))
    return logits[torch.arange(len(batch.ids)), batch.lengths - 1].double().softmax(-1)


def kl(subject: Subject, setting: Setting, wanted: Examples) -> np.ndarray:
    return wanted.kl(subject.run(setting, wanted.batch, subject.prefill(setting))).numpy()


@pytest.mark.parametrize("own", ["base", "prompt"])
def test_the_mean_probabilities_become_the_wanted_ones(subject: Subject, own: str) -> None:
    setting, like = subject.settings[own], subject.settings["lora"]
    bias = fit_bias(subject, queries_of(subject), setting, like, 2)
    tokens = [token for token, _, _ in bias]
    assert len(set(tokens)) == len(tokens) == min(TOKENS, subject.n_words)
    wanted = last(subject, like).mean(0)[tokens]
    had = last(subject, replace(setting, bias=bias)).mean(0)[tokens]
    before = last(subject, setting).mean(0)[tokens]
    assert (had / wanted).log().abs().max() < 2e-3
    assert (before / wanted).log().abs().max() > 0.5


def said(subject: Subject, setting: Setting, wanted: Examples) -> torch.Tensor:
    """The mean distribution over the matched tokens, every query weighing the same."""
    logits = subject.run(setting, wanted.batch, subject.prefill(setting))
    rows = logits[wanted.rows, wanted.columns].double().softmax(-1)
    return (wanted.share / len(wanted)) @ rows


@pytest.mark.parametrize("own", ["base", "prompt"])
def test_with_answers_the_divergence_is_at_its_least(subject: Subject, own: str) -> None:
    """The gradient of the mean divergence by the bias is the difference of mean probabilities."""
    setting, wanted = subject.settings[own], wanted_by(subject)
    bias = fit_answers(subject, wanted, setting, 2)
    tilted = replace(setting, bias=bias)
    tokens = [token for token, _, _ in bias]
    target = (wanted.share / len(wanted)) @ wanted.logits.double().softmax(-1)
    gap = said(subject, tilted, wanted) - target
    assert gap[tokens].abs().max() < 1e-4
    least, before = kl(subject, tilted, wanted).mean(), kl(subject, setting, wanted).mean()
    assert least < 0.9 * before
    generator = np.random.default_rng(0)
    for size in (0.03, 0.3):
        moved = tuple((t, v + size * generator.standard_normal(), None) for t, v, _ in bias)
        assert kl(subject, replace(setting, bias=moved), wanted).mean() > least


def test_a_bias_for_last_tokens_alone_can_harm_the_answers(subject: Subject) -> None:
    """Why an inversion fits its bias where it measures."""
    setting, wanted = subject.settings["base"], wanted_by(subject)
    there = fit_answers(subject, wanted, setting, 2)
    last_only = fit_bias(subject, queries_of(subject), setting, subject.settings["lora"], 2)
    fitted = [kl(subject, replace(setting, bias=b), wanted).mean() for b in (there, last_only)]
    assert fitted[0] < fitted[1] - 0.01


def test_a_target_that_is_there_already_needs_none(subject: Subject) -> None:
    setting = subject.settings["lora"]
    bias = fit_answers(subject, wanted_by(subject), setting, 2)
    assert max(abs(value) for _, value, _ in bias) < 1e-4


def test_a_cache_of_its_own_stands_before_the_queries(subject: Subject) -> None:
    setting, wanted = subject.settings["prompt"], wanted_by(subject)
    cache = subject.prefill(setting)
    assert fit_answers(subject, wanted, setting, 2, cache) == fit_answers(
        subject, wanted, setting, 2
    )
