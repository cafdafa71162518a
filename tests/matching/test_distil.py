"""Distillation: the loss is what it says, and a LoRA learns what a prompt does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import Distillation, Query, distil, organism
from interp.conditions import Base, Prompt, resolve
from interp.errors import QueryError, RunError
from interp.matching.distil import _answered, _examples
from interp.matching.lora import Example, loss
from interp.progress import no_progress
from interp.queries import encode

PROMPT = Prompt(text="hot is the opposite of cold.", separator=" ")
TEXTS = ("big is", "a river", "lily said: yes")


def settings(model: str, folder: Path, **fields: object) -> Distillation:
    prompt, queries = folder / "prompt.txt", folder / "queries.jsonl"
    prompt.write_text("hot is the opposite of cold.")
    queries.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    fixed = {"prompt_file": prompt, "queries": queries, "out": folder / "adapter", "separator": " "}
    return Distillation.model_validate({"model": model, **fixed, **fields})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.save_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("positions", ["answer", "all"])
def test_the_loss_is_the_mean_kl_of_whole_sequences(
    model: str, tmp_path: Path, positions: str
) -> None:
    asked = settings(model, tmp_path, positions=positions, answer_tokens=3)
    hf, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(model),
    )
    before = resolve(PROMPT, tokenizer).prefix
    bos = resolve(Base(), tokenizer).prefix
    queries = encode(map(Query, TEXTS), tokenizer)
    answered = _answered(hf, before, {"matched": queries}, asked, no_progress)["matched"]
    examples = _examples(hf, before, answered, asked)
    expected = [_kl(hf, before, bos, example) for example in examples]
    got = loss(hf, bos, examples).kl.item()
    assert got == pytest.approx(np.mean(expected), abs=1e-5)
    assert got > 0.01
    matched = [len(example.ids) - example.first for example in examples]
    longer = [len(q.ids) if positions == "all" else 1 for q in queries]
    assert matched == [n + 2 for n in longer]


def _kl(
    hf: torch.nn.Module, before: tuple[int, ...], bos: tuple[int, ...], example: Example
) -> float:
    def log_p(prefix: tuple[int, ...]) -> np.ndarray:
        with torch.no_grad():
            logits = hf(torch.tensor([[*prefix, *example.ids]])).logits[0]
        rows = logits[len(prefix) + example.first :].double().numpy()
        return rows - np.log(np.exp(rows).sum(-1, keepdims=True))

    p, q = log_p(before), log_p(bos)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def test_a_prompt_has_no_distance_to_itself(model: str, tmp_path: Path) -> None:
    asked = settings(model, tmp_path)
    hf, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model),
        AutoTokenizer.from_pretrained(model),
    )
    before = resolve(PROMPT, tokenizer).prefix
    examples = _examples(hf, before, encode(map(Query, TEXTS), tokenizer), asked)
    assert loss(hf, before, examples).kl.item() == pytest.approx(0, abs=1e-6)


def test_distilling_lowers_the_kl_and_is_deterministic(model: str, tmp_path: Path) -> None:
    first = settings(model, tmp_path, epochs=8, out=tmp_path / "a", patience=8)
    certificates = distil(first)
    distil(first.model_copy(update={"out": tmp_path / "b"}))
    history = json.loads((tmp_path / "a" / "distil.json").read_text())["kl_by_epoch"]
    assert history[-1] < 0.5 * history[0]
    assert [c["queries"] for c in certificates] == ["matched"]
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_the_bundled_prompt_is_distilled_to_a_passing_certificate(tmp_path: Path) -> None:
    signed = distil(
        Distillation(
            model=str(organism.MODEL),
            prompt_file=organism.PROMPTS / "instruction_0.txt",
            queries=organism.QUERIES / "matched.jsonl",
            out=tmp_path / "adapter",
            rank=4,
            alpha=8,
            epochs=40,
            target_kl=0.01,
        )
    )
    assert signed[0]["passed"]
    history = json.loads((tmp_path / "adapter" / "distil.json").read_text())["kl_by_epoch"]
    assert len(history) < 40
    assert history[-1] <= 0.01


def test_what_is_wrong_is_said_before_any_training(model: str, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match="holds an adapter"):
        distil(settings(model, tmp_path))
    with pytest.raises(QueryError, match=r"none\.jsonl"):
        distil(settings(model, tmp_path, heldout=tmp_path / "none.jsonl", overwrite=True))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        distil(settings(model, tmp_path, out=tmp_path / "file" / "adapter"))
    with pytest.raises(RunError, match="--targets nothing"):
        distil(settings(model, tmp_path, targets=("nothing",), out=tmp_path / "c"))
