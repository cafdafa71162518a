"""Does a prompt shift states in another direction than the LoRA that was distilled from it?

The angle between the mean shifts of prompt and LoRA over answer tokens, mean over layers. Two
directions in a space of hundreds of dimensions are nearly orthogonal by chance, and any line before
a query shifts states: the neutral text's angle to the LoRA says what is no agreement, another
seed's LoRA (organism only) what full agreement looks like.

    python analyses/claims/claim_05.py
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
    number=5,
    says="The vector of a prompt is not collinear with the shift that fine-tuning makes.",
    source="2607.00006 (a news summary; the paper was not readable)",
    measured="angle in degrees between the mean shifts of prompt and LoRA over answer tokens, mean "
    "over layers",
    threshold=30.0,
    reason="below 30 degrees more than 3/4 of one squared shift lies along the other",
)


def measure(model: ClaimModel) -> ClaimOutcome:
    """The angle between prompt and LoRA, and those of the controls."""
    value, low, high = model.resampled(lambda tokens: angle(model, "prompt", "lora", tokens).mean())
    pairs = {
        "neutral to LoRA": ("neutral", "lora"),
        "prompt to random LoRA": ("prompt", "random_lora"),
    }
    pairs["prompt to neutral"] = ("prompt", "neutral")
    if "seed" in model.conditions:
        pairs["LoRA to another seed's"] = ("lora", "seed")
    nulls = {name: float(angle(model, *pair).mean()) for name, pair in pairs.items()}
    by_layer = angle(model, "prompt", "lora")
    note = f"Smallest in layer {by_layer.argmin()} ({by_layer.min():.0f} degrees)."
    return ClaimOutcome(value, low, high, len(model.queries), nulls, note)


def angle(model: ClaimModel, a: str, b: str, tokens: Any = slice(None)) -> np.ndarray:
    """Degrees between the mean shifts of two conditions, by layer."""
    x, y = (model.shift(name)[:, tokens].mean(1) for name in (a, b))
    cosine = (x * y).sum(-1) / (np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1))
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_05.py"))
        )
    )
