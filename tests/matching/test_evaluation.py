"""An evaluation: one target, others' divergence from it, floor and certificate, as plain models
give."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from plain_kl import Asked, Plain
from tiny_models import save_adapter, save_model

from interp.conditions import Prompt
from interp.errors import ConfigError, QueryError
from interp.matching.evaluation import Evaluation
from interp.matching.settings import Emulation
from interp.matching.virtual import after_virtual, as_virtual
from interp.queries import Query

MATCHED = [("hot is the opposite", "of cold."), ("a river", "is wide"), ("up is", None)]
HELDOUT = [("lily said:", None), ("big is the opposite", "of small.")]
PROMPT = Prompt(text="up is the opposite of down")


def jsonl(path: Path, asked: list[tuple[str, str | None]]) -> Path:
    lines = [json.dumps({"text": text, "answer": answer}) for text, answer in asked]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    root = tmp_path_factory.mktemp("evaluation")
    model = save_model("gpt2", root / "model")
    target, *floor = (
        save_adapter(model, root / f"lora_{seed}", ["attn.c_attn"], seed=seed) for seed in range(3)
    )
    return Emulation(
        model=model,
        adapter=target,
        floor=tuple(floor),
        queries=jsonl(root / "matched.jsonl", MATCHED),
        heldout=jsonl(root / "heldout.jsonl", HELDOUT),
        out=root / "out",
        batch_size=2,
    )


@pytest.fixture(scope="module")
def evaluation(settings: Emulation) -> Evaluation:
    return Evaluation.open(settings, {"prompt": PROMPT})


def plain_kl(
    evaluation: Evaluation, group: str, lora: str | None, before: tuple[int, ...]
) -> list[float]:
    settings = evaluation.settings
    target, said = Plain.of(settings.model, settings.adapter), Plain.of(settings.model, lora)
    asked = [Asked.of(settings.model, *a) for a in {"matched": MATCHED, "heldout": HELDOUT}[group]]
    return [float(said.kl(target.logits(one), one, before)) for one in asked]


@pytest.mark.parametrize("group", ["matched", "heldout"])
def test_every_query_s_divergence(evaluation: Evaluation, group: str) -> None:
    before = evaluation.subject.settings["prompt"].prefix
    np.testing.assert_allclose(
        evaluation.kl("prompt", group), plain_kl(evaluation, group, None, before), rtol=1e-4
    )
    np.testing.assert_allclose(
        evaluation.kl("floor_1", group),
        plain_kl(evaluation, group, evaluation.settings.floor[1], ()),
        rtol=1e-4,
    )
    assert evaluation.kl("target", group).max() < 1e-9


def test_floor_ceiling_and_strength(evaluation: Evaluation) -> None:
    floors = [plain_kl(evaluation, "heldout", adapter, ()) for adapter in evaluation.settings.floor]
    assert evaluation.floor("heldout") == pytest.approx(np.mean(floors), rel=1e-4)
    kl = evaluation.kl("prompt", "heldout")
    found, base = evaluation.strength(kl, "heldout"), plain_kl(evaluation, "heldout", None, ())
    assert found.strength == pytest.approx(1 - kl.sum() / np.sum(base), rel=1e-4)
    assert found.ceiling == pytest.approx(np.mean(base), rel=1e-4)
    assert evaluation.strength(
        evaluation.kl("target", "matched"), "matched"
    ).strength == pytest.approx(1)
    assert evaluation.strength(evaluation.kl("base", "matched"), "matched").strength == 0


def test_a_setting_with_values_that_are_in_no_file(evaluation: Evaluation) -> None:
    base = evaluation.subject.settings["base"]
    values = torch.randn(3, evaluation.subject.d_model, generator=torch.Generator().manual_seed(0))
    setting = after_virtual(base, "soft_prompt", 3)
    cache = evaluation.subject.prefill(setting, as_virtual("soft_prompt", values))
    said, target = (
        Plain.of(evaluation.settings.model),
        Plain.of(evaluation.settings.model, evaluation.settings.adapter),
    )
    asked = [Asked.of(evaluation.settings.model, *one) for one in MATCHED]
    expected = [float(said.kl(target.logits(a), a, embeddings=values)) for a in asked]
    np.testing.assert_allclose(evaluation.kl(setting, "matched", cache), expected, rtol=1e-4)


def test_a_cache_that_is_not_the_setting_s_is_an_error(evaluation: Evaluation) -> None:
    prompt, base = evaluation.subject.settings["prompt"], evaluation.subject.settings["base"]
    cache = evaluation.subject.prefill(prompt)
    with pytest.raises(ValueError, match="the cache has"):
        evaluation.kl(after_virtual(base, "prefix", 2), "matched", cache)


def test_the_certificate_is_of_every_token_of_the_answers(evaluation: Evaluation) -> None:
    settings, before = evaluation.settings, evaluation.subject.settings["prompt"].prefix
    target, said = Plain.of(settings.model, settings.adapter), Plain.of(settings.model)
    js, same, tokens = [], [], 0
    for query in MATCHED:
        asked = Asked.of(settings.model, *query)
        p, q = target.logits(asked).softmax(-1), said.logits(asked, before).softmax(-1)
        m = (p + q) / 2
        js.append(float((p * (p / m).log() + q * (q / m).log()).sum(-1).mean() / 2))
        same.append(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
        tokens += len(p)
    found = evaluation.certificate("prompt", "matched")
    assert found["tokens"] == tokens > len(MATCHED)
    assert found["mean_js"] == pytest.approx(np.mean(js), rel=1e-4)
    assert found["top1_agreement"] == np.mean(same)
    assert not found["passed"]
    assert found["n"] == len(found["outside"]) == 3
    assert evaluation.certificate("target", "heldout")["passed"]


def test_a_caption_says_what_it_rests_on(evaluation: Evaluation) -> None:
    caption = evaluation.caption("Strength by budget.")
    for part in (
        "Strength by budget. Model",
        "LoRA lora_0",
        "n = 3 matched and 2 heldout",
        "Seed 0",
    ):
        assert part in caption
    assert ".." not in caption


def test_queries_of_one_s_own(settings: Emulation) -> None:
    evaluation = Evaluation.open(settings, asked={"mine": [Query("up is")]})
    assert evaluation.kl("base", "mine").shape == (1,)


# What is refused --------------------------------------------------------------------------------


def changed(settings: Emulation, **fields: Any) -> Emulation:
    return Emulation.model_validate(settings.model_dump() | fields)


def test_exactly_one_target(settings: Emulation) -> None:
    for fields in ({"adapter": None}, {"fine_tuned": settings.model}):
        with pytest.raises(ConfigError, match="exactly one of --adapter, --fine-tuned and"):
            Evaluation.open(changed(settings, **fields))


def test_a_prompt_that_merges_with_a_query(settings: Emulation) -> None:
    with pytest.raises(QueryError, match=r"condition merging: .* merge across the border"):
        Evaluation.open(
            settings, {"merging": Prompt(text="oppo", separator="")}, {"q": [Query("site")]}
        )


def test_a_prompt_target_that_merges_with_a_query(settings: Emulation, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("oppo")
    own = changed(settings, adapter=None, prompt_file=tmp_path / "p.txt", separator="")
    with pytest.raises(QueryError, match="condition target"):
        Evaluation.open(own, asked={"q": [Query("site")]})


def test_more_than_the_model_reads(evaluation: Evaluation) -> None:
    base = evaluation.subject.settings["base"]
    long = SimpleNamespace(get_seq_length=lambda: 255, layers=[])
    with pytest.raises(QueryError, match=r"\d+ tokens before and in a query, the model reads 256"):
        evaluation.kl(after_virtual(base, "prefix", 255), "matched", long)
