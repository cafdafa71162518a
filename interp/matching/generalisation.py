"""How far prompts of several kinds carry, by the number of queries that they were fitted to.

found = measure_generalisation(bench, plans, counts=(1, 4), draws=3)
by_count(found, bench)              # a table for `interp.plots.curves`
losses(found, 54, bench, threshold=0.1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from interp.finding import DecidingEstimate
from interp.matching.bench import Bench
from interp.matching.carrying import FIT_GROUP, HELDOUT, REWORDED, Scores, carried, wordings
from interp.matching.fits import FitPlan
from interp.matching.nulls import OTHER_LORA_SEEDS, blind, equals, neutral_scores
from interp.matching.strength import Strength, over_draws, strength_lost

if TYPE_CHECKING:
    import pandas as pd

_NEUTRAL, _RANDOM = "neutral text", "random words"
NULL_CONTROLS = (OTHER_LORA_SEEDS, _NEUTRAL, _RANDOM)

ScoresByCount = dict[tuple[str, int], Scores]
"""(kind or control, how many queries it was fitted to) -> its scores."""


def measure_generalisation(
    bench: Bench,
    plans: Mapping[str, FitPlan],
    counts: Sequence[int],
    draws: int,
    done: Callable[[int], None] = lambda of: None,
) -> ScoresByCount:
    """Every plan fitted to so many queries, and the controls; `done` is called after each fit with
    the number of all."""
    total, found = len(plans) * len(counts) * draws, {}
    for count, (kind, plan) in product(counts, plans.items()):
        found[kind, count] = carried(bench, plan, count, draws, lambda: done(total))
    tokens = plans["text"].size
    controls = {
        OTHER_LORA_SEEDS: equals(bench),
        _NEUTRAL: neutral_scores(bench, tokens, draws),
        _RANDOM: blind(bench, tokens, draws),
    }
    ends = (min(counts), max(counts))
    return found | {(name, n): scores for name, scores in controls.items() for n in ends if scores}


def by_count(found: ScoresByCount, bench: Bench) -> pd.DataFrame:
    """Strength by how many queries a prompt was fitted to."""
    import pandas as pd

    panels = {"fitted queries": FIT_GROUP, "unseen queries": HELDOUT}
    if wordings(bench):
        panels["unseen, in other words"] = REWORDED
    return pd.DataFrame(
        strength_of(scores, group, bench).point(panel, *at)
        for panel, group in panels.items()
        for at, scores in found.items()
    )


def by_wording(found: ScoresByCount, bench: Bench) -> pd.DataFrame:
    """Strength by wording, of what was fitted to all queries; empty without wordings."""
    import pandas as pd

    most = max(count for _, count in found)
    groups = [HELDOUT, *names] if (names := wordings(bench)) else []
    return pd.DataFrame(
        strength_of(scores, group, bench).point(f"fitted to {most}", kind, shown(group))
        for (kind, count), scores in found.items()
        for group in groups
        if count == most
    )


def shown(group: str) -> str:
    """A wording for people."""
    return "as fitted" if group == HELDOUT else group


def strength_of(scores: Scores, group: str, bench: Bench) -> Strength:
    """Over draws and queries."""
    return over_draws(scores[group], bench.settings.bootstrap, bench.settings.seed)


def losses(
    found: ScoresByCount, count: int, bench: Bench, threshold: float, group: str = HELDOUT
) -> dict[str, DecidingEstimate]:
    """The strength that every kind of prompt loses from the queries that it was fitted to to those
    of a group; first the kind that fits best."""
    kinds = {kind: s for (kind, n), s in found.items() if n == count and kind not in NULL_CONTROLS}
    fits = {kind: strength_of(s, FIT_GROUP, bench).strength for kind, s in kinds.items()}
    where = "in other words" if group == REWORDED else "on unseen queries"
    made = {}
    for kind in sorted(fits, key=fits.__getitem__, reverse=True):
        scores, settings = kinds[kind], bench.settings
        fall = strength_lost(scores[FIT_GROUP], scores[group], settings.bootstrap, settings.seed)
        what = f"strength lost {where} by what fits best ({kind}, fitted to {count})"
        made[kind] = DecidingEstimate(what, *fall, threshold)
    return made
