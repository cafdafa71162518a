"""How strong is the best prompt-equivalent of a LoRA, for one query and for many?

A prompt's strength is the share of the LoRA's effect on the output that it gives: 1 is the LoRA
itself, 0 is base. Here prompts of four kinds are fitted with growing budgets, with and without a
logit bias beside them, once to single queries and once to all, and scored on these queries and on
unseen ones. If strength comes up to that of another seed of the LoRA, the prompt is its equal as
far as these queries tell; if it stops short however large the budget, something in the weights has
no equivalent in a prompt. A logit bias alone says how much needs no prompt at all.

    python analyses/equivalence_strength.py                     # the bundled model
    python analyses/equivalence_strength.py --virtual 1 16 --steps 300
    python analyses/equivalence_strength.py --model M --adapter A --queries Q.jsonl \\
        --heldout H.jsonl --pool P.jsonl
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from pydantic import Field

from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.cli.progress import counting
from interp.errors import ConfigError
from interp.finding import DecidingEstimate, Finding
from interp.matching.bench import Bench
from interp.matching.budget import (
    BIAS,
    BudgetScores,
    best_budget,
    budget_name,
    budget_table,
    strong,
    sweep_budgets,
)
from interp.matching.carrying import FIT_GROUP, HELDOUT
from interp.matching.fits import FitPlan
from interp.matching.generalisation import strength_of
from interp.matching.nulls import OTHER_LORA_SEEDS, equals
from interp.matching.settings import Emulation, bundled_emulation
from interp.plots.curves import Curves, curves
from interp.report.experiments import conclude, finished
from interp.subject.loading import threads_for

OUT = Path("runs/equivalence_strength")
X, Y = "bits of the prompt", "1 - strength"
NOTE = "Share of the LoRA's effect that is missing. Lower is nearer to it. Grey: controls"


class Config(Emulation):
    """Fit prompts of growing size to one query and to all, and score them on others."""

    virtual: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of virtual tokens of the soft prompts and prefixes."""
    tokens: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of tokens of the texts."""
    shots: int = Field(default=8, ge=1)
    """Largest number of demonstrations (without --pool: none)."""
    draws: int = Field(default=2, ge=1)
    """Number of single queries that a prompt is fitted to, one at a time."""
    steps: int = Field(default=60, ge=1)
    """Gradient steps for virtual tokens."""
    rate: float = Field(default=FitPlan._field_defaults["rate"], gt=0)
    """Adam's learning rate for virtual tokens, relative to the size of the initial values."""
    text_steps: int = Field(default=12, ge=1)
    """Steps of the text search."""
    threshold: float = 0.9
    """Strength on held-out queries at which a prompt counts as equivalent."""

    @property
    def plans(self) -> list[tuple[str, FitPlan]]:
        """Every search, by the kind of prompt."""
        return [
            *(("text", FitPlan("text", n, self.text_steps)) for n in self.tokens),
            *(
                ("soft prompt", FitPlan("soft_prompt", n, self.steps, rate=self.rate))
                for n in self.virtual
            ),
            *(("prefix", FitPlan("prefix", n, self.steps, rate=self.rate)) for n in self.virtual),
            *([("demonstrations", FitPlan("few_shot", self.shots))] if self.pool else []),
        ]


def main(config: Config) -> None:
    """Fit, score, print the table and the verdict, draw the figures."""
    if finished(config):
        return
    if config.heldout is None:
        raise ConfigError("unseen queries are asked for: give --heldout")
    bench = Bench.open(config)
    most = len(bench.queries["matched"])
    with threads_for(bench.subject.n_parameters), counting("fits") as counter:
        done = partial(counter.add, "equivalence strength", 1)
        found = sweep_budgets(bench, config.plans, sorted({1, most}), config.draws, done)
    points = budget_table(found, bench)
    biased = points["biased"].eq(True)
    drawn = {
        "equivalence_strength": (points[~biased | points["series"].eq(BIAS)], X),
        "with_logit_bias": (
            points[biased | points["series"].eq(OTHER_LORA_SEEDS)],
            f"{X}, bias not counted",
        ),
    }
    caption = bench.caption(f"{NOTE}. {config.draws} single queries, one at a time")
    figures = {}
    for name, (rows, x) in drawn.items():
        title = "How strong is the best prompt-equivalent?"
        title += " With a fitted logit bias" if name == "with_logit_bias" else ""
        look = Curves(
            title, x, Y, log_x=True, log_y=True, levels={"base": 1.0}, grey=[OTHER_LORA_SEEDS, BIAS]
        )
        figures[name] = curves(rows, look, caption)
    conclude(config, conclusion(found, bench, config), points, figures)


def conclusion(found: BudgetScores, bench: Bench, config: Config) -> Finding:
    """The verdict: how strong is what fits all queries best, on unseen ones?"""
    most = len(bench.queries["matched"])
    words, contrasts = [], {}
    for count in sorted({1, most}):
        budget = best_budget(found, bench, count)
        here, there = (strength_of(found[budget].scores, g, bench) for g in (FIT_GROUP, HELDOUT))
        ends = (there.strength, there.ci_low, there.ci_high)
        what = f"strength on unseen queries of what fits {most} best ({budget_name(budget, found)})"
        contrasts[count] = DecidingEstimate(what, *ends, config.threshold)
        small = strong(found, bench, count, config.threshold)
        words.append(
            f"Fitted to {count}, the best ({budget_name(budget, found)}) has strength "
            f"{here.strength:.4f} there and {there.strength:.4f} on unseen queries; the smallest "
            f"of {config.threshold:g} on these is {budget_name(small, found) if small else 'none'}."
        )
    if seeds := equals(bench):
        level = strength_of(seeds, HELDOUT, bench).strength
        words.append(f"Other seeds of the LoRA have {level:.4f} on unseen queries.")
    return Finding(
        point=0,
        name="equivalence_strength",
        claim="A prompt can be found that emulates the LoRA, on unseen queries too.",
        sentence=" ".join(words),
        contrast=contrasts[most],
        n=len(bench.queries[HELDOUT]),
        figure="equivalence_strength",
        model=config.model_name,
    )


if __name__ == "__main__":
    read = partial(
        read_flags,
        Config,
        sys.argv[1:],
        "equivalence_strength.py",
        bundled_emulation(OUT),
        __doc__,
    )
    sys.exit(guarded(lambda: main(read())))
