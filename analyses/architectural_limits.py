"""Can a prompt add an ability that the model lacks?

The claim is that no prompt can. An ability is one of two things here, and they are kept apart.
*Facts*: to answer questions whose answers the model never saw paired with them. A text spells them
out, virtual tokens and a LoRA of as many parameters are trained on them, and asked are these facts
and others that were not given, on which nothing should beat a guess. (The bundled model was never
taught to look something up in its context.) *A computation*: to apply a function that training
never asked for to inputs never seen: the separating toy of Petrov et al. (2310.19698), a small
transformer of four tasks, and a prefix and a LoRA of as many parameters trained on a fifth.

The computation decides, since facts can be written down: if the claim holds, the LoRA is right on
more than `threshold` more of the inputs than the prefix; if a prompt does what weights do, there is
no difference.

    python analyses/architectural_limits.py                     # the bundled models
    python analyses/architectural_limits.py --counts 1 4 16 64 128 --ranks 1 4 --steps 1000
    python analyses/architectural_limits.py --model M --facts F.jsonl
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field

from interp import organism, toy
from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.cli.progress import counting
from interp.errors import ConfigError
from interp.finding import DecidingEstimate, Finding
from interp.matching.separating import examined
from interp.matching.settings import Emulation, bundled_emulation
from interp.matching.storing import (
    LORA_LABEL,
    PREFIX_LABEL,
    StorageBudget,
    Stored,
    chance,
    shuffled_facts,
    store,
    ways,
)
from interp.plots.curves import Curves, curves
from interp.queries import Query, read_queries
from interp.report.experiments import conclude, finished
from interp.statistics import pooled

OUT = Path("runs/architectural_limits")
GIVEN, OTHERS = "facts that were stored", "facts that were not"
BASE, GUESS = GREY = ("nothing added", "a guess among the relation's answers")
RECALL, EXACT = "share of facts recalled", "share of outputs right in every digit"
Right = Float[ndarray, " n"]


class Config(Emulation):
    """Store facts that the model never learned, and examine the separating toy. The target, the
    queries and the pool of the other experiments play no part."""

    facts: Path = organism.QUERIES / "left_out.jsonl"
    """JSONL file of facts that the model never learned; the label is the relation."""
    counts: tuple[int, ...] = (4, 16, 64)
    """Numbers of facts that are stored."""
    ranks: tuple[int, ...] = (1,)
    """Ranks of the LoRA; virtual tokens have at most as many parameters."""
    steps: int = Field(default=200, ge=1)
    """Gradient steps for virtual tokens and LoRA alike."""
    rate: float = Field(default=0.3, gt=0)
    """Adam's learning rate for virtual tokens, relative to the size of the initial values."""
    learning_rate: float = Field(default=2e-2, gt=0)
    """AdamW's learning rate for the LoRA."""
    examples: int = Field(default=500, ge=0)
    """Held-out inputs of the separating toy (0: no toy; the facts decide)."""
    threshold: float = 0.5
    """Share of inputs (or facts) by which the LoRA must be ahead of the prompt."""


def main(config: Config) -> None:
    """Store and examine, print the table and the verdict, draw the figures."""
    if finished(config):
        return
    facts = shuffled_facts(read_queries(config.facts, config.limit), config.seed)
    counts = tuple(sorted({min(count, len(facts)) for count in config.counts}))
    if not counts or not config.ranks or counts[0] < 1:
        raise ConfigError("give --counts of 1 fact or more, and --ranks")
    budget = StorageBudget(counts, config.ranks, config.steps, config.rate, config.learning_rate)
    with counting("trainings") as counter:
        done = partial(counter.add, "limits", 1, ways(budget))
        found = store(config, facts, budget, done)
    asked = config.examples if toy.LORA.is_dir() else 0  # without the toy the facts decide
    seen = examined(asked, config.seed) if asked else {}
    table = by_count(found, chance(facts), config)
    note = f"Model: {config.model_name}, which never learned these {len(facts)} facts"
    look = Curves("Where can new facts be stored?", "facts stored", RECALL, log_x=True, grey=GREY)
    figures = {"architectural_limits": curves(table, look, caption(note, config))}
    if seen:
        rows = by_task(seen, config)
        note = f"The separating toy, {config.examples} held-out inputs for each task"
        look = Curves("Can a prefix add a computation?", "task", EXACT, grey=GREY)
        figures["separating_toy"] = curves(rows, look, caption(note, config))
        table = pd.concat([table, rows])
    conclude(config, conclusion(found, seen, facts, config), table, figures)


