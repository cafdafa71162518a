"""Does a prompt shift some tokens by orders of magnitude more than others?

The shift of the residual stream behind the middle block, relative to the state's own norm, at every
token of the answers. If its spread is no larger than a neutral line's, "token-wise steering" is
what any line before a query does, and no mark of the persona or the task.

    python analyses/claims/claim_03.py
    python analyses/claims/claim_03.py --models organism
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.design import BASE
from interp.experiments import Claims
from interp.experiments.claim_models import ClaimModel
from interp.experiments.claims import ClaimOutcome, PaperClaim, conduct_claim

CLAIM = PaperClaim(
    number=3,
    says="A prompt's shift differs by orders of magnitude between tokens; a constant vector is "
    "unfaithful to it.",
    source="2605.03907 (abstract and introduction)",
    measured="log10 of the 95th over the 5th percentile of the prompt's relative shift, over "
    "answer tokens, behind the middle block",
    threshold=1.0,
    reason="1 is one order of magnitude, the least that the words can mean",
    placebos=("neutral",),
)


def measure(model: ClaimModel) -> ClaimOutcome:
    """The spread under the prompt, and the same under LoRA and controls."""
    layer = model.subject.n_layers // 2
    length = np.linalg.norm(model.states(BASE)[layer], axis=-1)

    def spread(condition: str, tokens: Any = slice(None)) -> float:
        size = (np.linalg.norm(model.shift(condition)[layer], axis=-1) / length)[tokens]
        low, high = np.percentile(size, [5, 95])
        return float(np.log10(high / low))

    value, low, high = model.resampled(lambda tokens: spread("prompt", tokens))
    nulls = {name: spread(name) for name in ("neutral", "lora", "random_lora")}
    shares = {name: constant_share(model.shift(name)[layer]) for name in ("prompt", "neutral")}
    note = (
        f"A constant vector makes up {shares['prompt']:.2f} of the prompt's squared shift, "
        f"{shares['neutral']:.2f} of the neutral text's."
    )
    return ClaimOutcome(value, low, high, len(model.queries), nulls, note)


def constant_share(shift: np.ndarray) -> float:
    """`‖mean shift‖² / mean ‖shift‖²`, 0 to 1."""
    return float((shift.mean(0) ** 2).sum() / (shift**2).sum(-1).mean())


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_03.py"))
        )
    )
