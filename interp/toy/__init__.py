"""The separating toy of Petrov, Torr & Bibi (arXiv 2310.19698, section 5): a small transformer that
knows four tasks on digit sequences, a prefix that does not teach it a fifth and a LoRA that does.

    >>> import numpy as np
    >>> from interp import toy
    >>> toy.TASKS["double_histogram"](np.array([[3, 0, 3, 1, 2, 3, 0]])).tolist()
    [[3, 2, 3, 1, 1, 3, 2]]

A task maps `[batch, LENGTH]` digits to as many digits. The model reads `<bos>` and the input, and
writes the output right after it, with no word on which task is meant. It is trained from nothing
by `recipes/petrov_toy.py`, whose docstring says what was measured. Nothing here needs torch.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

_HERE = Path(__file__).resolve().parent

MODEL = _HERE / "model"
"""Weights, configuration and tokenizer, as `save_pretrained` writes them."""

PREFIX = _HERE / "prefix"
"""Prefix tuning on the new task, as peft writes it."""

LORA = _HERE / "lora"
"""Rank-1 LoRA on the new task, of as many trainable numbers as the prefix."""

OLD_PREFIX = _HERE / "old_prefix"
"""Prefix tuning on `OLD_TASK`: the same method where it works."""

RECIPE_REPORT = _HERE / "report.json"
"""What the recipe did and measured."""

LENGTH = 7
"""Digits in an input, and in an output."""

SYMBOLS = 4
"""Inputs are of the digits 0 to 3."""

DIGITS = max(SYMBOLS + 2, LENGTH + 1)
"""Outputs are of the digits 0 to 7: a digit can stand at all 7 places."""

BOS = DIGITS
"""Token ids are the digits themselves; `<bos>` comes after them."""

_Task = Callable[[np.ndarray], np.ndarray]


def _count(digits: np.ndarray) -> np.ndarray:
    """How often each digit stands in its input: what the paper calls double histogram."""
    return (digits[:, :, None] == digits[:, None, :]).sum(-1)


PRETRAINED: dict[str, _Task] = {
    "ascending": lambda digits: np.sort(digits, axis=1),
    "descending": lambda digits: np.sort(digits, axis=1)[:, ::-1],
    "add_1": lambda digits: digits + 1,
    "add_2": lambda digits: digits + 2,
}
"""What the model learns from nothing, one drawn at random for every input."""

NEW_TASK = "double_histogram"
OLD_TASK = "ascending"
TASKS: dict[str, _Task] = {**PRETRAINED, NEW_TASK: _count}


def is_held_out(digits: np.ndarray) -> np.ndarray:
    """Which inputs are kept from training: a quarter of them, by a multiplicative hash."""
    number = digits @ (SYMBOLS ** np.arange(LENGTH)) + 1
    return (number * 2654435761 % 2**32) >> 30 == 0


def sample_inputs(rng: np.random.Generator, size: int, *, held_out: bool) -> np.ndarray:
    """`[size, LENGTH]` inputs from one side of the split. Of those with more than LENGTH / 2
    different digits every second is dropped, since repetitions are the hard part."""
    rows = np.empty((0, LENGTH), dtype=np.int64)
    while len(rows) < size:
        drawn = rng.integers(SYMBOLS, size=(8 * size, LENGTH))
        different = (np.diff(np.sort(drawn, axis=1)) > 0).sum(1) + 1
        kept = (different <= LENGTH // 2) | (rng.random(len(drawn)) < 0.5)
        rows = np.concatenate([rows, drawn[kept & (is_held_out(drawn) == held_out)]])
    return rows[:size]


def exam(seed: int, size: int, task: str, *, told: bool) -> np.ndarray:
    """`[size, 1 + 2 * LENGTH]` token ids: `<bos>`, a held-out input and its output under `task`.

    `told`: the output's first digit tells which of `PRETRAINED` is meant, since the inputs are
    those on which the four begin differently.
    """
    digits = sample_inputs(np.random.default_rng(seed), 8 * size if told else size, held_out=True)
    if told:
        first = np.sort([known(digits)[:, 0] for known in PRETRAINED.values()], axis=0)
        digits = digits[(np.diff(first, axis=0) > 0).all(0)][:size]
    return np.concatenate([np.full((size, 1), BOS), digits, TASKS[task](digits)], axis=1)
