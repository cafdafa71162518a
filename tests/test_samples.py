"""Kept patterns of a few queries: those of plain Hugging Face to a byte, within the budget."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModelForCausalLM
from tiny_models import save_adapter, save_model
from transformers import AutoModelForCausalLM

from interp.conditions import Base, Lora, Prompt
from interp.errors import ConfigError
from interp.names import Head
from interp.queries import Encoded, Query, encode
from interp.runs.samples import Samples, segments_of
from interp.samples import read_samples
from interp.subject import Subject, load

TEXTS = ["hot is the opposite", "a river is", "lily", "up is the opposite of"]
PROMPT = "up is the opposite of down and hot is the opposite of cold"
NAMES = ["base", "prompt", "lora"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("llama")
    save_adapter(save_model("llama", root / "model"), root / "lora", ["q_proj", "down_proj"])
    return root


@pytest.fixture(scope="module")
def subject(folder: Path) -> Subject:
    conditions = {"base": Base(), "prompt": Prompt(text=PROMPT), "lora": Lora(str(folder / "lora"))}
    return load(str(folder / "model"), conditions, ["a river"])


@pytest.fixture(scope="module")
def queries(subject: Subject) -> list[Encoded]:
    return encode([Query(text, "of") for text in TEXTS], subject.tokenizer)


@pytest.fixture(scope="module")
def kept(subject: Subject, queries: list[Encoded]) -> Samples:
    return read_samples(subject, queries, NAMES)


@torch.no_grad()
def plain(folder: Path, subject: Subject, name: str, query: Encoded):
    """Patterns `[layer, head, pos, pos]` and next-token probabilities of plain Hugging Face."""
    path, dtype = folder / "model", torch.float32
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    model = (
        PeftModelForCausalLM.from_pretrained(model, folder / "lora") if name == "lora" else model
    )
    ids = torch.tensor([[*subject.settings[name].prefix, *query.ids]])
    out = model.eval()(input_ids=ids, output_attentions=True)
    return torch.stack(out.attentions)[:, 0].numpy(), out.logits[0, -1].softmax(-1)


@pytest.mark.parametrize("name", NAMES)
def test_patterns_and_first_tokens_are_those_of_plain_hugging_face(
    folder: Path, subject: Subject, queries: list[Encoded], kept: Samples, name: str
) -> None:
    for at, query in enumerate(queries):
        patterns, probabilities = plain(folder, subject, name, query)
        rows = patterns[..., -len(query.ids) :, :]
        for layer in range(subject.n_layers):
            for head in range(subject.n_heads):
                own, exact = kept.pattern(Head(layer, head), name, at), rows[layer, head]
                error = np.abs(own - exact)
                assert (error <= np.sqrt(exact) / 255 + 255**-2 + 1e-6).all()
        assert len(kept.columns(name, at)) == rows.shape[-1]
        top, best = kept.says[name][at], probabilities.topk(5)
        np.testing.assert_allclose([p for _, p in top], best.values.numpy(), rtol=1e-4)
        assert top[0][0] == subject.tokenizer.decode([int(best.indices[0])])


def test_it_survives_the_manifest(kept: Samples) -> None:
    run = SimpleNamespace(manifest={"samples": kept.manifest()}, arrays=kept.arrays())
    again = Samples.of(run)  # type: ignore[arg-type]
    assert again is not None
    assert again.manifest() == kept.manifest()
    np.testing.assert_array_equal(
        again.pattern(Head(1, 0), "prompt", 2), kept.pattern(Head(1, 0), "prompt", 2)
    )
    assert [one.text for one in again.queries] == TEXTS


def test_a_budget_takes_queries_first_then_conditions_then_rows(
    subject: Subject, queries: list[Encoded]
) -> None:
    def read(budget: int) -> Samples:
        found = read_samples(subject, queries, ["base", "lora"], budget=budget)
        assert found.packed.nbytes <= budget
        return found

    whole = read(10**9).packed.nbytes
    assert list(read(whole).contexts) == NAMES
    few = read(whole - 1)  # four queries stay as long as all conditions are kept
    assert list(few.contexts) == ["base", "lora"]
    assert len(few.queries) == 4
    least = read(subject.n_layers * subject.n_heads * 2 * 8)
    assert len(least.queries) == 1
    assert least.queries[0].rows < len(queries[0].ids)
    exact = read(10**9)
    assert (
        least.pattern(Head(0, 0), "lora", 0)[-1] == exact.pattern(Head(0, 0), "lora", 0)[-1]
    ).all()


def test_a_long_context_keeps_what_is_attended_to_most(
    subject: Subject, queries: list[Encoded], kept: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("interp.samples.CONTEXT_COLUMNS", 3)
    short = read_samples(subject, queries, NAMES)
    context = short.contexts["prompt"]
    assert context.others == subject.settings["prompt"].n_prefix - 3
    assert context.columns[0] == f"({context.others} other tokens)"
    for at in range(len(queries)):
        own, whole = (one.pattern(Head(1, 1), "prompt", at) for one in (short, kept))
        length = len(queries[at].ids)
        np.testing.assert_allclose(own[:, -length:], whole[:, -length:])
        np.testing.assert_allclose(own.sum(1), 1, atol=0.06)
    mass = sum(
        kept.pattern(Head(layer, head), "prompt", at)[:, : -len(query.ids)].sum(0)
        for at, query in enumerate(queries)
        for layer in range(subject.n_layers)
        for head in range(subject.n_heads)
    )
    assert isinstance(mass, np.ndarray)
    best = sorted(np.argsort(-mass)[:3])
    assert context.tokens == [kept.contexts["prompt"].tokens[i] for i in best]


def test_a_head_is_seen_without_its_model(kept: Samples) -> None:
    head = Head(1, 2)
    view = kept.view(head, [("prompt", "lora"), ("neutral", "lora")], 1)
    assert view.pairs == [("prompt", "lora")]
    assert view.over == "query 1: “a river is”"
    a, b = (kept.pattern(head, name, 1)[-1, -len(kept.queries[1].tokens) :] for name in NAMES[1:])
    p, q = a / a.sum(), b / b.sum()
    m = (p + q) / 2
    js = (p * np.log(p / m)).sum() / 2 + (q * np.log(q / m)).sum() / 2
    assert view.content_js[0, 1] == pytest.approx(js, rel=1e-4)
    first = next(row for row in view.attended if row["condition"] == "prompt")
    whole = kept.pattern(head, "prompt", 1)[-1]
    assert first["mass"] == pytest.approx(whole.max())
    assert first["token"] == kept.columns("prompt", 1)[int(whole.argmax())]
    with pytest.raises(ConfigError, match="query 9 is not kept; kept are 0, 1, 2, 3"):
        kept.position(9)


def test_without_patterns_first_tokens_are_kept_alone(
    subject: Subject, queries: list[Encoded], kept: Samples
) -> None:
    few = read_samples(subject, queries, NAMES, patterns=False)
    assert not few.has(Head(0, 0))
    assert few.arrays() == {}
    assert few.says == kept.says


def test_segments_end_where_the_query_does() -> None:
    assert segments_of({"query": range(2), "template": range(2, 2), "answer": range(2, 9)}, 3) == {
        "query": [0, 2],
        "answer": [2, 3],
    }
