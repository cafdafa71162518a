"""All combinations of what can be given to a model beside a query, and what each part is worth.

found = factorial(bench, texts, Tuning("soft_prompt", 1, 60))
found[Combination(2, "instruction", "vector", "constant")]["heldout"]     # KL of every query
effects(found, bench, "heldout")                # of every part: alone, on average, on top
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from interp.conditions.placing import TokenIds
from interp.matching.bench import Bench
from interp.matching.fits import spelled
from interp.matching.ingredients import NONE, RANDOM_VECTOR, Given, intents, neutral_text, tilted
from interp.matching.virtual import Tuning

CONSTANT, NEUTRAL_TEXT = "constant", "neutral text"


class Combination(NamedTuple):
    """One cell: how many demonstrations, which anchor before them, what is done to the states, and
    what to the logits."""

    shots: int
    anchor: str
    intent: str
    bias: str

    def __str__(self) -> str:
        shots = f"{self.shots} demonstration{'s' * (self.shots != 1)}" if self.shots else ""
        bias = "" if self.bias == NONE else f"{self.bias} bias"
        words = [word for word in (self.anchor, shots, self.intent, bias) if word not in ("", NONE)]
        return " + ".join(words) or "nothing"


_Divergences = dict[str, Float[ndarray, " query"]]
Factorial = dict[Combination, _Divergences]
"""`KL(target ‖ combination)` of every query by group, nats."""


def factorial(
    bench: Bench,
    texts: Mapping[tuple[int, str], TokenIds],
    tuning: Tuning,
    done: Callable[[], None] = lambda: None,
) -> tuple[Factorial, Factorial]:
    """Every text with every intent, without and with a constant bias. Apart from these, the
    controls: random vectors, and neutral text as long as demonstrations without an anchor."""
    found: Factorial = {}
    controls: Factorial = {}
    for (shots, anchor), ids in texts.items():
        own = spelled(bench, ids).setting
        for intent, given in intents(bench, own, tuning):
            cell = Combination(shots, anchor, intent, NONE)
            kept = controls if intent == RANDOM_VECTOR else found
            kept[cell] = _scores(given)
            if intent != RANDOM_VECTOR:
                found[cell._replace(bias=CONSTANT)] = _scores(tilted(given))
        if anchor == NONE:
            plain = spelled(bench, neutral_text(bench, len(ids))).setting
            controls[Combination(shots, NEUTRAL_TEXT, NONE, NONE)] = _scores(Given.of(bench, plain))
        done()
    return found, controls


def _scores(given: Given) -> _Divergences:
    """On every group of queries."""
    return {group: given.kl(group) for group in given.bench.queries}


def best_combination(found: Factorial, group: str = "matched") -> Combination:
    """The combination of the smallest mean divergence."""
    return min(found, key=lambda cell: float(found[cell][group].mean()))


def each_its_own(found: Factorial, group: str) -> Float[ndarray, " query"]:
    """The smallest divergence of every query by itself: what is reached if someone who knows the
    target chooses for it among all combinations."""
    return np.min([kl[group] for kl in found.values()], axis=0)
