"""Models and adapters: what overflows, does not fit, is too long, or is nowhere to be had."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import MODULES, save_adapter, save_model, save_random_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.conditions import Base, FineTuned, Lora, Prompt
from interp.config import Experiment
from interp.errors import InterpError, QueryError, SubjectError
from interp.manifest import describe_run
from interp.registry import MEASURES
from interp.report.tables import estimate
from interp.runs.view import load_run
from interp.study import FEW, run_study
from interp.subject import load
from interp.subject.adapters import _shortened, by_kind
from interp.subject.loading import device_of
from interp.undefined import REASONS, reason
from interp.validation.architectures import MODELS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("gpt2", tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="module")
def overflowing(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose block 0 overflows on "lily", and on nothing else."""
    folder = str(tmp_path_factory.mktemp("models") / "overflowing")
    hf, words = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    lily, first = (
        words("hot lily", add_special_tokens=False)["input_ids"][-1],
        hf.transformer.h[0].mlp,
    )
    with torch.no_grad():  # its normalised state is 3.9 in one place, others' 3 at most
        hf.transformer.wte.weight[lily, 0] = 1e4
        first.c_fc.weight[0] = 1e38
        first.c_proj.weight *= 1e-36
    hf.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def study(folder: Path, model: str, *texts: str, **fields: Any) -> Experiment:
    folder.mkdir(exist_ok=True)
    (folder / "q.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (folder / "p.txt").write_text("the weather was mild")
    return Experiment(
        model=model, queries=folder / "q.jsonl", prompt_file=(folder / "p.txt",), controls=(),
        out=folder / "run", bootstrap=0, permutations=0, sample=0, preset="quick", device="cpu",
        measures=(), lens=False, **fields,
    )  # fmt: skip


# Numbers -----------------------------------------------------------------------------------------


def test_a_query_that_overflows_is_named_with_its_site(
    overflowing: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ("hot", "hot lily is", "the river is wide")
    with caplog.at_level(logging.WARNING, "interp"):
        out = run_study(study(tmp_path, overflowing, *texts))
    said = [record.getMessage() for record in caplog.records if record.name == "interp"]
    assert any("mlp_out of layer 0 on, in 1 of the 3 queries" in line for line in said)
    assert any("'hot lily is'" in line for line in said)
    notes = [note for note in load_run(out).manifest["notes"] if "NaN" in note]
    assert len(notes) == 2
    assert all("mlp_out of layer 0 on, in 1 of 3 matched queries" in note for note in notes)


def test_a_model_that_gives_no_numbers_is_named_at_the_probe(overflowing: str) -> None:
    with pytest.raises(SubjectError, match="first in what enters block 1, in plain Hugging Face"):
        load(overflowing, {"base": Base()}, ["hot lily is"])


def test_a_model_without_a_norm_before_its_unembedding_is_refused(tmp_path: Path) -> None:
    config, settings = MODELS["opt"]
    opt_350m = {**settings, "word_embed_proj_dim": 8, "do_layer_norm_before": False}
    folder = save_random_model(getattr(transformers, config), opt_350m, tmp_path / "opt")
    with pytest.raises(SubjectError, match=r"can hook: no norm stands before its unembedding$"):
        load(folder, {"base": Base()}, ["hot lily is"])


def test_few_queries_are_told_what_they_can_show(model: str, tmp_path: Path) -> None:
    few = load_run(run_study(study(tmp_path / "few", model, "hot", "big is"))).manifest["notes"]
    assert any(note.startswith("2 queries: the smallest p ") and "0.5" in note for note in few)
    many = study(tmp_path / "many", model, *(f"{word} is" for word in "abcdefgh"))
    assert FEW == 8
    assert not any("smallest p" in note for note in load_run(run_study(many)).manifest["notes"])


def test_undefined_has_its_reason() -> None:
    assert REASONS.keys() <= MEASURES.keys()
    for name in MEASURES:
        row = {"measure": name, "value": float("nan"), "ci_low": None, "ci_high": None, "n": 0}
        cell = estimate(row)
        assert cell.text == "undefined"
        assert cell.extra == f"({reason(name, 0)})"
        assert len(cell.extra) > 10
    assert estimate({"value": None, "ci_low": None, "ci_high": None}).extra == ""
    assert reason("linear_cka_chance") == reason("linear_cka")
    assert reason("kl_divergence", 0) != reason("kl_divergence", 4)


# Names, shapes, lengths --------------------------------------------------------------------------


def test_what_is_longer_than_learned_positions_is_one_line(model: str) -> None:
    """It was an IndexError of the plain model once."""
    context = AutoModelForCausalLM.from_pretrained(model).config.max_position_embeddings
    long = Prompt(text="hot " * context)
    with pytest.raises(QueryError, match=rf"condition long: .*the model reads {context}"):
        load(model, {"base": Base(), "long": long}, ["hot is"])
    with pytest.raises(QueryError, match="condition base: "):
        load(model, {"base": Base()}, ["hot " * (context + 1)])


def test_keys_are_named_by_kind() -> None:
    keys = [f"base_model.model.h.{n}.attn.lora_{ab}.weight" for n in range(12) for ab in "AB"]
    assert by_kind(keys) == " (h.*.attn.lora_A.weight x12, h.*.attn.lora_B.weight x12)"
    assert by_kind(["base_model.model.h.3.q"]) == " (base_model.model.h.3.q)"
    assert by_kind([]) == ""
    assert by_kind(f"a{chr(97 + n)}" for n in range(20)).endswith("and 12 kinds more)")


def test_many_shapes_that_do_not_fit_are_a_short_line(tmp_path: Path) -> None:
    """A line of 14,600 characters, on a model of 30 layers, once."""
    small = save_model("llama", tmp_path / "small")
    wide = save_model("gpt2", tmp_path / "other")
    adapter = save_adapter(small, tmp_path / "lora", MODULES["llama"]["q"])
    with pytest.raises(InterpError) as caught:
        load(wide, {"base": Base(), "it": Lora(adapter)}, ["hot is"], allow_other_base=True)
    assert len(str(caught.value)) < 600
    told = " ".join(
        f"size mismatch for h.{n}.q: copying a param with shape torch.Size([8, 4]) from "
        f"checkpoint, the shape in current model is torch.Size([8, 6])."
        for n in range(60)
    )
    assert _shortened(f"Error(s) in loading state_dict for X: {told}") == (
        "60 tensors have another shape (first: h.0.q, ([8, 4]), here ([8, 6]))"
    )
    assert len(_shortened("a" * 9_000)) < 250


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "", "meta", "cpu:7", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(SubjectError, match="no device"):
        device_of(name)
    assert device_of("cpu").type == "cpu"


def test_a_fine_tune_that_is_nowhere_is_one_line(model: str) -> None:
    with pytest.raises(SubjectError, match="neither a folder nor in the cache") as caught:
        load(model, {"base": Base(), "tuned": FineTuned("org/nowhere")}, ["hot is"])
    assert "\n" not in str(caught.value)


def test_the_revision_of_a_hub_s_model_is_kept(model: str, tmp_path: Path) -> None:
    subject = load(model, {"base": Base(), "prompt": Prompt(text="a")}, ["hot is"])
    experiment = study(tmp_path, model, "hot is")
    from interp.design import Design
    from interp.queries import Query
    from interp.subject.aligning import encode_groups

    built = {"base": Base(), "prompt": Prompt(text="a")}
    groups = encode_groups(subject, built, {"matched": [Query("hot is")]})
    design = Design.of(built, {}, None)
    assert describe_run(experiment, subject, built, design, groups)["model"]["revision"] is None
    subject.hf_model.config._commit_hash = "a1" * 20  # as transformers sets it of a hub's model
    found = describe_run(experiment, subject, built, design, groups)["model"]["revision"]
    assert found == "a1" * 20


def test_half_a_character_is_one_line(model: str) -> None:
    for conditions, probe in (
        ({"base": Base()}, "hot \ud83d"),
        ({"base": Base(), "odd": Prompt(text="\ud83d")}, "hot is"),
    ):
        with pytest.raises(InterpError, match="half a character"):
            load(model, conditions, [probe])
