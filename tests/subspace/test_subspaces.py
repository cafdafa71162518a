"""A subspace's interchange against plain hooks, its two ends, what is planted, and learning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_models
import torch
from numpy.testing import assert_allclose
from peft import PeftModel
from subspace.plain_swap import Plainly, divergence
from tiny_models import D_MODEL, N_LAYERS
from torch import Tensor
from transformer_lens.tools.analysis.interchange import SubspaceInterchange
from transformers import AutoModelForCausalLM

from interp import edits
from interp.conditions import Base, Condition, Lora, Prompt
from interp.patching.effects import Resampling
from interp.patching.interchange import PatchMove
from interp.queries import Encoded, Query, encode
from interp.runs.subspaces import APART, DIFFERENCE, FULL, LEARNED, PRINCIPAL, SHUFFLED
from interp.subject import load
from interp.subspace.findings import SwapScores, smallest_dimension
from interp.subspace.learning import (
    learn_basis,
    orthonormal,
    principal_directions,
    random_basis,
)
from interp.subspace.swaps import Swap, SwapJob, loss_of, read_swaps, score_swaps

QUERIES = [
    Query("hot -> wide", " cold is"),
    Query("up ->", " down"),
    Query("big is the opposite"),
    Query("a hill", " is"),
    Query("people walked"),
    Query("lily said: yes"),
    Query("the weather", " was"),
    Query("small things"),
]
HALF = 4


class Opened(NamedTuple):
    job: SwapJob
    queries: list[Encoded]
    model: str
    plain: dict[str, Plainly]

    def swaps(self, move: PatchMove, layer: int, some: slice = slice(None)) -> list[Swap]:
        return read_swaps(self.job, move, layer, self.queries[some], size=3)


def opened(model: str, conditions: Mapping[str, Condition]) -> Opened:
    subject = load(model, {"base": Base(), **conditions}, ["big ->"], device="cpu")
    queries = encode(QUERIES, subject.tokenizer)
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    plain = {
        name: Plainly(
            model,
            str(setting.adapters[0][0]) if setting.adapters else None,
            tuple(setting.prefix),
        )
        for name, setting in subject.settings.items()
    }
    return Opened(SwapJob(subject, caches, rows=64, seed=0), queries, model, plain)


@pytest.fixture(scope="module", params=["gpt2", "qwen3", "gemma2"])
def of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A prompt and a LoRA on all modules."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_models.save_model(request.param, folder / "model")
    targets = tiny_models.all_targets(request.param)
    lora = tiny_models.save_adapter(model, folder / "lora", targets)
    prompt = Prompt(text="hot is the opposite of")
    return opened(model, {"prompt": prompt, "lora": Lora(lora)})


def drawn(k: int, name: str = "some") -> Tensor:
    return random_basis(name, D_MODEL, k, torch.zeros(1))


# --- the interchange ------------------------------------------------------------------------------

MOVES = [PatchMove("prompt", "base"), PatchMove("lora", "prompt")]


@pytest.mark.parametrize("layer", [0, N_LAYERS - 1])
@pytest.mark.parametrize("move", MOVES, ids=lambda move: f"{move.source}-{move.target}")
def test_divergence_and_gradient_are_those_of_plain_hooks(
    of: Opened, move: PatchMove, layer: int
) -> None:
    basis = drawn(3)
    swaps = of.swaps(move, layer)
    found = score_swaps(of.job, move, swaps, {LEARNED: [[basis]]})
    value, gradient = loss_of(of.job, move, swaps)(basis)
    source, target = of.plain[move.source], of.plain[move.target]
    leaf = basis.clone().requires_grad_()
    expected = [
        divergence(source, target, q, layer, lambda own, new: own + (new - own) @ leaf @ leaf.T)
        for q in of.queries
    ]
    numbers = torch.stack(expected).detach().numpy()
    assert_allclose(found[LEARNED][:, 0], numbers, atol=1e-4)
    assert value == pytest.approx(numbers.mean(), abs=1e-4)
    (slope,) = torch.autograd.grad(torch.stack(expected).mean(), leaf)
    assert_allclose(gradient, slope, atol=1e-4 * float(slope.abs().max() + 1))
    assert slope.abs().max() > 1e-3


@pytest.mark.parametrize("move", MOVES, ids=lambda move: f"{move.source}-{move.target}")
def test_all_dimensions_are_the_whole_state_and_none_is_nothing(
    of: Opened, move: PatchMove
) -> None:
    whole, nothing = drawn(D_MODEL), torch.zeros(D_MODEL, 0)
    for layer in range(N_LAYERS):
        swaps = of.swaps(move, layer)
        found = score_swaps(of.job, move, swaps, {LEARNED: [[nothing], [drawn(2)], [whole]]})
        assert_allclose(found[LEARNED][:, 2], found[FULL][:, 0], atol=1e-5)
        assert_allclose(found[LEARNED][:, 0], found[APART][:, 0], atol=1e-7)
        assert found[APART].min() > 1e-3
    assert_allclose(found[FULL], 0, atol=1e-6)  # the last state is the output


def test_a_change_of_basis_changes_nothing(of: Opened) -> None:
    """Only the subspace counts, not its axes."""
    basis, move = drawn(3), MOVES[0]
    turned = basis @ torch.linalg.qr(torch.randn(3, 3, generator=torch.manual_seed(0))).Q
    swaps = of.swaps(move, 1)
    found = score_swaps(of.job, move, swaps, {LEARNED: [[basis], [turned]]})[LEARNED]
    assert_allclose(found[:, 0], found[:, 1], atol=1e-5)


def test_chunks_change_nothing(of: Opened) -> None:
    move, some = MOVES[0], {kind: [[drawn(2)]] for kind in (LEARNED, SHUFFLED, DIFFERENCE)}
    few = score_swaps(of.job, move, of.swaps(move, 1), some)
    at_once = read_swaps(of.job, move, 1, of.queries, size=8)
    for kind, values in score_swaps(of.job, move, at_once, some).items():
        assert_allclose(values, few[kind], atol=1e-5)


def test_one_position_is_transformer_lenss_step(of: Opened) -> None:
    basis, swap = drawn(3), of.swaps(MOVES[0], 1)[0]
    theirs = SubspaceInterchange(basis)(swap.own[:, 0], swap.given[:, 0])
    assert_allclose(swap.change(LEARNED, basis)(swap.own)[:, 0], theirs, atol=1e-6)


def test_a_random_difference_is_as_long_as_the_own_one(of: Opened) -> None:
    basis, swap = drawn(3), of.swaps(MOVES[0], 1)[0]
    steps = [swap.change(kind, basis)(swap.own) - swap.own for kind in (DIFFERENCE, LEARNED)]
    lengths = [step.norm(dim=-1) for step in steps]
    assert_allclose(lengths[0], lengths[1], rtol=1e-4)
    inside = edits.project(basis)(steps[0])
    assert_allclose(inside, 0, atol=1e-5)  # nothing lies outside of the subspace
    assert not torch.allclose(steps[0], steps[1], atol=1e-3)


# --- learning -------------------------------------------------------------------------------------


def test_the_best_subspace_of_a_quadratic_is_found() -> None:
    """`-tr R'MR` is least on the leading eigenvectors of M (Ky Fan)."""
    drawn_ = torch.randn(12, 12, generator=torch.manual_seed(1))
    moment = drawn_ @ drawn_.T
    best = torch.linalg.eigvalsh(moment)[-3:].sum()

    def loss(basis: Tensor) -> tuple[float, Tensor]:
        return -float((basis * (moment @ basis)).sum()), -2 * moment @ basis

    start = orthonormal(torch.randn(12, 3, generator=torch.manual_seed(2)))
    found = learn_basis(loss, start, steps=200, patience=200, rate=0.3)
    assert min(found.losses) == pytest.approx(-float(best), rel=1e-3)
    assert -float((found.basis * (moment @ found.basis)).sum()) == min(found.losses)
    assert_allclose(found.basis.T @ found.basis, torch.eye(3), atol=1e-5)
    few = learn_basis(lambda basis: (1.0, torch.zeros_like(basis)), start, 200, 5, 0.3)
    assert len(few.losses) == 6  # nothing gets better: patience ends it


def test_principal_directions_are_singular_vectors() -> None:
    steps = torch.randn(30, 5, generator=torch.manual_seed(0)) @ torch.diag(torch.arange(1.0, 6))
    found, expected = principal_directions(steps), torch.linalg.svd(steps)[2].T
    assert_allclose((found * expected).sum(0).abs(), 1, atol=1e-4)


# --- what is planted ------------------------------------------------------------------------------

_RANK = 3


def write_lora(model: str, folder: Path, module: str, first: Tensor | None = None) -> str:
    """A LoRA on one matrix of block 0 that writes into the residual stream: all that it does there
    lies in three dimensions, the first of them as given."""
    folder = Path(tiny_models.save_adapter(model, folder, [module], layers=[0]))
    hf = AutoModelForCausalLM.from_pretrained(model)
    peft = PeftModel.from_pretrained(hf, str(folder))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            parameter.data = 2 * parameter.data
            if first is not None:
                parameter.data[:, 0] = first
    peft.save_pretrained(str(folder))
    return str(folder)


MOVE = PatchMove("lora", "base")


def bases(of: Opened, k: int, steps: int) -> dict[str, Any]:
    """Of a dimension: learned on the first half, and principal directions of that half."""
    swaps = read_swaps(of.job, MOVE, 0, of.queries[:HALF], size=HALF)
    leading = principal_directions(torch.cat([swap.tokens for swap in swaps]))[:, :k]
    loss = loss_of(of.job, MOVE, swaps)
    found = learn_basis(loss, leading, steps, patience=30, rate=1.0).basis
    return {LEARNED: [[found]], PRINCIPAL: [[leading]]}


def recovered(of: Opened, k: int, steps: int = 60) -> dict[str, float]:
    """On the other half."""
    swaps = read_swaps(of.job, MOVE, 0, of.queries[HALF:], size=HALF)
    near = score_swaps(of.job, MOVE, swaps, bases(of, k, steps))
    return {kind: 1 - values.sum() / near[APART].sum() for kind, values in near.items()}


def test_a_lora_of_three_directions_is_found_at_three(tmp_path: Path) -> None:
    model = tiny_models.save_model("qwen3", tmp_path / "model")
    of = opened(model, {"lora": Lora(write_lora(model, tmp_path / "lora", "down_proj"))})
    assert recovered(of, 3, steps=5)[LEARNED] == pytest.approx(1, abs=1e-4)
    assert recovered(of, 2)[LEARNED] < 0.97
    assert recovered(of, 1)[LEARNED] < 0.9


def test_learning_leaves_out_what_the_model_does_not_read(tmp_path: Path) -> None:
    """A layer norm takes the mean away: the strongest of three directions does nothing, and two
    are enough where the principal directions need all three."""
    model = tiny_models.save_model("gpt2", tmp_path / "model")
    loud = torch.full((D_MODEL,), 3.0)
    of = opened(model, {"lora": Lora(write_lora(model, tmp_path / "lora", "mlp.c_proj", loud))})
    assert recovered(of, 3, steps=1)[PRINCIPAL] == pytest.approx(1, abs=1e-4)
    two = recovered(of, 2, steps=120)
    assert two[LEARNED] > 0.98
    assert two[PRINCIPAL] < 0.6
    assert recovered(of, 1)[LEARNED] < 0.97


# --- the smallest that is enough ------------------------------------------------------------------


def scores(recovery: list[float], whole: float) -> SwapScores:
    """Ten queries that are all alike."""
    near = {LEARNED: 1 - np.tile(recovery, (10, 1)), FULL: np.full((10, 1), 1 - whole)}
    return SwapScores("lora", "base", 0, "matched", {**near, APART: np.ones((10, 1))})


SCALE = Resampling.of([str(i) for i in range(10)], 50, 0, 0, 0.02)


@pytest.mark.parametrize(
    ("recovery", "whole", "expected"),
    [
        ([0.2, 0.85, 0.9], 0.9, 2),
        ([0.2, 0.5, 0.81], 0.9, 4),
        ([0.85, 0.5, 0.9], 0.9, 4),  # from which on it stays so
        ([0.2, 0.5, 0.7], 0.9, 32),  # no fewer than all
        ([-1.0, -1.0, 0.0], 0.05, 4),
        ([0.0, 0.0, 0.0], 0.05, 0),  # nothing is there to recover
    ],
)
def test_the_smallest_dimension(recovery: list[float], whole: float, expected: int) -> None:
    found = smallest_dimension(scores(recovery, whole), (1, 2, 4), 32, SCALE, margin=0.1)
    assert tuple(found) == (expected, expected, expected)


def test_its_interval_holds_what_resampled_queries_say() -> None:
    """Half of the queries need two dimensions, the others four."""
    own = scores([0.0, 0.0, 1.0], 1.0)
    own.near[LEARNED][:5, 1] = 0
    found = smallest_dimension(own, (1, 2, 4), 32, SCALE, margin=0.5)
    assert found.ci_low == 2
    assert found.ci_high == 4
