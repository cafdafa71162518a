"""Does a prompt that emulates a LoRA on some queries carry to others?

The claim is that it does not: a prompt gives one perfect answer and no more. Here prompts of four
kinds (text, a soft prompt, a prefix, demonstrations) are fitted to 1, 2, 4, ... and to all matched
queries, and scored by the share of the LoRA's effect that they give on the queries they were fitted
to, on queries that they never saw, and on these in other words. If the claim holds, strength falls
by more than `threshold` from the first to the second; if a prompt states the task, it does not
fall. Other seeds of the LoRA say how much of such a fall is the target's own; neutral text and
random words say what any prefix does.

    python analyses/generalisation.py                           # the bundled model
    python analyses/generalisation.py --draws 5 --counts 1 54   # more draws, fewer sizes
    python analyses/generalisation.py --model M --adapter A --queries Q.jsonl --heldout H.jsonl \\
        --pool P.jsonl --wordings W.jsonl
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from pydantic import Field

from interp import organism
from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.cli.progress import counting
from interp.finding import DecidingEstimate, Finding
from interp.matching.bench import Bench
from interp.matching.carrying import HELDOUT, REWORDED, asked, target_accuracy, wordings
from interp.matching.fits import FitPlan
from interp.matching.generalisation import (
    NULL_CONTROLS,
    ScoresByCount,
    by_count,
    by_wording,
    losses,
    measure_generalisation,
    shown,
    strength_of,
)
from interp.matching.nulls import OTHER_LORA_SEEDS
from interp.matching.settings import Emulation, bundled_emulation
from interp.plots.curves import Curves, curves
from interp.report.experiments import conclude, finished
from interp.subject.loading import threads_for

OUT = Path("runs/generalisation")
Y = "strength: share of the LoRA's effect"
NOTE = "1: says what the LoRA says; 0: no nearer to it than base. Grey: controls"


class Config(Emulation):
    """Fit prompts to few and to many queries, and score them on others."""

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


def main(config: Config) -> None:
    """Fit, score, print the table and the verdict, draw the figures."""
    if finished(config):
        return
    bench = Bench.open(config, asked=asked(config, config.reworded))
    most = len(bench.queries["matched"])
    counts = [*sorted({count for count in config.counts if count < most}), most]
    with threads_for(bench.subject.n_parameters), counting("fits") as counter:
        done = partial(counter.add, "generalisation", 1)
        found = measure_generalisation(bench, config.plans, counts, config.draws, done)
    table, words = by_count(found, bench), by_wording(found, bench)
    some = replace(bench, queries={g: bench.queries[g] for g in ("matched", HELDOUT)})
    grey = [name for name in NULL_CONTROLS if name in set(table["series"])]
    note = f"{NOTE}. {config.draws} draws of queries and starts"
    x = "queries that a prompt is fitted to"
    look = Curves("Do prompts carry to other queries?", x, Y, log_x=True, grey=grey)
    figures = {"generalisation": curves(table, look, some.caption(note))}
    if len(words):
        shares = (
            f"{target_accuracy(bench, g):.2f} {shown(g)}" for g in (HELDOUT, *wordings(bench))
        )
        note = f"{NOTE}. Answers that the LoRA itself gets right: {', '.join(shares)}"
        look = Curves("And to other wordings?", "wording of the unseen queries", Y, grey=grey)
        figures["wordings"] = curves(words, look, some.caption(note))
    conclude(config, conclusion(found, bench, config), pd.concat([table, words]), figures)


def conclusion(found: ScoresByCount, bench: Bench, config: Config) -> Finding:
    """The verdict: what the best prompt fitted to all queries loses on unseen ones; in the sentence
    also that of the fewest queries, and of other wordings."""
    counts = [count for _, count in found]
    few, many = (losses(found, n, bench, config.threshold) for n in (min(counts), max(counts)))
    best, alone = next(iter(few.items()))
    sentence = (
        f"Fitted to {max(counts)}, prompts lose {between(many)} of their strength on unseen "
        f"queries; fitted to {min(counts)}, they lose {between(few)}, and what fits best there "
        f"({best}) {alone.estimate}: {alone.verdict}."
    )
    if wordings(bench):
        sentence += in_other_words(found, max(counts), bench, config)
    return Finding(
        point=1,
        name="generalisation",
        claim="A prompt that emulates the LoRA on some queries does not carry to others.",
        sentence=sentence,
        contrast=next(iter(many.values())),
        n=len(bench.queries[HELDOUT]),
        figure="generalisation",
        model=config.model_name,
    )


def in_other_words(found: ScoresByCount, count: int, bench: Bench, config: Config) -> str:
    """What becomes of the kind that fits best when unseen queries are asked otherwise."""
    best, fall = next(iter(losses(found, count, bench, config.threshold, REWORDED).items()))
    kept = {w: strength_of(found[best, count], w, bench).strength for w in wordings(bench)}
    least, most = (pick(kept, key=kept.__getitem__) for pick in (min, max))
    sentence = (
        f" In other words what fits best ({best}) loses {fall.estimate} ({fall.verdict}): it keeps "
        f"{kept[most]:.2g} {most} and {kept[least]:.2g} {least}"
    )
    if seeds := found.get((OTHER_LORA_SEEDS, count)):
        worst = min(strength_of(seeds, wording, bench).strength for wording in kept)
        sentence += f", other seeds of the LoRA at least {worst:.2g} in every wording"
    return f"{sentence}."


def between(losses: dict[str, DecidingEstimate]) -> str:
    """The smallest and the largest loss, by kind."""
    low, high = (pick(losses, key=lambda kind: losses[kind].value) for pick in (min, max))
    return f"{losses[low].value:.2g} ({low}) to {losses[high].value:.2g} ({high})"


if __name__ == "__main__":
    read = partial(
        read_flags, Config, sys.argv[1:], "generalisation.py", bundled_emulation(OUT), __doc__
    )
    sys.exit(guarded(lambda: main(read())))
