"""Do states under a distilled adapter move away from those under the prompt in deeper layers?

Relative L2 between prompt and LoRA at answer tokens, in the last quarter of the layers minus the
first quarter. Any two runs that differ drift apart with depth: base and neutral text say how much
of the growth is that.

    python analyses/claims/claim_06.py
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.experiments import Claims
from interp.experiments.claim_models import ClaimModel
from interp.experiments.claims import ClaimOutcome, PaperClaim, conduct_claim

CLAIM = PaperClaim(
    number=6,
    says="States under generated or distilled adapters diverge from the full-context run in deeper "
    "layers.",
    source="SADA, ACL 2026, 2026.acl-long.1046 (abstract only)",
    measured="relative L2 between prompt and LoRA at answer tokens, last quarter of the layers "
    "minus the first quarter",
    threshold=0.05,
    reason="a twentieth of the states' norm; a smaller growth is no divergence",
    placebos=("prompt to neutral",),
)


def measure(model: ClaimModel) -> ClaimOutcome:
    """The growth between prompt and LoRA, and between the prompt and others."""
    value, low, high = model.resampled(lambda tokens: growth(model, "lora", tokens))
    names = {"base": "base", "neutral": "neutral", "random LoRA": "random_lora"}
    nulls = {f"prompt to {name}": growth(model, own) for name, own in names.items()}
    by_layer = distance(model, "lora").mean(1)
    note = (
        f"Prompt to LoRA: {by_layer[0]:.2f} behind the first block, {by_layer.max():.2f} at most "
        f"(layer {by_layer.argmax()}), {by_layer[-1]:.2f} behind the last."
    )
    return ClaimOutcome(value, low, high, len(model.queries), nulls, note)


def growth(model: ClaimModel, other: str, tokens: Any = slice(None)) -> float:
    """How much farther the deep quarter is from the prompt than the shallow one."""
    quarter = max(1, model.subject.n_layers // 4)
    by_layer = distance(model, other)[:, tokens].mean(1)
    return float(by_layer[-quarter:].mean() - by_layer[:quarter].mean())


def distance(model: ClaimModel, other: str) -> np.ndarray:
    """`relative_l2` from the prompt's states, by layer and token."""
    x, y = model.states("prompt"), model.states(other)
    size = (np.linalg.norm(x, axis=-1) + np.linalg.norm(y, axis=-1)) / 2
    return np.linalg.norm(x - y, axis=-1) / size


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_06.py"))
        )
    )