def by_count(found: list[Stored], guess: Right, config: Config) -> pd.DataFrame:
    """Recall of the facts that were stored and of the others, by way and by how many."""
    base, *stored = found
    shown = [(one.way + one.budget, one, one.right) for one in stored]
    for one in {one.count: one for one in stored}.values():
        shown += [(BASE, one, base.right), (GUESS, one, guess)]
    return pd.DataFrame(
        {"panel": panel, "series": series, "x": one.count, **share(part, config)}
        | ({"parameters": one.parameters} if series not in GREY else {})
        for panel, stored_ones in ((GIVEN, True), (OTHERS, False))
        for series, one, right in shown
        if len(part := right[: one.count] if stored_ones else right[one.count :])
    )


def by_task(seen: dict[tuple[str, str], Right], config: Config) -> pd.DataFrame:
    """Whole outputs right in the separating toy, by task and by what was added."""
    names = {"base": BASE, "old_prefix": PREFIX_LABEL, "prefix": PREFIX_LABEL, "lora": LORA_LABEL}
    tasks = {toy.OLD_TASK: "one of its four (sorting)", toy.NEW_TASK: "new (double histogram)"}
    return pd.DataFrame(
        {"panel": "toy", "series": names[name], "x": words, **share(right, config)}
        for task, words in tasks.items()
        for (name, asked), right in seen.items()
        if asked == task
    )


def share(right: Right, config: Config) -> dict[str, float]:
    """The mean with its interval."""
    keys = [str(i) for i in range(len(right))]
    got = pooled(right, 1.0, keys, config.bootstrap, config.seed)
    return dict(zip(("value", "ci_low", "ci_high", "n"), map(float, got), strict=True))


def conclusion(
    found: list[Stored], seen: dict[tuple[str, str], Right], facts: list[Query], config: Config
) -> Finding:
    """The finding: of the toy's inputs where it was examined, else of the facts."""
    base, *stored = found
    most, rank = max(one.count for one in stored), config.ranks[0]
    last = [one for one in stored if one.count == most and one.rank in (0, rank)]
    lora = next(one for one in last if one.way == LORA_LABEL)
    prompt = max((one for one in last if one.way != LORA_LABEL), key=lambda one: one.given.mean())
    recall = ", ".join(f"{one.given.mean():.2f} ({one.way}{one.budget})" for one in last)
    others = max((one.others.mean() for one in stored if len(one.others)), default=float("nan"))
    sentence = (
        f"Facts (base knows {base.right.mean():.2f} of {len(facts)}): of {most} that were stored, "
        f"recalled are {recall}; of those that were not, at most {others:.2f} (a guess: "
        f"{chance(facts).mean():.2f})."
    )
    ahead, what = lora.given - prompt.given, f"recall of {most} facts, LoRA minus best prompt"
    if seen:
        ahead = seen["lora", toy.NEW_TASK] - seen["prefix", toy.NEW_TASK]
        what = "new computation, LoRA minus prefix at equal parameters"
        right = {name: float(values.mean()) for name, values in seen.items()}
        sentence = (
            f"A computation that training never asked for: the prefix gives "
            f"{right['prefix', toy.NEW_TASK]:.1%} of the outputs, the LoRA "
            f"{right['lora', toy.NEW_TASK]:.1%}; on a task of its training a prefix gives "
            f"{right['old_prefix', toy.OLD_TASK]:.1%}. {sentence}"
        )
    got = share(ahead, config)
    ends = (got["value"], got["ci_low"], got["ci_high"])
    return Finding(
        point=4,
        name="architectural_limits",
        claim="No prompt adds an ability that the model lacks.",
        sentence=sentence,
        contrast=DecidingEstimate(what, *ends, config.threshold),
        n=len(ahead),
        figure="separating_toy" if seen else "architectural_limits",
        model=(toy.MODEL.parent if seen else Path(config.model)).name,
    )


def caption(note: str, config: Config) -> str:
    """What a figure must say."""
    return (
        f"{note}. Virtual tokens have no more parameters than the LoRA. Grey: controls. 95 % "
        f"interval, Poisson bootstrap, {config.bootstrap} replicates. Seed {config.seed}."
    )


if __name__ == "__main__":
    defaults = bundled_emulation(OUT)
    read = partial(read_flags, Config, sys.argv[1:], "architectural_limits.py", defaults, __doc__)
    sys.exit(guarded(lambda: main(read())))
