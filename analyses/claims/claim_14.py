"""Is a context an exact chain of weight patches over all layers, with identical generation?

The patches are written into plain Hugging Face modules, made anew for every token, and the model is
asked without the context. It is an identity: the neutral text's chain is as exact. So what the
chain of *another* query gives stands beside it.

    python analyses/claims/claim_14.py
"""

from __future__ import annotations

import sys

import numpy as np

from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.experiments import Claims
from interp.experiments.claim_models import ClaimModel
from interp.experiments.claims import ClaimOutcome, PaperClaim, conduct_claim
from interp.experiments.exact_chain import follow_chain
from interp.progress import no_progress

CLAIM = PaperClaim(
    number=14,
    says="A context equals an exact chain of weight patches over all layers, with identical "
    "generation.",
    source="2511.17864 (abstract only)",
    measured="share of greedy tokens that plain Hugging Face, patched and without the prompt, "
    "writes as with it",
    threshold=0.99,
    reason="identical generation is a share of 1",
)
QUERIES, TOKENS = 6, 3


def measure(model: ClaimModel) -> ClaimOutcome:
    """The share of equal tokens; how exact; and what one token's chain gives another."""
    asked = model.unanswered[:QUERIES]
    seen = follow_chain(model.subject, "prompt", model.plain, asked, TOKENS, no_progress)
    neutral = follow_chain(model.subject, "neutral", model.plain, asked, 1, no_progress)
    equal, lowest = float(seen.same.mean()), float(seen.same.mean(0).min())
    nulls = {
        "neutral text": float(neutral.same.mean()),
        "effect that another query's chain gives": seen.effect("another query's chain", 0),
        "distance of two queries' chains": float(
            np.mean(seen.apart["another query's, same token"])
        ),
    }
    note = (
        f"Logits differ by at most {seen.errors.max():.1g}. An identity, true of any context: the "
        "patches are of one token and query each, a LoRA's of all. The interval spans the queries."
    )
    return ClaimOutcome(equal, lowest, float(seen.same.mean(0).max()), len(asked), nulls, note)


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_14.py"))
        )
    )
