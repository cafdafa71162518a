"""Train a LoRA until the model says what is wanted: plain Hugging Face + peft, no hooks.

    student = with_lora(model, recipe)
    train(student, prefix, [Example(ids, first, wanted)], recipe, folder)

The loss is `KL(wanted ‖ with LoRA)` in nats at every example's matched positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from interp.errors import RunError
from interp.matching.plain import outputs
from interp.subject.loading import DTYPES, quiet

Progress = Callable[[str, int, int, str], None]
"""Called with (what is done, how many newly, of how many, a note)."""

TRAINING = "training steps"


def silent(label: str, newly: int, total: int, note: str) -> None:
    """No progress shown."""


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


@dataclass(frozen=True)
class Example:
    """One training sequence: `ids` after a prefix, matched from position `first` on;
    `teacher` are the log-probabilities wanted there, `[pos, d_vocab]`."""

    ids: tuple[int, ...]
    first: int
    teacher: Tensor


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
    examples: Sequence[Example],
    recipe: Recipe,
    out: Path,
    progress: Progress = silent,
) -> list[float]:
    """Epochs until matched, stuck or out of budget; every new best is saved to `out`. Returns the
    mean KL of every epoch."""
    trained = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)
    steps = recipe.epochs * math.ceil(len(examples) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = np.random.default_rng(recipe.seed)
    history: list[float] = []
    for epoch in range(recipe.epochs):
        total, seen = 0.0, 0
        for batch in _batches(examples, recipe.batch_size, order):
            kl = loss(student, prefix, batch)
            optimiser.zero_grad()
            kl.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
            total, seen = total + float(kl.detach()) * len(batch), seen + len(batch)
            progress(TRAINING, 1, steps, f"epoch {epoch + 1}: KL {total / seen:.4f} nats")
        history.append(total / len(examples))
        if not math.isfinite(history[-1]):
            raise RunError(f"training diverged in epoch {epoch + 1}: lower --learning-rate")
        best = min(history)
        if history[-1] == best:
            save(student, out, recipe.adapter_dtype)
        stuck = epoch - history.index(best) >= recipe.patience
        if best <= recipe.target_kl or stuck:
            break
    return history


def _batches(
    examples: Sequence[Example], size: int, order: np.random.Generator
) -> Iterator[list[Example]]:
    places = order.permutation(len(examples))
    for start in range(0, len(places), size):
        yield [examples[i] for i in places[start : start + size]]


def loss(student: Any, prefix: Sequence[int], batch: Sequence[Example]) -> Tensor:
    """Mean over a batch's examples of the mean `KL(wanted ‖ student)` over their positions."""
    logits = outputs(student, prefix, [(example.ids, example.first) for example in batch])
    mine = logits.float().log_softmax(-1)
    theirs = torch.cat([example.teacher for example in batch]).to(mine.device)
    by_token = torch.nn.functional.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)
    counts = [len(example.teacher) for example in batch]
    return torch.stack([kl.mean() for kl in by_token.split(counts)]).mean()


def save(student: Any, out: Path, dtype: str) -> None:
    """Write the adapter as peft does, its weights in this number format."""
    weights = {
        name: value.to(DTYPES[dtype]) if "lora_" in name else value
        for name, value in student.state_dict().items()
    }
    student.save_pretrained(out, state_dict=weights)
