"""The golden zone: for single queries, inside what the model already knows, is a prompt enough?

The hypothesis claims it: demonstrations, a semantic anchor, an "intent tensor" and a logit bias
together make base say, to one query at a time, what the LoRA says. Here every combination is
measured: 0 to 8 demonstrations; no anchor, an instruction, or the one token that a search finds; no
intent, a steering vector, or a soft token; no bias, or one that is the same for every query.
Everything is fitted to the matched queries, the best combination is chosen on them, and scored on
queries that it has never seen. If it gives more than `threshold` of the LoRA's effect there, the
zone exists; what is left stands beside the distance between two seeds of the LoRA. A bias of its
own for every query and position is no evidence: it is the answer itself, exact by construction.

    interp experiment golden_zone                               # the bundled model
    interp experiment golden_zone --shots 0 1 2 4 8 16 --steps 200
    interp experiment golden_zone --model M --adapter A --queries Q.jsonl --heldout H.jsonl \\
        --pool P.jsonl --anchor INSTRUCTION.txt
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field

from interp import organism
from interp.conditions import Prompt, prefix_body
from interp.conditions.placing import TokenIds
from interp.config import read_prompt
from interp.design import BASE
from interp.experiments.draws import HELDOUT, asked
from interp.experiments.fits import FitPlan, Fitted, fit_plan
from interp.experiments.ingredients import (
    CONSTANT,
    NEUTRAL_TEXT,
    NONE,
    RANDOM_VECTOR,
    SOFT_TOKEN,
    STEERING_VECTOR,
    Combination,
    Factorial,
    anchored_demonstrations,
    factorial,
    own_bias,
)
from interp.experiments.trial import Measurement, Trial
from interp.matching.evaluation import Evaluation
from interp.matching.strength import Strength
from interp.matching.virtual import Tuning
from interp.plots.curves import Curves, curves
from interp.progress import Progress
from interp.queries import check_alignment

_INSTRUCTION, _TOKEN = "instruction", "one token"


class GoldenZone(Trial):
    """Combine demonstrations, an anchor, an intent and a bias; score single queries."""

    point = 0
    claim = (
        "On single queries inside what the model knows, a combination of demonstrations, anchor, "
        "intent and constant bias gives the LoRA's output."
    )
    unit = "texts"
    bundled: ClassVar = {"anchor": organism.PROMPTS / "instruction_0.txt"}

    anchor: Path | None = None
    """Text file of an instruction at the start of the prompt."""
    shots: tuple[int, ...] = (0, 1, 2, 4, 8)
    """Numbers of demonstrations."""
    text_steps: int = Field(default=12, ge=1)
    """Steps of the search for a one-token anchor."""
    steps: int = Field(default=60, ge=1)
    """Gradient steps for a soft token."""
    rate: float = Field(default=0.2, gt=0)
    """Adam's learning rate for a soft token, relative to the size of its initial value."""
    threshold: float = 0.95
    """Strength above which a combination counts as equal to the LoRA."""

    def measure(self, progress: Progress) -> Measurement:
        """All combinations, what each ingredient is worth, and the verdict."""
        with self.evaluation(asked=asked(self)) as evaluation:
            anchors, token = _anchors(evaluation, self)
            texts = anchored_demonstrations(evaluation, self.shots, anchors)
            tuning = Tuning("soft_prompt", 1, self.steps, self.rate, self.batch_size)
            done = partial(progress, "golden zone", 1, len(texts))
            found, controls = factorial(evaluation, texts, tuning, done)
            table, worth = (
                _strengths(found | controls, evaluation),
                effects(found, evaluation, HELDOUT),
            )
            seeds = evaluation.equals(HELDOUT)
            look = Curves(
                "What is left between the LoRA and every combination",
                "demonstrations",
                "distance left, as a share of base's",
                log_y=True,
                grey=[NEUTRAL_TEXT, RANDOM_VECTOR],
                levels={
                    f"strength {self.threshold:g}": 1 - self.threshold,
                    **({"other LoRA seeds": 1 - seeds.strength} if seeds else {}),
                },
            )
            gains = Curves("What each ingredient is worth", "", "gain in strength")
            note = f"Scored on the held-out queries, fitted to the matched ones. One token: {token}"
            caption = evaluation.caption(note)
            figures = {
                "golden_zone": curves(_left(table[table["queries"] == HELDOUT]), look, caption),
                "gains": curves(_gained(worth), gains, caption).update_traces(mode="markers"),
            }
            best = best_combination(found)
            there = evaluation.strength(found[best][HELDOUT], HELDOUT)
            what = "strength on held-out queries of the best combination without a bias by query"
            contrast = there.against(self.threshold, what)
            sentence = _sentence(found, best, worth, evaluation, self.threshold)
            return Measurement(sentence, contrast, there.n, table, figures)


def _anchors(evaluation: Evaluation, config: GoldenZone) -> tuple[dict[str, TokenIds], str]:
    """The anchors by name, and the token that was found."""
    token = fit_plan(
        evaluation, evaluation.targets["matched"], FitPlan("text", 1, config.text_steps)
    )
    own = len(evaluation.subject.settings[BASE].prefix)
    anchors: dict[str, TokenIds] = {NONE: (), _TOKEN: token.setting.prefix[own:]}
    if config.anchor is not None:
        prompt = Prompt(text=read_prompt(config.anchor), separator=config.separator)
        tokenizer = evaluation.subject.tokenizer
        check_alignment(evaluation.queries["matched"], prompt, tokenizer, "anchor")
        anchors[_INSTRUCTION] = tuple(prefix_body(prompt, tokenizer))
    return anchors, token.text


