"""Are the keys of a prefix exchangeable between tasks, and its values not?

Prefixes (keys and values of virtual tokens) are tuned for the prompt's task and for a rival's, from
different random starts. Then each task's values get the other's keys, and its keys the other's
values. If random keys do as well as the other task's, keys are exchangeable because they hardly
matter, not because tasks share them: that control stands beside it. Where a prefix with its own
keys and values does not carry its task, there is nothing to exchange, and nothing is decided.

    python analyses/claims/claim_11.py
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.experiments import Claims
from interp.experiments.claim_models import ClaimModel
from interp.experiments.claims import ClaimOutcome, PaperClaim, conduct_claim
from interp.generating import generate
from interp.matching.examples import Examples, examples
from interp.matching.strength import strength
from interp.matching.virtual import Tuned, Tuning, initial, tune

CLAIM = PaperClaim(
    number=11,
    says="Keys are exchangeable between tasks, values are not.",
    source="2508.17032 (cited only: neither paper nor abstract was readable)",
    measured="the smaller of two: strength of a task's tuned prefix with the other task's keys, "
    "and what its strength lacks of 1 with the other task's values; mean of both tasks",
    threshold=0.5,
    reason="half of a prompt's effect is kept with other keys, and half is lost with other values",
    needed={"own keys and values": 0.5},
)
TOKENS, QUERIES = 8, 8
STEPS = {"organism": 200, "smollm2": 40}
RATE = {"organism": 0.3, "smollm2": 0.03}
"""At 0.3 SmolLM2's prefixes end farther from their tasks than base."""


def measure(model: ClaimModel) -> ClaimOutcome:
    """Both swaps on both tasks, and swaps with an untuned prefix."""
    subject, base = model.subject, model.subject.settings["base"]
    asked = model.unanswered[:QUERIES]
    targets, tuned, starts = [], [], []
    for seed, name in enumerate(("prompt", "rival")):
        setting = subject.settings[name]
        answers = generate(subject, setting, asked, min(model.tokens, 6))
        own = [replace(q, answer_ids=a) for q, a in zip(asked, answers, strict=True)]
        tuning = Tuning("prefix", TOKENS, STEPS[model.name], RATE[model.name], QUERIES, seed=seed)
        targets.append(examples(subject, setting, own, QUERIES))
        tuned.append(tune(subject, base, targets[-1], tuning))
        starts.append(initial(subject, base, tuning._replace(seed=seed + 10)))

    def left(task: int, keys: Tensor, values: Tensor) -> np.ndarray:
        """KL(task's prompt ‖ prefix of these keys and values), nats, by query."""
        mixed = tuned[task]._replace(values=torch.stack([keys[:, 0], values[:, 1]], dim=1))
        return divergence(model, targets[task], mixed)

    prefixes = [found.values for found in tuned]
    swaps = {
        "own keys and values": (prefixes, prefixes),
        "other task's keys": (prefixes[::-1], prefixes),
        "other task's values": (prefixes, prefixes[::-1]),
        "random keys": (starts, prefixes),
        "random values": (prefixes, starts),
    }
    kl = {n: left(0, k[0], v[0]) + left(1, k[1], v[1]) for n, (k, v) in swaps.items()}
    none = divergence(model, targets[0], None) + divergence(model, targets[1], None)
    keys = [query.key for query in asked]
    kept = strength(kl["other task's keys"], none, keys, 200, 0)
    lost = strength(none - kl["other task's values"], none, keys, 200, 0)
    found = min(kept, lost, key=lambda one: one.strength)
    nulls = {name: float(1 - value.sum() / none.sum()) for name, value in kl.items()}
    note = "Controls are strengths: 1 is the task's prompt, 0 as far from it as base."
    return ClaimOutcome(found.strength, found.ci_low, found.ci_high, len(asked), nulls, note)


def divergence(model: ClaimModel, target: Examples, prefix: Tuned | None) -> np.ndarray:
    """KL of the target to base behind a prefix (none: base alone), by query."""
    subject, base = model.subject, model.subject.settings["base"]
    own, cache = (base, subject.prefill(base)) if prefix is None else prefix.before(subject, base)
    with torch.no_grad():
        return target.divergence(target.logits_of(subject, own, cache)).cpu().numpy()


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_11.py"))
        )
    )
