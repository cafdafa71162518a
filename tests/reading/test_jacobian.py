"""The Jacobian lens, under base and a live LoRA, is autograd's on plain Hugging Face + peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference.models
import tiny_models
import torch
from reference.jacobian import mean_jacobians
from reference.readout import unembedding
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.conditions import Base, Lora
from interp.errors import ConfigError, SubjectError
from interp.reading.run import read_run
from interp.runs.readings import JACOBIAN_LENS, LOGIT_LENS
from interp.runs.view import load_run
from interp.subject import Subject, load
from interp.subject.jacobian import SKIPPED, fit_jacobians

from .conftest import LAST, WORDS
from .test_readings import states

LONG = ["people walked along the road and talked", "a river is wide; a hill is high", "up"]
"""The last one is too short to count."""
COUNTED = 2


def ids_of(folder: str, texts: list[str]) -> list[list[int]]:
    words = AutoTokenizer.from_pretrained(folder)
    return [list(words(text)["input_ids"]) for text in texts]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "neox"])
def test_it_is_autograds_on_the_plain_model(kind: str, tmp_path: Path) -> None:
    """GPT-2's transposed weights and learned positions, Gemma's post-norms and soft-caps,
    NeoX's parallel blocks; the LoRA acts inside the hooked model, peft's own is the reference."""
    folder = tiny_models.save_model(kind, tmp_path / "model")
    lora = tiny_models.save_adapter(folder, tmp_path / "lora", tiny_models.all_targets(kind))
    subject = load(folder, {"base": Base(), "lora": Lora(lora)}, LONG[:1], device="cpu")
    assert [len(ids) >= SKIPPED + 2 for ids in ids_of(folder, LONG)] == [True, True, False]
    found = {
        name: fit_jacobians(subject, subject.settings[name], LONG, range(subject.n_layers))
        for name in ("base", "lora")
    }
    for name, adapter in (("base", None), ("lora", lora)):
        assert found[name].n == COUNTED
        assert sorted(found[name].matrices) == list(range(LAST))
        plain = reference.models.open_model(folder, adapter, 1.0, None)
        for layer, matrix in found[name].matrices.items():
            wanted = mean_jacobians(plain, ids_of(folder, LONG[:COUNTED]), layer, SKIPPED)
            np.testing.assert_allclose(matrix.numpy(), wanted, rtol=1e-4, atol=1e-4)
    moved = found["lora"].matrices[0] - found["base"].matrices[0]
    assert float(moved.abs().max()) > 0.05
    assert not any(p.grad is not None for p in subject.hf_model.parameters())


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tiny_models.save_model("llama", tmp_path_factory.mktemp("jacobian") / "model")
    return load(folder, {"base": Base()}, LONG[:1], device="cpu")


def test_of_the_last_layer_it_is_the_identity(subject: Subject) -> None:
    plain = reference.models.open_model(subject.name, None, 1.0, None)
    found = mean_jacobians(plain, ids_of(subject.name, LONG[:COUNTED]), LAST, SKIPPED)
    np.testing.assert_array_equal(found, np.eye(tiny_models.D_MODEL))
    assert fit_jacobians(subject, subject.settings["base"], LONG, [LAST]).matrices == {}


def test_planted_linear_blocks_have_their_products(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Block 1 maps every token by itself, block 2 the sum of it and all before it: a token among n
    that count has (n + 1) / 2 later ones on the mean."""
    random = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, subject.d_model, subject.d_model, generator=random)
    blocks = [block.original_component for block in subject.blocks]
    monkeypatch.setattr(blocks[1], "forward", lambda hidden, *_, **__: hidden @ first.T)
    monkeypatch.setattr(blocks[2], "forward", lambda hidden, *_, **__: hidden.cumsum(1) @ second.T)
    found = fit_jacobians(subject, subject.settings["base"], LONG, range(subject.n_layers))
    counts = [len(ids) - 1 - SKIPPED for ids in ids_of(subject.name, LONG[:COUNTED])]
    times = np.mean([(n + 1) / 2 for n in counts])
    torch.testing.assert_close(found.matrices[1], times * second, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.matrices[0], times * second @ first, rtol=1e-5, atol=1e-3)


def test_texts_without_a_token_that_counts_are_one_line(subject: Subject) -> None:
    with pytest.raises(SubjectError, match="needs a text of 6 tokens or more"):
        fit_jacobians(subject, subject.settings["base"], LONG[COUNTED:], [0])


