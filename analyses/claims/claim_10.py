"""Do an instruction and demonstrations of the same task work through the same heads?

A head's share is what putting its output of the prompted run into base's run recovers. The heads of
two prompts are compared on two halves of the queries, so that the overlap of one prompt with itself
on the other half says how much agreement the measure can show at all.

    python analyses/claims/claim_10.py
"""

from __future__ import annotations

import sys

import numpy as np

from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.experiments import Claims
from interp.experiments.claim_models import ClaimModel
from interp.experiments.claims import ClaimOutcome, PaperClaim, conduct_claim
from interp.patching.ranking import how_many, membership
from interp.statistics import generator_of, percentile_interval

CLAIM = PaperClaim(
    number=10,
    says="Instruction heads and demonstration heads overlap only in part.",
    source="2505.12075 (abstract and introduction)",
    measured="share of the strongest tenth of heads that one prompt shares with itself on other "
    "queries, minus the share that instruction and demonstrations have in common",
    threshold=0.1,
    reason="a tenth of the strongest heads; less is within a head or two",
)
QUERIES, HALVINGS = 8, 200


def measure(model: ClaimModel) -> ClaimOutcome:
    """What is lacking to the agreement of one prompt with itself, over random halvings."""
    found = {name: recovered(model, name) for name in ("prompt", "shots", "lora", "neutral")}
    n_queries, n_heads = found["prompt"][0].shape
    k, generator = how_many(n_heads), generator_of("claim 10")

    def overlap(a: str, b: str, half: np.ndarray, other: np.ndarray) -> float:
        x, y = (strongest(found[name], some, k) for name, some in ((a, half), (b, other)))
        return float((x * y).sum() / k)

    def both(a: str, b: str, halves: list[np.ndarray]) -> float:
        return (overlap(a, b, *halves) + overlap(b, a, *halves)) / 2

    lacking, seen = [], []
    for _ in range(HALVINGS):
        halves = np.array_split(generator.permutation(n_queries), 2)
        own = (overlap("prompt", "prompt", *halves) + overlap("shots", "shots", *halves)) / 2
        names = (("prompt", "shots"), ("prompt", "lora"), ("prompt", "neutral"))
        seen.append([own, *(both(*pair, halves) for pair in names)])
        lacking.append(own - seen[-1][1])
    low, high = percentile_interval(np.array(lacking))
    own, shared, lora, neutral = np.mean(seen, axis=0)
    nulls = {"prompt and neutral": neutral, "prompt and LoRA": lora, "chance": k / n_heads}
    note = (
        f"{k} of {n_heads} heads: with itself {own:.2f}, instruction and demonstrations "
        f"{shared:.2f}. The interval is over random halvings of the queries."
    )
    return ClaimOutcome(float(np.mean(lacking)), float(low), float(high), n_queries, nulls, note)


def recovered(model: ClaimModel, source: str) -> tuple[np.ndarray, np.ndarray]:
    """By query and head: KL from the source that is left with the head put in; and without."""
    layers = range(0, model.subject.n_layers, model.every)
    found = model.lab.patch(
        [query.text for query in model.queries[:QUERIES]],
        source=source, target="base", site="z", layers=layers, heads="all", batch_size=QUERIES,
    )  # fmt: skip
    return found["distance"].values.reshape(found.sizes["query"], -1), found["apart"].values


def strongest(found: tuple[np.ndarray, np.ndarray], some: np.ndarray, k: int) -> np.ndarray:
    """1 for the k heads that recover the most over some queries, 0 for the others."""
    left, apart = found
    return membership(1 - left[some].mean(0) / apart[some].mean(), k)


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_10.py"))
        )
    )
