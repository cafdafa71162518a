"""What a target says, how far another is from it: as in whole sequences of plain Hugging Face."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_kl import Asked, Plain
from tiny_models import save_adapter, save_model

from interp.conditions import Base, Lora, Prompt
from interp.matching.examples import Examples, examples
from interp.names import Site
from interp.queries import Query, encode
from interp.subject import Subject, load

ASKED = [
    ("hot is the opposite", "of cold."),
    ("a river", "is wide"),
    ("up", "down"),
    ("lily", None),
]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    root = tmp_path_factory.mktemp(request.param)
    model = save_model(request.param, root / "model")
    target = {"gpt2": ["attn.c_attn"], "llama": ["q_proj", "down_proj"]}[request.param]
    lora = Lora(save_adapter(model, root / "lora", target))
    prompt = Prompt(text="up is the opposite of down")
    return load(model, {"base": Base(), "prompt": prompt, "lora": lora}, ["a river"])


def wanted_by(subject: Subject, size: int = 3, sites: tuple[Site, ...] = ()) -> Examples:
    queries = encode([Query(*asked) for asked in ASKED], subject.tokenizer)
    return examples(subject, subject.settings["lora"], queries, size, sites)


def kl_of(subject: Subject, name: str, wanted: Examples) -> np.ndarray:
    setting = subject.settings[name]
    logits = subject.run(setting, wanted.batch, subject.prefill(setting))
    return wanted.kl(logits).numpy()


@pytest.mark.parametrize("name", ["base", "prompt"])
def test_the_divergence_of_every_query_is_that_of_whole_sequences(
    subject: Subject, name: str
) -> None:
    folder = subject.settings["lora"].adapters[0][0]
    target, said = Plain.of(subject.name, str(folder)), Plain.of(subject.name)
    expected = []
    for text, answer in ASKED:
        asked = Asked.of(subject.name, text, answer)
        wanted = target.logits(asked, subject.settings["lora"].prefix)
        expected.append(float(said.kl(wanted, asked, subject.settings[name].prefix)))
    got = kl_of(subject, name, wanted_by(subject))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert got.min() > 0.01


def test_the_answers_have_several_tokens_and_every_query_the_same_weight(subject: Subject) -> None:
    wanted = wanted_by(subject)
    counts = np.bincount(wanted.rows.numpy())
    assert counts[:2].min() > 1
    assert counts[3] == 1
    np.testing.assert_allclose(np.bincount(wanted.rows.numpy(), wanted.share.numpy()), 1)


def test_the_target_has_no_distance_to_itself(subject: Subject) -> None:
    assert kl_of(subject, "lora", wanted_by(subject, size=4)).max() < 1e-9


def test_the_size_of_batches_changes_nothing(subject: Subject) -> None:
    one, all_ = wanted_by(subject, 1), wanted_by(subject, 64)
    torch.testing.assert_close(one.logits, all_.logits, rtol=1e-4, atol=1e-5)
    for field in ("rows", "columns", "share"):
        assert torch.equal(getattr(one, field), getattr(all_, field))


@pytest.mark.parametrize("chosen", [[0], [3, 1], [2, 2, 0], [0, 1, 2, 3]])
def test_some_of_them_are_scored_as_all_are(subject: Subject, chosen: list[int]) -> None:
    wanted = wanted_by(subject, sites=(Site("resid_post", 1),))
    some = wanted.of(chosen)
    every = kl_of(subject, "prompt", wanted)
    np.testing.assert_allclose(kl_of(subject, "prompt", some), every[chosen], rtol=1e-4)
    site = Site("resid_post", 1)
    assert torch.equal(some.inside[site], wanted.inside[site][chosen])


def test_many_runs_are_compared_at_once(subject: Subject) -> None:
    wanted = wanted_by(subject)
    logits = torch.randn(2, 3, *wanted.batch.ids.shape, wanted.logits.shape[-1])
    got = wanted.kl(logits)
    assert got.shape == (2, 3, 4)
    assert torch.equal(got[1, 2], wanted.kl(logits[1, 2]))


def test_states_are_those_of_the_target(subject: Subject) -> None:
    stream, pattern = Site("resid_post", 0), Site("pattern", 2)
    wanted = wanted_by(subject, sites=(stream, pattern))
    plain = Plain.of(subject.name, str(subject.settings["lora"].adapters[0][0]))
    bos = subject.settings["lora"].prefix
    for number, (text, answer) in enumerate(ASKED):
        ids = (*bos, *(fed := Asked.of(subject.name, text, answer).fed))
        out = plain.hf(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
        n = len(fed)
        states = out.hidden_states[1][0, -n:]
        torch.testing.assert_close(wanted.inside[stream][number, :n], states, rtol=0, atol=1e-4)
        rows = out.attentions[2][0, :, -n:, -n:]
        content = rows / rows.sum(-1, keepdim=True)
        got = wanted.inside[pattern][number, :, :n, :n].to(content.dtype)
        torch.testing.assert_close(got, content, rtol=0, atol=1e-4)