def test_what_transformerlens_refuses_is_one_line(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that runs its blocks several times over, as far as it says."""
    monkeypatch.setattr(subject.bridge.cfg, "total_ut_steps", 4, raising=False)
    with pytest.raises(SubjectError, match=r"does not apply to .*: .* total_ut_steps=4") as caught:
        fit_jacobians(subject, subject.settings["base"], LONG, [0])
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def through(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of the run, read through the lens under the LoRA's weights."""
    root = tmp_path_factory.mktemp("through")
    (root / "texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in LONG))
    shutil.copytree(made["settings"].run, root / "run")
    fields = {"run": root / "run", "texts": root / "texts.jsonl", "jacobian": "lora"}
    settings = made["settings"].model_copy(update={**fields, "variables": False})
    return load_run(read_run(settings))


@pytest.mark.parametrize("made", ["llama"], indirect=True)
@pytest.mark.parametrize("pair", [("prompt", "base"), ("lora", "base"), ("lora", "prompt")])
def test_a_run_is_read_through_it(made: Any, through: Any, pair: tuple[str, str]) -> None:
    """From plain models: mean differences, times J of the LoRA's model, through the norm's gain and
    the unembedding by hand."""
    model = made["model"]
    plain = reference.models.open_model(model, made["lora"], 1.0, None)
    means = {n: np.stack([x[:, -1] for x in states(made, through, n, "matched")]) for n in pair}
    words = AutoTokenizer.from_pretrained(model)
    tokens = [words(f" {w}", add_special_tokens=False)["input_ids"][0] for w in WORDS]
    merged = AutoModelForCausalLM.from_pretrained(model)
    norm, (weight, _) = reference.models.final_norm(merged), unembedding(merged)
    of = through.reading
    for layer in range(tiny_models.N_LAYERS):
        found = of.row(JACOBIAN_LENS.score, pair, "matched", "last", layer)
        each = (means[pair[0]] - means[pair[1]])[:, layer]
        if np.linalg.norm(each.mean(0)) < 1e-5:  # below the LoRA's first layer
            assert found is None or np.isnan(found["value"])
            continue
        onward = mean_jacobians(plain, ids_of(model, LONG[:COUNTED]), layer, SKIPPED)
        logits = norm.linear(each @ onward.T, np.ones(1)) @ weight.T
        above = logits[:, tokens].mean(1) - logits.mean(1)
        wanted = above.mean() / np.sqrt(logits.var(1).mean())
        assert found["value"] == pytest.approx(wanted, rel=1e-3, abs=1e-4)
        said = of.said(pair, "matched", layer, "last", lens=JACOBIAN_LENS)
        assert said.iloc[0]["token_id"] == logits.mean(0).argmax()
        rank = of.row(JACOBIAN_LENS.rank, pair, "matched", "last", layer)
        ranks = [1 + (logits.mean(0) > logits.mean(0)[t]).sum() for t in tokens]
        assert rank["value"] == pytest.approx(np.median(ranks), abs=1)


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_at_the_last_layer_both_lenses_say_the_same(through: Any) -> None:
    """The LoRA leaves norm and unembedding alone; nulls, excess and directions are among them."""
    of, kinds = through.reading, ("score", "random", "excess", "rank")
    assert of.fitted == f"Fitted on {COUNTED} texts under lora"
    table = through.table[through.table["layer"] == LAST]
    keys = ["condition", "reference", "queries", "position"]
    for kind in kinds:
        logit, own = (
            table[table["measure"] == getattr(lens, kind)].set_index(keys).sort_index()
            for lens in (LOGIT_LENS, JACOBIAN_LENS)
        )
        assert len(logit) == len(own) > 0
        for column in ("value", "ci_low", "ci_high"):
            np.testing.assert_allclose(
                own[column].astype(float), logit[column].astype(float), rtol=1e-5
            )
    t = of.tokens[of.tokens["layer"] == LAST]
    columns = ["queries", "condition", "reference", "position", "vector", "rank", "token_id"]
    logit, own = (
        {*t[t["lens"] == lens.name][columns].itertuples(index=False, name=None)}
        for lens in (LOGIT_LENS, JACOBIAN_LENS)
    )
    assert len(logit) > 100
    assert logit == own
    below = through.table[through.table["layer"] == LAST - 1]
    sets = [
        below[below["measure"] == x.score]["value"].dropna() for x in (LOGIT_LENS, JACOBIAN_LENS)
    ]
    assert np.abs(sets[0].to_numpy() - sets[1].to_numpy()).max() > 0.05


@pytest.mark.parametrize("made", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("name", "line"), [("nobody", "no condition 'nobody'"), ("prompt", "nothing but weights")]
)
def test_what_it_cannot_be_fitted_under_is_one_line(made: Any, name: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        read_run(made["settings"].model_copy(update={"jacobian": name}))


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_where_it_cannot_be_fitted_the_rest_is_read(made: Any, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in ("up", "a")))
    shutil.copytree(made["settings"].run, tmp_path / "run")
    fields = {"run": tmp_path / "run", "texts": tmp_path / "texts.jsonl", "jacobian": "base"}
    settings = made["settings"].model_copy(update={**fields, "variables": False})
    of = load_run(read_run(settings)).reading
    assert of.found["notes"] == ["the Jacobian lens needs a text of 6 tokens or more"]
    assert (of.read_by(LOGIT_LENS), of.read_by(JACOBIAN_LENS), of.fitted) == (True, False, "")
