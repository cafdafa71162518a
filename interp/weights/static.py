"""One low-rank adapter out of what a prompt does to many queries: has a prompt a LoRA of its own?

    factors = fit_update(subject, "base", "prompt", queries, rank=8)
    save_update(factors, "adapters/static", subject.name)           # mounts like any other adapter

Block by block, above the blocks that are already adapted: gate and up are to give, from what enters
them without the prompt, what they give with it; the output projection is to carry all that is still
missing from the stream, which is what the prompt adds beside the MLP.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import SubjectError
from interp.names import Site
from interp.queries import Encoded
from interp.subject import Subject
from interp.subject.adapter_files import WEIGHTS_FILE
from interp.weights.implicit import ModuleStates, projections, read_modules
from interp.weights.updates import weight_matrices

_RIDGE = 1e-3
"""Penalty as a share of the inputs' mean squared length per dimension."""


@dataclass(frozen=True)
class _Factors:
    """`up @ down` is added to a matrix."""

    up: Float[Tensor, "d_out rank"]
    down: Float[Tensor, "rank d_in"]

    def __call__(self, x: Tensor) -> Tensor:
        """What it adds to a module's output."""
        down, up = (part.to(x.device, x.dtype) for part in (self.down, self.up))
        return x @ down.T @ up.T


def reduced(
    x: Float[Tensor, "token d_in"],
    y: Float[Tensor, "token d_out"],
    rank: int,
    ridge: float = _RIDGE,
) -> _Factors:
    """The matrix D of this rank that minimises `‖x D' - y‖² + λ ‖D‖²`, λ being `ridge` times the
    mean eigenvalue of `x'x`: reduced-rank regression (Izenman 1975). Its output space is that of
    the strongest fitted values, not of the strongest weights."""
    square = x.T @ x
    penalty = ridge * square.diagonal().mean() + torch.finfo(x.dtype).tiny
    root = torch.linalg.cholesky(square + penalty * torch.eye(len(square)).to(square))
    fitted = torch.linalg.solve_triangular(root, x.T @ y, upper=False)
    up = torch.linalg.svd(fitted, full_matrices=False).Vh[:rank].T
    down = torch.linalg.solve_triangular(root.T, fitted @ up, upper=True).T
    return _Factors(up, down)


def fit_update(
    subject: Subject,
    base: str,
    prompt: str,
    queries: Sequence[Encoded],
    rank: int,
    *,
    ridge: float = _RIDGE,
    size: int = 64,
) -> dict[str, _Factors]:
    """Path -> its update, from all tokens of these queries, in the MLP of every block; SubjectError
    where a norm stands between the MLP and the stream, which no update of weights can carry a
    shift through."""
    of = partial(read_modules, subject, queries=queries, size=size, last=False)
    wanted = of(subject.settings[prompt])
    found: dict[str, _Factors] = {}
    for layer, block in enumerate(projections(subject)):
        now = of(subject.settings[base], deltas=found)
        (out,) = block.out
        _check(subject, now, layer, out)
        for path in block.into:
            missing = wanted.gave[path] - now.gave[path]
            found[path] = reduced(now.read[path], missing, rank, ridge)
        now = of(subject.settings[base], deltas=found)
        post = Site("resid_post", layer)
        missing = wanted.stream[post] - now.stream[post]
        found[out] = reduced(now.read[out], missing, rank, ridge)
    return found


def _check(subject: Subject, now: ModuleStates, layer: int, out: str) -> None:
    given, arrived = now.gave[out], now.stream[Site("mlp_out", layer)]
    if not torch.allclose(given, arrived, rtol=1e-3, atol=1e-3 * float(given.abs().max())):
        raise SubjectError(
            f"{subject.name} has a norm between {out} and the stream: no update of the MLP's "
            "weights can carry what a prompt adds beside it"
        )


def save_update(factors: Mapping[str, _Factors], folder: str | Path, subject: Subject) -> str:
    """Write a peft LoRA of these updates; returns its folder."""
    rank = max(update.up.shape[1] for update in factors.values())
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    stored_turned = any(
        matrix.turned for p, matrix in weight_matrices(subject).items() if p in factors
    )
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(factors),
        fan_in_fan_out=stored_turned,
        inference_mode=True,
        base_model_name_or_path=subject.name,
        task_type="CAUSAL_LM",
    )
    config.save_pretrained(str(root))
    tensors = {}
    for path, update in factors.items():
        up, down = (part.float().cpu() for part in (update.up, update.down))
        more = rank - up.shape[1]  # a matrix may have fewer directions than the rank
        key = f"base_model.model.{path}"
        tensors[f"{key}.lora_A.weight"] = torch.nn.functional.pad(
            down, (0, 0, 0, more)
        ).contiguous()
        tensors[f"{key}.lora_B.weight"] = torch.nn.functional.pad(up, (0, more)).contiguous()
    save_file(tensors, root / WEIGHTS_FILE)
    return str(root)