def _sentence(
    found: Factorial, best: Combination, worth: Worth, evaluation: Evaluation, threshold: float
) -> str:
    """What the best combination gives on queries that it has not seen, beside other seeds."""
    there, seeds = evaluation.strength(found[best][HELDOUT], HELDOUT), evaluation.equals(HELDOUT)
    single = evaluation.strength(each_its_own(found, HELDOUT), HELDOUT)
    near = (found[best][HELDOUT] <= (1 - threshold) * evaluation.kl(BASE, HELDOUT)).mean()
    gains = "; ".join(
        f"{name} {alone.strength:.2g} ({average.strength:+.2g})"
        for name, (alone, average, _) in ((name, ways.values()) for name, ways in worth.items())
    )
    against = ""
    if seeds:
        against = (
            f"Other seeds of the LoRA reach {seeds.strength:.4g}: what is left is "
            f"{there.kl / seeds.kl:.2g} times what lies between seeds. "
        )
    bare = Fitted.of(evaluation, evaluation.subject.settings[BASE])
    return (
        f"Of {len(found)} combinations the best on the matched queries is {best}: strength "
        f"{there.strength:.4g} on held-out queries, at least {threshold:g} on {near:.0%} of "
        f"them one by one; the best for each query alone would reach {single.strength:.4g}. "
        f"{against}Gain alone (and on average over the "
        f"rest): {gains}. A bias of its own for every query and position is exact by construction "
        f"(leaves {own_bias(bare, HELDOUT):.1g} nats) and does not count."
    )


def best_combination(found: Factorial, group: str = "matched") -> Combination:
    """The combination of the smallest mean divergence."""
    return min(found, key=lambda cell: float(found[cell][group].mean()))


def each_its_own(found: Factorial, group: str) -> Float[ndarray, " query"]:
    """The smallest divergence of every query by itself: what is reached if someone who knows the
    target chooses for it among all combinations."""
    return np.min([kl[group] for kl in found.values()], axis=0)


# --- what each ingredient is worth ----------------------------------------------------------------


_PARTS = Combination._fields
WAYS = ("alone", "on average", "on top of all others")
_PANELS = {NONE: "text alone", STEERING_VECTOR: "+ steering vector", SOFT_TOKEN: "+ soft token"}
_BIASED, _ALONE = "+ constant bias", "no anchor"

Worth = dict[str, dict[str, Strength]]
"""By ingredient and `WAYS`: the gain in strength."""


def effects(found: Factorial, evaluation: Evaluation, group: str) -> Worth:
    """The gain of every level of a part (of demonstrations of the most) over its first one: alone;
    on average over all combinations of the others (its main effect); and on top of all others at
    their last level."""
    columns = zip(*found, strict=True)
    levels = {p: list(dict.fromkeys(column)) for p, column in zip(_PARTS, columns, strict=True)}
    ends = [Combination._make(some[i] for some in levels.values()) for i in (0, -1)]
    worth: Worth = {}
    for part, (first, *others) in levels.items():
        for level in others[-1:] if part == "shots" else others:
            every = [cell for cell in found if getattr(cell, part) == level]
            change = partial(_gain, found, evaluation, group, part, first, level)
            gains = [change(cells) for cells in ([ends[0]], every, [ends[1]])]
            worth[_name(part, level)] = dict(zip(WAYS, gains, strict=True))
    return worth


def _gain(
    found: Factorial,
    evaluation: Evaluation,
    group: str,
    part: str,
    first: Any,
    level: Any,
    cells: Sequence[Combination],
) -> Strength:
    """What share of the target's effect is won, on average over pairs of combinations."""
    without, given = (
        np.mean([found[cell._replace(**{part: value})][group] for cell in cells], axis=0)
        for value in (first, level)
    )
    return evaluation.strength(evaluation.kl(BASE, group) - without + given, group)


def _name(part: str, level: object) -> str:
    return {"shots": f"{level} demonstrations", "bias": f"{level} bias"}.get(part, str(level))


def _strengths(found: Factorial, evaluation: Evaluation) -> pd.DataFrame:
    """The strength of every combination on every group of queries."""
    rows = []
    for cell, kl in found.items():
        for group, values in kl.items():
            anchor = _ALONE if cell.anchor == NONE else cell.anchor
            point = evaluation.strength(values, group).point(cell.intent, anchor, str(cell.shots))
            rows.append({**point, "bias": cell.bias, "queries": group})
    return pd.DataFrame(rows).rename(columns={"panel": "intent"})


def _left(table: pd.DataFrame) -> pd.DataFrame:
    """What the figure shows: texts alone, with each intent, with the bias; 1 - strength."""
    random = table["intent"] == RANDOM_VECTOR
    biased = (table["bias"] == CONSTANT) & (table["intent"] == NONE)
    panel = (
        table["intent"].map(_PANELS).mask(random, _PANELS[STEERING_VECTOR]).mask(biased, _BIASED)
    )
    series = table["series"].mask(random, RANDOM_VECTOR)
    kept = biased | (table["bias"] == NONE) & (~random | (table["series"] == _ALONE))
    shown = table.assign(panel=panel, series=series)[kept]
    ends = {"value": "value", "ci_low": "ci_high", "ci_high": "ci_low"}
    return shown.assign(**{a: 1 - shown[b] for a, b in ends.items()})


def _gained(worth: Worth) -> pd.DataFrame:
    """The gains as a tidy table."""
    rows = [
        strength.point("", way, ingredient)
        for ingredient, ways in worth.items()
        for way, strength in ways.items()
    ]
    return pd.DataFrame(rows)
