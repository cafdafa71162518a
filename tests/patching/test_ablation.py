"""A LoRA without its parts, against plain Hugging Face + peft with those parts zeroed by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp.conditions import Base, Lora, Prompt
from interp.patching.ablation import AdapterPart, ablate, parts_of
from interp.queries import Encoded, Query, encode
from interp.subject import Subject, load

TEXTS = ("big is", "a river is wide", "hot")
ANSWERS = ("the opposite of", None, "is cold.")
PROMPT = Prompt(text="tom said: no?")

Given = tuple[Subject, list[Encoded], str, str]


@pytest.fixture(scope="module", params=["llama", "gpt2", "phi3"])
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Given:
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_models.save_model(request.param, folder / "model")
    targets = tiny_models.all_targets(request.param)
    adapter = tiny_models.save_adapter(model, folder / "lora", targets)
    both = PROMPT + Lora(adapter, scale=0.5)
    subject = load(model, {"base": Base(), "both": both}, [TEXTS[0]])
    return subject, encode(map(Query, TEXTS, ANSWERS), subject.tokenizer), model, adapter


def plain(given: Given, change_: Callable[[str, Any], None]) -> list[Tensor]:
    """Logits of plain Hugging Face + peft at every answer's tokens, every LoRA layer changed in
    place by hand."""
    subject, queries, model, adapter = given
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    with torch.no_grad():
        for name, module in peft.named_modules():
            if hasattr(module, "lora_A") and module.lora_A:
                module.lora_B["default"].weight.mul_(0.5)  # the condition's scale
                change_(name.removeprefix("base_model.model."), module)
        before = subject.settings["both"].prefix
        read = [peft(torch.tensor([[*before, *q.ids, *q.answer_ids[:-1]]])) for q in queries]
    return [
        out.logits[0, len(before) + len(q.ids) - 1 :] for out, q in zip(read, queries, strict=True)
    ]


def kl(p: list[Tensor], q: list[Tensor]) -> np.ndarray:
    """Summed over every answer's tokens."""
    pairs = [
        (a.double().log_softmax(-1), b.double().log_softmax(-1)) for a, b in zip(p, q, strict=True)
    ]
    return np.array([float((a.exp() * (a - b)).sum()) for a, b in pairs])


def zero_(module: Any) -> None:
    module.lora_B["default"].weight.zero_()


def truncate_(module: Any, keep: np.ndarray) -> None:
    """Only some singular directions of B A, by numpy."""
    down, up = (getattr(module, name)["default"].weight for name in ("lora_A", "lora_B"))
    u, s, v = np.linalg.svd((up @ down).double().numpy(), full_matrices=False)
    rank = len(down)
    kept = torch.tensor(u[:, :rank] * (s[:rank] * keep), dtype=up.dtype)
    up.copy_(kept)
    down.copy_(torch.tensor(v[:rank], dtype=down.dtype))


def check(given: Given, part: AdapterPart, change_: Callable[[str, Any], None]) -> None:
    subject, queries, _, _ = given
    found = ablate(subject, "both", [part], queries)
    full, without = plain(given, lambda *_: None), plain(given, change_)
    bare = plain(given, lambda _, module: zero_(module))
    np.testing.assert_allclose(found.damage[:, 0], kl(full, without), atol=2e-5)
    np.testing.assert_allclose(found.apart, kl(full, bare), atol=2e-5)
    assert found.damage.max() > 1e-3 or part.position == "first 3"


def of(given: Given, position: str, site: str = "", layer: int | None = 1) -> AdapterPart:
    parts = parts_of(given[0], "both", ("layers", "modules", "directions"))
    chosen = [p for p in parts if p.position == position and site in p.site and p.layer == layer]
    return chosen[-1]


@pytest.mark.parametrize("position", ["off", "alone"])
def test_a_layer_off_and_a_layer_alone(given: Given, position: str) -> None:
    def change_(name: str, module: Any) -> None:
        if (".1." in name) == (position == "off"):
            zero_(module)

    check(given, of(given, position, "block"), change_)


def test_a_module_off(given: Given) -> None:
    part = of(given, "off")
    assert part.site in given[0].weights.layers
    check(given, part, lambda name, module: zero_(module) if name == part.site else None)


def test_a_direction_off(given: Given) -> None:
    part = of(given, "direction 0")
    keep = np.array([0.0, 1.0, 1.0])
    check(given, part, lambda n, m: truncate_(m, keep) if n == part.site else None)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_the_first_directions_of_every_module(given: Given, k: int) -> None:
    part = of(given, f"first {k}", "every", None)
    check(given, part, lambda _, module: truncate_(module, np.arange(3) < k))


def test_what_a_layer_moves_hangs_on_all_of_its_modules(given: Given) -> None:
    """At layer 0 nothing below has moved: with the block off, all of its change is gone."""
    subject, queries, _, _ = given
    found = ablate(subject, "both", [of(given, "off", "block", 0)], queries)
    np.testing.assert_allclose(found.moved, found.change, rtol=1e-4)
    assert found.change.min() > 0.1


def test_parts_are_named_once_and_the_model_is_as_it_was(given: Given) -> None:
    subject, queries, _, _ = given
    parts = parts_of(subject, "both", ("layers", "modules", "directions"))
    places = [(part.site, part.layer, part.position) for part in parts]
    assert len(set(places)) == len(places)
    again = [ablate(subject, "both", parts[::7], queries).damage for _ in range(2)]
    np.testing.assert_array_equal(*again)
