"""A prompt as rank-1 updates: the identity on all architectures, and plain Hugging Face agrees."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

from interp.conditions import Base, Lora, Prompt
from interp.queries import Encoded, Query, encode
from interp.subject import Subject, load
from interp.weights import stacked
from interp.weights.implicit import (
    Rank1,
    identity_errors,
    implicit_updates,
    patched_projections,
    projections,
    read_modules,
)

ROOT = Path(__file__).resolve().parents[2]
STORIES = (
    Path(os.environ.get("INTERP_TEST_MODELS", ROOT.parent / "shared" / "models")) / "stories260K"
)
TEXTS = ("the weather was mild", "hot", "a river is wide and high")
LAYER = 1
INPUTS = {
    "gpt2": ["c_fc"],
    "neox": ["dense_h_to_4h"],
    "phi3": ["gate_up_proj"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("implicit")


def subject_of(architecture: str, folder: Path) -> tuple[Subject, list[Encoded]]:
    """A tiny model with a mounted LoRA that is off in both conditions that count."""
    model = folder / architecture
    if not model.exists():
        tiny_models.save_model(architecture, model)
        targets = tiny_models.all_targets(architecture)
        tiny_models.save_adapter(str(model), folder / f"{architecture}_lora", targets)
    prompt = Prompt(text="people walked along")
    lora = Lora(str(folder / f"{architecture}_lora"))
    conditions = {"base": Base(), "prompt": prompt, "lora": lora}
    subject = load(str(model), conditions, ["the river"], device="cpu")
    return subject, encode(map(Query, TEXTS), subject.tokenizer)


@pytest.mark.parametrize("architecture", tiny_models.CONFIGS)
def test_an_updated_block_is_the_block_with_the_prompt(architecture: str, folder: Path) -> None:
    subject, queries = subject_of(architecture, folder)
    errors = identity_errors(subject, "base", "prompt", queries)
    assert errors.shape == (tiny_models.N_LAYERS,)
    assert float(errors.max()) < 1e-5
    ends = [path.rpartition(".")[2] for path in projections(subject)[LAYER].into]
    assert ends == INPUTS.get(architecture, ["gate_proj", "up_proj"])
    states = {c: read_modules(subject, subject.settings[c], queries) for c in ("base", "prompt")}
    last = subject.sites("resid_post")[-1]
    before, after = (states[c].stream[last] for c in ("base", "prompt"))
    assert float((after - before).norm() / after.norm()) > 0.05  # there was something to explain


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "phi3", "gemma2"])
def test_plain_hugging_face_with_the_updated_weights_agrees(
    architecture: str, folder: Path
) -> None:
    """Add a query's update to the weights of a model without hooks, run its block on base's input,
    and add what the prompt adds beside the MLP."""
    subject, queries = subject_of(architecture, folder)
    states = {c: read_modules(subject, subject.settings[c], queries) for c in ("base", "prompt")}
    hf = AutoModelForCausalLM.from_pretrained(folder / architecture, attn_implementation="eager")
    query, last = 2, len(queries[2].ids) - 1
    modules, parameters = dict(hf.named_modules()), dict(hf.named_parameters())
    path = next(iter(projections(subject)[LAYER].into)).rpartition(".mlp.")[0]
    with_prompt = block_output(hf, modules[path], subject, "prompt", queries[query])
    for name in projections(subject)[LAYER].into:
        update = implicit_updates(states["base"], states["prompt"], name)
        change = torch.outer(update.written[query], update.read[query]).float()
        weight = parameters[f"{name}.weight"]
        turned = weight.shape != change.shape
        weight.data += change.T if turned else change
    without = block_output(hf, modules[path], subject, "base", queries[query])
    shift = states["prompt"].beside(LAYER)[query] - states["base"].beside(LAYER)[query]
    found, wanted = without[last] + shift.float(), with_prompt[-1]
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert float((without[last] - wanted).norm() / wanted.norm()) > 0.02


@torch.no_grad()
def block_output(hf: Any, block: Any, subject: Subject, condition: str, query: Encoded) -> Any:
    seen = []
    handle = block.register_forward_hook(lambda *a: seen.append(a[2]))
    ids = [*subject.settings[condition].prefix, *query.ids]
    hf(torch.tensor([ids]))
    handle.remove()
    found = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return found[0, -len(query.ids) :]


def test_an_update_gives_base_s_input_the_prompt_s_image(folder: Path) -> None:
    subject, queries = subject_of("llama", folder)
    states = {c: read_modules(subject, subject.settings[c], queries) for c in ("base", "prompt")}
    weights = AutoModelForCausalLM.from_pretrained(folder / "llama").state_dict()
    for name in projections(subject)[LAYER].into:
        update = implicit_updates(states["base"], states["prompt"], name)
        weight = weights[f"{name}.weight"].double()
        u0, u = states["base"].read[name], states["prompt"].read[name]
        torch.testing.assert_close(update.written, (u - u0) @ weight.T, rtol=1e-4, atol=1e-5)
        inner = (update.read * u0).sum(1, keepdim=True)
        torch.testing.assert_close(inner, torch.ones_like(inner))


def test_patches_are_gone_afterwards_also_after_an_error(folder: Path) -> None:
    subject, queries = subject_of("llama", folder)
    (path, *_) = projections(subject)[0].into
    before = read_modules(subject, subject.settings["base"], queries)

    def halt(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("halt")

    with pytest.raises(RuntimeError, match="halt"), patched_projections(subject, {path: halt}):
        read_modules(subject, subject.settings["base"], queries)
    after = read_modules(subject, subject.settings["base"], queries)
    assert torch.equal(before.gave[path], after.gave[path])


def many(n: int = 7, d_out: int = 6, d_in: int = 5, seed: int = 0) -> Rank1:
    generator = torch.Generator().manual_seed(seed)
    sizes = ((n, d_out), (n, d_in))
    return Rank1(*(torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes))


def whole(update: Rank1) -> np.ndarray:
    return np.einsum("no,ni->noi", update.written.numpy(), update.read.numpy())


def test_measures_of_many_updates_are_those_of_the_matrices_themselves() -> None:
    update = many()
    matrices = whole(update)
    flat = matrices.reshape(len(matrices), -1)
    kernel = stacked.frobenius_gram(update)
    np.testing.assert_allclose(kernel, flat @ flat.T)
    shares = np.linalg.svd(flat, compute_uv=False) ** 2
    shares /= shares.sum()
    rank = np.exp(-(shares * np.log(shares)).sum())
    assert stacked.effective_rank(kernel) == pytest.approx(rank)
    cosines = np.corrcoef(flat) * 0 + (flat @ flat.T) / np.outer(
        *[np.linalg.norm(flat, axis=1)] * 2
    )
    upper = cosines[np.triu_indices(len(flat), 1)]
    assert stacked.mean_cosine(kernel) == pytest.approx(upper.mean())
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 2)))[0]
    beside = np.concatenate(list(matrices), axis=1)
    u = np.linalg.svd(beside)[0][:, :2]
    seen = stacked.side(update, torch.tensor(basis), left=True)
    assert stacked.basis_overlap(seen) == pytest.approx(np.linalg.norm(u.T @ basis) ** 2 / 2)
    below = np.concatenate(list(matrices), axis=0)
    v = np.linalg.svd(below)[2][:2]
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 2)))[0]
    seen = stacked.side(update, torch.tensor(basis), left=False)
    assert stacked.basis_overlap(seen) == pytest.approx(np.linalg.norm(v @ basis) ** 2 / 2)


def test_one_update_for_all_queries_has_rank_one_and_strangers_as_many_as_there_are() -> None:
    one = Rank1(*(part[:1].repeat(5, 1) * 3 for part in many()))
    assert stacked.effective_rank(stacked.frobenius_gram(one)) == pytest.approx(1)
    assert stacked.mean_cosine(stacked.frobenius_gram(one)) == pytest.approx(1)
    strangers = Rank1(torch.eye(5, dtype=torch.float64), torch.ones(5, 4, dtype=torch.float64))
    assert stacked.effective_rank(stacked.frobenius_gram(strangers)) == pytest.approx(5)
    assert stacked.mean_cosine(stacked.frobenius_gram(strangers)) == pytest.approx(0)
    basis = torch.eye(5, dtype=torch.float64)[:, :2]
    assert np.isnan(
        stacked.basis_overlap(stacked.side(one, basis, left=False))
    )  # spans one direction


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = torch.tensor([1.0, 4.0, 2.0, 9.0, 5.0], dtype=torch.float64)
    found = stacked.jackknife_interval(lambda some: float(values[some].mean()), 5)
    error = float(values.std()) / 5**0.5
    assert found == pytest.approx((4.2, 4.2 - 1.96 * error, 4.2 + 1.96 * error))


@pytest.mark.skipif(not STORIES.is_dir(), reason="the stories260K weights are not on this machine")
def test_the_identity_holds_on_weights_trained_by_others() -> None:
    conditions = {"base": Base(), "prompt": Prompt(text="Once there was a sad girl.")}
    subject = load(str(STORIES), conditions, ["She ran"], device="cpu")
    queries = encode(map(Query, ("She ran to the", "The big dog saw a")), subject.tokenizer)
    assert float(identity_errors(subject, "base", "prompt", queries).max()) < 1e-5
