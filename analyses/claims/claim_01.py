"""Is a LoRA close to one constant steering vector?

The LoRA's mean shift of the residual stream behind a block, over the answer tokens of one half of
the queries, is added to base's stream at every query token; how much of the LoRA's output that
gives is scored on the other half. The block is the best one on the first half. The vectors of the
random LoRA and of neutral text, towards the same output, say what any vector gives.

    python analyses/claims/claim_01.py
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.edits import Edit, add
from interp.experiments import Claims
from interp.experiments.claim_models import ClaimModel
from interp.experiments.claims import ClaimOutcome, PaperClaim, conduct_claim
from interp.matching.strength import strength
from interp.names import Site

CLAIM = PaperClaim(
    number=1,
    says="A LoRA is close to one constant steering vector.",
    source="2507.08218 (abstract and introduction)",
    measured="share of the LoRA's effect on answers that its mean shift gives when it is added to "
    "base behind the best block, on queries that the vector was not made from",
    threshold=0.8,
    reason="four fifths of the effect; less is not what close means",
    placebos=("random LoRA's vector", "neutral text's vector"),
)


def measure(model: ClaimModel) -> ClaimOutcome:
    """The LoRA's vector, those of the controls, and the prompt's towards its own output."""
    every = list(range(len(model.queries)))
    fit, scored = every[::2], every[1::2]
    layers = range(0, model.subject.n_layers, model.every)
    none = {t: model.kl(t, "base", every) for t in ("lora", "prompt")}

    def left(target: str, source: str) -> tuple[int, np.ndarray]:
        """The best block on the first half, and KL from the target on the other, by query."""
        by_layer = {}
        for layer in layers:
            vector = model.shift(source)[layer][np.isin(model.owner, fit)].mean(0)
            edit = Edit(Site("resid_post", layer), add(torch.from_numpy(vector)))
            by_layer[layer] = model.kl(target, "base", every, [edit])
        best = min(layers, key=lambda layer: by_layer[layer][fit].sum())
        return best, by_layer[best][scored]

    keys = [model.queries[number].key for number in scored]
    best, kl = left("lora", "lora")
    found = strength(kl, none["lora"][scored], keys, 200, 0)
    nulls = {
        name: float(1 - left(target, source)[1].sum() / none[target][scored].sum())
        for name, target, source in (
            ("random LoRA's vector", "lora", "random_lora"),
            ("neutral text's vector", "lora", "neutral"),
            ("prompt's own vector towards the prompt", "prompt", "prompt"),
        )
    }
    note = f"Best behind block {best} of {model.subject.n_layers}, fitted on {len(fit)} queries."
    return ClaimOutcome(found.strength, found.ci_low, found.ci_high, len(scored), nulls, note)


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_01.py"))
        )
    )
