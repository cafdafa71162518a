"""A prefix that is read in pieces is the prefix read at once, and no pattern outlives its layer."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.conditions import Base, Prompt
from interp.measures.attention import read_rows
from interp.names import Site
from interp.queries import Query, encode
from interp.subject import Batch, Subject, load, subject
from interp.subject.parity import TOLERANCE
from interp.validation import architectures, tiny

REFUSED = {"jamba"}
"""Architectures that are not measured (docs/architectures.md)."""

QUERIES = ["big is the opposite of the river", "the"]
TEXT = "hot is the opposite of cold, up is the opposite of down. a river is wide; a hill is high. "


def opened(name: str, folder: Path) -> Subject:
    model = architectures.save_architecture(name, folder)
    return load(model, {"base": Base(), "prompt": Prompt(text=TEXT)}, QUERIES)


def in_pieces(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    monkeypatch.setattr(subject, "_SCORES", 1)
    monkeypatch.setattr(subject, "_PIECE", tokens)


@pytest.mark.parametrize("name", [name for name in architectures.MODELS if name not in REFUSED])
def test_pieces_are_the_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 8 keys among them; where there are recurrences, the whole is one piece."""
    model = opened(name, tmp_path)
    setting = model.settings["prompt"]
    batch = Batch.of(encode(map(Query, QUERIES), model.tokenizer))
    whole = model.run(setting, batch, model.prefill(setting))
    scale = float(whole.square().mean().sqrt())
    passes: list[int] = []
    handle = model.hf_model.register_forward_pre_hook(lambda *_: passes.append(1))
    for tokens in (3, 10):
        in_pieces(monkeypatch, tokens)
        passes.clear()
        cache = model.prefill(setting)
        many = -(-setting.n_prefix // tokens)
        assert len(passes) == (1 if model.anatomy.layers("mixer_out") else many)
        difference = float((model.run(setting, batch, cache) - whole).abs().max())
        assert difference <= TOLERANCE[torch.float32] * max(1.0, scale)
    handle.remove()


def test_a_short_prefix_is_read_at_once(tmp_path: Path) -> None:
    model, passes = opened("llama", tmp_path), []
    model.hf_model.register_forward_pre_hook(lambda *_: passes.append(1))
    model.prefill(model.settings["prompt"])
    assert len(passes) == 1


@pytest.mark.parametrize("name", sorted(tiny.CONFIGS))
def test_no_pattern_outlives_its_layer(name: str, tmp_path: Path) -> None:
    """Nowhere are the patterns of all layers held, with their columns of the prefix."""
    model = opened(name, tmp_path)
    setting, alive = model.settings["prompt"], []
    patterns: list[Any] = []

    def look(pattern: torch.Tensor) -> None:
        alive.append(sum(one() is not None for one in patterns))
        patterns.append(weakref.ref(pattern))
        read_rows(pattern)

    batch = Batch.of(encode(map(Query, QUERIES), model.tokenizer))
    sites = {Site("pattern", layer): look for layer in model.anatomy.layers("pattern")}
    model.run(setting, batch, model.prefill(setting), sites)
    assert len(alive) == model.n_layers == 3
    assert max(alive) <= 1
    assert not any(one() is not None for one in patterns)
