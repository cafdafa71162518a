"""Does a prompt that emulates a LoRA on some queries carry to others?

The claim is that it does not: a prompt gives one perfect answer and no more. Here prompts of four
kinds (text, a soft prompt, a prefix, demonstrations) are fitted to 1, 2, 4, ... and to all matched
queries, and scored by the share of the LoRA's effect that they give on the queries they were fitted
to, on queries that they never saw, and on these in other words. If the claim holds, strength falls
by more than `threshold` from the first to the second; if a prompt states the task, it does not
fall. Other seeds of the LoRA say how much of such a fall is the target's own; neutral text and
random words say what any prefix does.

    interp experiment generalisation                          # the bundled model
    interp experiment generalisation --draws 5 --counts 1 54   # more draws, fewer sizes
    interp experiment generalisation --model M --adapter A --queries Q.jsonl --heldout H.jsonl \\
        --pool P.jsonl --wordings W.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pandas as pd
from pydantic import Field

from interp import organism
from interp.experiments.draws import (
    FIT_GROUP,
    HELDOUT,
    OTHER_LORA_SEEDS,
    REWORDED,
    Scores,
    asked,
    carried,
    equal_scores,
    neutral_scores,
    random_scores,
    strength_lost,
    strength_of,
    target_accuracy,
    wordings,
)
from interp.experiments.fits import FitPlan
from interp.experiments.trial import Measurement, Trial
from interp.finding import DecidingEstimate
from interp.matching.evaluation import Evaluation
from interp.plots.curves import Curves, curves
from interp.progress import Progress

_Y = "strength: share of the LoRA's effect"
_NOTE = "1: says what the LoRA says; 0: no nearer to it than base. Grey: controls"
_NEUTRAL, _RANDOM = "neutral text", "random words"
_CONTROLS = (OTHER_LORA_SEEDS, _NEUTRAL, _RANDOM)

ScoresByCount = dict[tuple[str, int], Scores]
"""(kind or control, how many queries it was fitted to) -> its scores."""


class Generalisation(Trial):
    """Fit prompts to few and to many queries, and score them on others."""

    point = 1
    claim = "A prompt that emulates the LoRA on some queries does not carry to others."
    unit = "fits"

    wordings: Path | None = None
    """JSONL file of the held-out queries in other words, in the same order, once per wording;
    `label` names the wording (none: the bundled model's, for its own held-out queries)."""
    counts: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of matched queries that a prompt is fitted to; all of them come last."""
    draws: int = Field(default=3, ge=1)
    """Random draws of the queries, each with another start of the search."""
    virtual: int = Field(default=8, ge=1)
    """Virtual tokens of the soft prompt and the prefix."""
    tokens: int = Field(default=2, ge=1)
    """Tokens of the text."""
    shots: int = Field(default=4, ge=1)
    """Largest number of demonstrations (without --pool: none)."""
    steps: int = Field(default=40, ge=1)
    """Gradient steps for virtual tokens."""
    rate: float = Field(default=FitPlan._field_defaults["rate"], gt=0)
    """Adam's learning rate for virtual tokens, relative to the size of the initial values."""
    text_steps: int = Field(default=10, ge=1)
    """Steps of the text search."""
    threshold: float = 0.1
    """A prompt does not generalise if it loses at least this strength."""

    @property
    def reworded(self) -> Path | None:
        """The file of wordings that is used."""
        own = self.heldout == organism.QUERIES / "heldout.jsonl"
        return self.wordings or (organism.QUERIES / "reworded.jsonl" if own else None)

    @property
    def plans(self) -> dict[str, FitPlan]:
        """How every kind of prompt is searched."""
        return {
            "text": FitPlan("text", self.tokens, self.text_steps),
            "soft prompt": FitPlan("soft_prompt", self.virtual, self.steps, rate=self.rate),
            "prefix": FitPlan("prefix", self.virtual, self.steps, rate=self.rate),
            **({"demonstrations": FitPlan("few_shot", self.shots)} if self.pool else {}),
        }

    def measure(self, progress: Progress) -> Measurement:
        """Fits to few and to many queries, what they lose on others, and the verdict."""
        with self.evaluation(asked=asked(self, self.reworded)) as evaluation:
            most = len(evaluation.queries["matched"])
            counts = [*sorted({count for count in self.counts if count < most}), most]
            done = partial(progress, "generalisation", 1)
            found = _fitted(evaluation, self.plans, counts, self.draws, done)
            table, words = _by_count(found, evaluation), _by_wording(found, evaluation)
            some = replace(
                evaluation, queries={g: evaluation.queries[g] for g in ("matched", HELDOUT)}
            )
            grey = [name for name in _CONTROLS if name in set(table["series"])]
            note = f"{_NOTE}. {self.draws} draws of queries and starts"
            x = "queries that a prompt is fitted to"
            look = Curves("Do prompts carry to other queries?", x, _Y, log_x=True, grey=grey)
            figures = {"generalisation": curves(table, look, some.caption(note))}
            if len(words):
                shares = (
                    f"{target_accuracy(evaluation, g):.2f} {_shown(g)}"
                    for g in (HELDOUT, *wordings(evaluation))
                )
                note = f"{_NOTE}. Answers that the LoRA itself gets right: {', '.join(shares)}"
                look = Curves(
                    "And to other wordings?", "wording of the unseen queries", _Y, grey=grey
                )
                figures["wordings"] = curves(words, look, some.caption(note))
            few, many = (_losses(found, n, evaluation, self.threshold) for n in (min(counts), most))
            best, alone = next(iter(few.items()))
            sentence = (
                f"Fitted to {most}, prompts lose {_between(many)} of their strength on unseen "
                f"queries; fitted to {min(counts)}, they lose {_between(few)}, and what fits best "
                f"there ({best}) {alone.estimate}: {alone.verdict}."
            )
            if wordings(evaluation):
                sentence += _in_other_words(found, most, evaluation, self.threshold)
            contrast, n = next(iter(many.values())), len(evaluation.queries[HELDOUT])
            return Measurement(sentence, contrast, n, pd.concat([table, words]), figures)


def _fitted(
    evaluation: Evaluation,
    plans: Mapping[str, FitPlan],
    counts: Sequence[int],
    draws: int,
    done: Callable[[int], None] = lambda of: None,
) -> ScoresByCount:
    """Every plan fitted to so many queries, and the controls; `done` is called after each fit with
    the number of all."""
    total, found = len(plans) * len(counts) * draws, {}
    for count, (kind, plan) in product(counts, plans.items()):
        found[kind, count] = carried(evaluation, plan, count, draws, lambda: done(total))
    tokens = plans["text"].size
    controls = {
        OTHER_LORA_SEEDS: equal_scores(evaluation),
        _NEUTRAL: neutral_scores(evaluation, tokens, draws),
        _RANDOM: random_scores(evaluation, tokens, draws),
    }
    ends = (min(counts), max(counts))
    return found | {(name, n): scores for name, scores in controls.items() for n in ends if scores}


def _by_count(found: ScoresByCount, evaluation: Evaluation) -> pd.DataFrame:
    """Strength by how many queries a prompt was fitted to."""
    panels = {"fitted queries": FIT_GROUP, "unseen queries": HELDOUT}
    if wordings(evaluation):
        panels["unseen, in other words"] = REWORDED
    return pd.DataFrame(
        strength_of(scores, group, evaluation).point(panel, *at)
        for panel, group in panels.items()
        for at, scores in found.items()
    )


def _by_wording(found: ScoresByCount, evaluation: Evaluation) -> pd.DataFrame:
    """Strength by wording, of what was fitted to all queries; empty without wordings."""
    most = max(count for _, count in found)
    groups = [HELDOUT, *names] if (names := wordings(evaluation)) else []
    return pd.DataFrame(
        strength_of(scores, group, evaluation).point(f"fitted to {most}", kind, _shown(group))
        for (kind, count), scores in found.items()
        for group in groups
        if count == most
    )


def _shown(group: str) -> str:
    """A wording for people."""
    return "as fitted" if group == HELDOUT else group


def _losses(
    found: ScoresByCount, count: int, evaluation: Evaluation, threshold: float, group: str = HELDOUT
) -> dict[str, DecidingEstimate]:
    """The strength that every kind of prompt loses from the queries that it was fitted to to those
    of a group; first the kind that fits best."""
    kinds = {kind: s for (kind, n), s in found.items() if n == count and kind not in _CONTROLS}
    fits = {kind: strength_of(s, FIT_GROUP, evaluation).strength for kind, s in kinds.items()}
    where = "in other words" if group == REWORDED else "on unseen queries"
    made = {}
    for kind in sorted(fits, key=fits.__getitem__, reverse=True):
        scores, settings = kinds[kind], evaluation.settings
        fall = strength_lost(scores[FIT_GROUP], scores[group], settings.bootstrap, settings.seed)
        what = f"strength lost {where} by what fits best ({kind}, fitted to {count})"
        made[kind] = DecidingEstimate(what, *fall, threshold)
    return made


def _in_other_words(
    found: ScoresByCount, count: int, evaluation: Evaluation, threshold: float
) -> str:
    """What becomes of the kind that fits best when unseen queries are asked otherwise."""
    best, fall = next(iter(_losses(found, count, evaluation, threshold, REWORDED).items()))
    kept = {
        w: strength_of(found[best, count], w, evaluation).strength for w in wordings(evaluation)
    }
    least, most = (pick(kept, key=kept.__getitem__) for pick in (min, max))
    sentence = (
        f" In other words what fits best ({best}) loses {fall.estimate} ({fall.verdict}): it keeps "
        f"{kept[most]:.2g} {most} and {kept[least]:.2g} {least}"
    )
    if seeds := found.get((OTHER_LORA_SEEDS, count)):
        worst = min(strength_of(seeds, wording, evaluation).strength for wording in kept)
        sentence += f", other seeds of the LoRA at least {worst:.2g} in every wording"
    return f"{sentence}."


def _between(losses: dict[str, DecidingEstimate]) -> str:
    """The smallest and the largest loss, by kind."""
    low, high = (pick(losses, key=lambda kind: losses[kind].value) for pick in (min, max))
    return f"{losses[low].value:.2g} ({low}) to {losses[high].value:.2g} ({high})"
