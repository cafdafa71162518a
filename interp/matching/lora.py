"""Train a LoRA until the model says what is target: plain Hugging Face + peft, no hooks.

    student = with_lora(model, recipe)
    train(student, prefix, lambda epoch: [Example(ids, first, target)], recipe, folder)

The loss is `KL(target ‖ with LoRA)` in nats at every example's matched positions; on the student's
own answers it is the other way round (Agarwal et al. 2306.13649, sec. 3). Where states are target
too, `align_weight` times their relative squared distance is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from torch import Tensor

from interp.errors import RunError
from interp.matching.plain import read_sequences
from interp.progress import TrainingProgress, no_progress
from interp.subject.loading import DTYPES, quiet

_TRAINING = "training steps"


class Recipe(NamedTuple):
    """How a LoRA is trained; the fields are those of `interp.config.Distillation`."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    learning_rate: float
    epochs: int
    batch_size: int
    target_kl: float
    patience: int
    seed: int
    adapter_dtype: str = "float32"
    on_policy: bool = False
    align_weight: float = 1.0


@dataclass(frozen=True)
class Example:
    """One training sequence: `ids` after a prefix, matched from position `first` on;
    `teacher` are the log-probabilities target there, `[pos, d_vocab]`, `states` the residual stream
    after every block, `[layer, pos, d_model]` (None: any will do)."""

    ids: tuple[int, ...]
    first: int
    teacher: Tensor
    states: Tensor | None = None


EpochExamples = Callable[[int], Sequence[Example]]
"""The examples of an epoch, as many in each."""


class _Loss(NamedTuple):
    """Mean `kl` (nats), and how far the states are `apart`: the squared distance as a share of the
    target square, the mean over layers (0 where no states are target)."""

    kl: Any
    apart: Any

    def total(self, weight: float) -> Any:
        """What is minimised."""
        return self.kl + weight * self.apart


def with_lora(model: Any, recipe: Recipe) -> Any:
    """The model with a fresh LoRA, which alone is trained."""
    torch.manual_seed(recipe.seed)
    targets: Any = list(recipe.targets)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=recipe.alpha,  # type: ignore[arg-type]
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        fan_in_fan_out=model.config.model_type == "gpt2",
        task_type="CAUSAL_LM",
    )
    try:
        with quiet():
            return get_peft_model(model, config)
    except ValueError as error:
        raise RunError(f"--targets {' '.join(recipe.targets)}: {error}") from error


def train(
    student: Any,
    prefix: Sequence[int],
    source: EpochExamples,
    recipe: Recipe,
    out: Path,
    progress: TrainingProgress = no_progress,
) -> list[_Loss]:
    """Epochs until matched, stuck or out of budget; every new best is saved to `out`. Returns the
    mean loss of every epoch."""
    trained = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)
    steps = recipe.epochs * math.ceil(len(source(0)) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = np.random.default_rng(recipe.seed)
    history: list[_Loss] = []
    totals: list[float] = []
    for epoch in range(recipe.epochs):
        seen: list[tuple[float, float, int]] = []
        for batch in _batches(source(epoch), recipe.batch_size, order):
            found = loss(student, prefix, batch, on_policy=recipe.on_policy)
            optimiser.zero_grad()
            found.total(recipe.align_weight).backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
            seen.append((found.kl.item(), found.apart.item(), len(batch)))
            progress(_TRAINING, 1, steps, f"epoch {epoch + 1}: {_shown(_mean(seen))}")
        history.append(_mean(seen))
        totals.append(history[-1].total(recipe.align_weight))
        if not math.isfinite(totals[-1]):
            raise RunError(f"training diverged in epoch {epoch + 1}: lower --learning-rate")
        best = totals.index(min(totals))
        if best == epoch:
            _save(student, out, recipe.adapter_dtype)
        if history[best].kl <= recipe.target_kl or epoch - best >= recipe.patience:
            break
    return history


def _mean(seen: Sequence[tuple[float, float, int]]) -> _Loss:
    """Over batches, by how many examples they have."""
    kl, states, sizes = map(np.array, zip(*seen, strict=True))
    return _Loss(float(kl @ sizes / sizes.sum()), float(states @ sizes / sizes.sum()))


def _shown(mean: _Loss) -> str:
    states = f", states {mean.apart:.4f} apart" if mean.apart else ""
    return f"KL {mean.kl:.4f} nats{states}"


def _batches(
    examples: Sequence[Example], size: int, order: np.random.Generator
) -> Iterator[list[Example]]:
    places = order.permutation(len(examples))
    for start in range(0, len(places), size):
        yield [examples[i] for i in places[start : start + size]]


def loss(
    student: Any, prefix: Sequence[int], batch: Sequence[Example], *, on_policy: bool = False
) -> _Loss:
    """Mean over a batch's examples of the mean `KL(target ‖ student)` over their positions, or
    `on_policy` of `KL(student ‖ target)`, and how far all their states are apart."""
    aligned = batch[0].states is not None
    sequences = [(example.ids, example.first) for example in batch]
    got = read_sequences(student, prefix, sequences, states=aligned)
    mine = got.logits.float().log_softmax(-1)
    theirs = torch.cat([example.teacher for example in batch]).to(mine.device)
    said, given = (theirs, mine) if on_policy else (mine, theirs)
    by_token = torch.nn.functional.kl_div(said, given, reduction="none", log_target=True).sum(-1)
    counts = [len(example.teacher) for example in batch]
    kl = torch.stack([one.mean() for one in by_token.split(counts)]).mean()
    if got.states is None:
        return _Loss(kl, torch.zeros_like(kl))
    target = torch.cat([e.states for e in batch if e.states is not None], 1).to(kl.device)
    return _Loss(kl, _distance(got.states.float(), target))


def _distance(
    own: Float[Tensor, "layer token d_model"], target: Float[Tensor, "layer token d_model"]
) -> Float[Tensor, ""]:
    """Squared distance over all tokens as a share of the target square, the mean over layers."""
    gap, size = ((x.square()).sum((1, 2)) for x in (own - target, target))
    return (gap / size).mean()


def _save(student: Any, out: Path, dtype: str) -> None:
    """Write the adapter as peft does, its weights in this number format."""
    weights = {
        name: value.to(DTYPES[dtype]) if "lora_" in name else value
        for name, value in student.state_dict().items()
    }
    student.save_pretrained(out, state_dict=weights)
