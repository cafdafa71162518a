"""Do demonstrations in context give states of more dimensions than a fine-tune of the same task?

TwoNN dimension of the states of many queries' last tokens, demonstrations minus LoRA, mean over
layers. The difference to base and to the neutral text says whether it is learning in context, or
anything in front of a query, that raises it.

    python analyses/claims/claim_07.py
"""

from __future__ import annotations

import sys

import numpy as np

from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.experiments import Claims
from interp.experiments.claim_models import ClaimModel
from interp.experiments.claims import ClaimOutcome, PaperClaim, conduct_claim
from interp.geometry.dimension import two_nn
from interp.weights.stacked import jackknife_interval

CLAIM = PaperClaim(
    number=7,
    says="In-context learning gives states of a higher intrinsic dimension than fine-tuning, at "
    "all layers.",
    source="2412.06245 (abstract and introduction)",
    measured="TwoNN dimension of queries' last tokens, demonstrations minus LoRA, mean over layers",
    threshold=0.0,
    reason="the claim is of the sign",
    placebos=("neutral minus base",),
)


def measure(model: ClaimModel) -> ClaimOutcome:
    """The difference of dimensions, by a jackknife (a bootstrap would draw points twice)."""
    names = ("shots", "lora", "base", "neutral", "random_lora")
    states = {name: model.read(name, model.unanswered, "resid_post") for name in names}

    def excess(a: str, b: str, some: object = slice(None)) -> float:
        return float((by_layer(states[a], some) - by_layer(states[b], some)).mean())

    n = len(model.unanswered)
    found = jackknife_interval(lambda some: excess("shots", "lora", some.numpy()), n)
    nulls = {
        "neutral minus base": excess("neutral", "base"),
        "random LoRA minus base": excess("random_lora", "base"),
        "LoRA minus base": excess("lora", "base"),
    }
    above = by_layer(states["shots"]) > by_layer(states["lora"])
    note = f"Higher under demonstrations in {above.sum()} of {len(above)} layers."
    return ClaimOutcome(*found, n, nulls, note)


def by_layer(states: np.ndarray, some: object = slice(None)) -> np.ndarray:
    """TwoNN dimension of every layer's states, some of the queries."""
    return np.array([two_nn(layer[some]) for layer in states])


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_07.py"))
        )
    )
