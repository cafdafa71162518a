"""One adapter out of many implicit updates: exact where it can be, least squares, and mountable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch

from interp.conditions import Base, Lora, Prompt
from interp.errors import SubjectError
from interp.queries import Encoded, Query, encode
from interp.subject import Subject, load
from interp.weights.implicit import patched_projections, read_modules
from interp.weights.static import fit_update, reduced, save_update

TEXTS = ("the weather was mild", "hot", "a river is wide")
PROMPT = Prompt(text="people walked along")


def opened(model: str, **more: Lora) -> tuple[Subject, list[Encoded]]:
    conditions = {"base": Base(), "prompt": PROMPT, **more}
    subject = load(model, conditions, ["the river"], device="cpu")
    return subject, encode(map(Query, TEXTS), subject.tokenizer)


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "phi3", "qwen3"])
def test_fewer_tokens_than_dimensions_are_fitted_exactly(architecture: str, tmp_path: Path) -> None:
    """With all ranks and next to no penalty the mounted adapter says what the prompt says."""
    model = tiny_models.save_model(architecture, tmp_path / "model")
    subject, queries = opened(model)
    found = fit_update(subject, "base", "prompt", queries, 40, ridge=1e-9)  # d_model: 32
    folder = save_update(found, tmp_path / "static", subject)
    subject, queries = opened(model, static=Lora(folder))
    last = subject.sites("resid_post")[-1]
    base, prompt, static = (
        read_modules(subject, subject.settings[name], queries, last=False).stream[last]
        for name in ("base", "prompt", "static")
    )
    assert float((static - prompt).norm() / prompt.norm()) < 1e-4
    assert float((base - prompt).norm() / prompt.norm()) > 0.1


def test_what_is_patched_in_is_what_is_saved(tmp_path: Path) -> None:
    model = tiny_models.save_model("gpt2", tmp_path / "model")
    subject, queries = opened(model)
    found = fit_update(subject, "base", "prompt", queries, 2, ridge=0.1)
    last = subject.sites("resid_post")[-1]
    live = read_modules(subject, subject.settings["base"], queries, deltas=found).stream[last]
    with patched_projections(subject, found):
        again = read_modules(subject, subject.settings["base"], queries).stream[last]
    subject, _ = opened(model, static=Lora(save_update(found, tmp_path / "static", subject)))
    mounted = read_modules(subject, subject.settings["static"], queries).stream[last]
    torch.testing.assert_close(live, again)
    torch.testing.assert_close(live, mounted, rtol=1e-4, atol=1e-5)


def test_a_norm_behind_the_mlp_is_refused(tmp_path: Path) -> None:
    subject, queries = opened(tiny_models.save_model("gemma2", tmp_path / "model"))
    with pytest.raises(SubjectError, match=r"a norm between .*down_proj and the stream"):
        fit_update(subject, "base", "prompt", queries, 2)


def penalised(x: np.ndarray, y: np.ndarray, d: np.ndarray, penalty: float) -> float:
    return float(((x @ d.T - y) ** 2).sum() + penalty * (d**2).sum())


def test_reduced_is_the_best_of_its_rank() -> None:
    """At full rank it is ridge regression; below, no step away within the rank is better."""
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(20, 5)), generator.normal(size=(20, 4))
    penalty = 0.3 * np.trace(x.T @ x) / 5
    tensors = torch.tensor(x), torch.tensor(y)
    ridge = np.linalg.solve(x.T @ x + penalty * np.eye(5), x.T @ y).T
    full = reduced(*tensors, 4, 0.3)
    np.testing.assert_allclose((full.up @ full.down).numpy(), ridge)
    two = reduced(*tensors, 2, 0.3)
    up, down = two.up.numpy(), two.down.numpy()
    best = penalised(x, y, up @ down, penalty)
    assert np.linalg.matrix_rank(up @ down) == 2
    u, s, v = np.linalg.svd(ridge)
    assert best < penalised(x, y, (u[:, :2] * s[:2]) @ v[:2], penalty)  # plain truncation
    for size in (1e-3, 1e-2, 0.1, 1.0):
        for _ in range(20):
            near = (up + size * generator.normal(size=up.shape)) @ (
                down + size * generator.normal(size=down.shape)
            )
            assert penalised(x, y, near, penalty) >= best
