"""Does a huge prompt blur the query?

The claim is that it does: the more stands around an instruction, the less of its effect is left.
Here the instruction is kept and filler is put after, around or before it, up to what the model can
read: demonstrations of the same task (relevant), ordinary text (neutral), demonstrations with the
wrong answers or of another task (distracting); and the same filler without the instruction, which
is as long. If the claim holds, the instruction loses more than `threshold` of its strength to the
longest neutral filler, wherever it stands; if length alone does no harm, it loses nothing, and what
distracting filler takes away is what it says and not its length. The bundled model was trained
on texts of at most 256 tokens: what it loses beyond is a model at the end of its context.

    python analyses/context_distortion.py                       # the bundled model
    python analyses/context_distortion.py --lengths 16 64 256
    python analyses/context_distortion.py --model M --adapter A --queries Q.jsonl \\
        --instruction PROMPT.txt --pool P.jsonl --rival R.jsonl
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pandas as pd
from pydantic import Field

from interp import organism
from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.cli.progress import counting
from interp.conditions import Prompt, prefix_body
from interp.conditions.placing import TokenIds
from interp.config import read_prompt
from interp.design import BASE
from interp.finding import DecidingEstimate, Finding
from interp.matching.bench import Bench
from interp.matching.distortion import (
    ALONE,
    SERIES,
    distortion_table,
    strength_lost_to_filler,
    sweep_fillers,
)
from interp.matching.filler import NEUTRAL_FILLER, PLACES, fillers, lengths_that_fit
from interp.matching.fits import FitPlan, fit_plan
from interp.matching.settings import Emulation, bundled_emulation
from interp.plots.curves import Curves, curves
from interp.report.experiments import conclude, finished
from interp.subject.loading import threads_for

OUT = Path("runs/context_distortion")
AXES = {
    "strength": "strength: share of the target's effect",
    "query_mass": "attention left on the query's own tokens",
    "moved": "KL (short prompt ‖ prompt), nats",
    "entropy": "entropy of the next token, nats",
    "accuracy": "accuracy",
}
FIGURES = {"strength": "context_distortion"}

Lost = dict[tuple[str, int], tuple[float, float, float, int]]
"""(kind of filler, tokens of it) -> strength lost: value, interval, queries."""


class Config(Emulation):
    """Make a prompt long and see what becomes of its effect."""

    instruction: Path | None = None
    """Text file of the instruction (none: the target if it is a prompt, the bundled model's
    `opposite :`, or a text found by search for another model)."""
    rival: Path | None = None
    """JSONL file of demonstrations of another task."""
    lengths: tuple[int, ...] = (8, 32, 128, 240, 480)
    """Lengths of the filler in tokens, cut to the context that the model can read."""
    tokens: int = Field(default=4, ge=1)
    """Length of a searched instruction in tokens."""
    threshold: float = 0.1
    """A long prompt blurs the query if it loses at least this strength."""


def main(config: Config) -> None:
    """Measure, print the table and the verdict, draw the figures."""
    if finished(config):
        return
    bench = Bench.open(config)
    with threads_for(bench.subject.n_parameters), counting("prompts") as counter:
        instruction = instruction_of(bench, config)
        kinds, lengths = (
            fillers(bench, config.rival),
            lengths_that_fit(bench, instruction, config.lengths),
        )
        total = len(kinds) * len(lengths) * (len(PLACES) + 1)
        done = partial(counter.add, "distortion", 1, total)
        found = sweep_fillers(bench, instruction, kinds, lengths, done)
        loss = {
            (k, length): strength_lost_to_filler(found, bench, k, length)
            for k in kinds
            for length in lengths
        }
        table = distortion_table(found, bench)
    text = str(bench.subject.tokenizer.decode(list(instruction))).strip()
    caption = bench.caption(f"Instruction: “{text}”. Grey: as much filler without it")
    figures = {}
    for measure, rows in table.groupby("measure", sort=False):
        name, axis = FIGURES.get(str(measure), str(measure)), AXES[str(measure)]
        look = Curves("Does filler blur the query?", "tokens of filler", axis, grey=[ALONE])
        figures[name] = curves(rows, look, caption)
    main_table = table[table["measure"] == "strength"]  # the others lie beside their figures
    conclude(config, conclusion(table, loss, config), main_table, figures)


def instruction_of(bench: Bench, config: Config) -> TokenIds:
    """The instruction's tokens, from its file or by search."""
    file = config.instruction or config.prompt_file
    if file is None and Path(config.model) == organism.MODEL:
        file = organism.PROMPTS / "instruction_0.txt"
    if file is None:
        found = fit_plan(
            bench, bench.wanted["matched"], FitPlan("text", config.tokens, seed=config.seed)
        )
        return found.setting.prefix[len(bench.subject.settings[BASE].prefix) :]
    prompt = Prompt(text=read_prompt(file), separator=config.separator)
    return tuple(prefix_body(prompt, bench.subject.tokenizer))


def conclusion(table: pd.DataFrame, loss: Lost, config: Config) -> Finding:
    """The finding, from the table and from what every kind of filler takes away."""
    most = max(length for _, length in loss)
    values = table.set_index(["measure", "panel", "series", "x"])["value"]
    first, *_ = places = tuple(SERIES.values())

    def at(measure: str, series: str, length: int, kind: str = NEUTRAL_FILLER) -> float:
        return float(values[measure, kind, series, str(length)])

    by_place = ", ".join(f"{at('strength', s, most):.2f} ({s})" for s in (*places, ALONE))
    others = [kind for kind, length in loss if length == most and kind != NEUTRAL_FILLER]
    taken = ", ".join(f"{words(loss[kind, most])} ({kind})" for kind in others)
    rest = f"As much other filler takes away {taken}. " if others else ""
    mass = [at("query_mass", series, most) for series in (*places, ALONE)]
    value, low, high, n = loss[NEUTRAL_FILLER, most]
    return Finding(
        point=3,
        name="context_distortion",
        claim="A huge prompt blurs the query.",
        sentence=f"The instruction alone has strength {at('strength', first, 0):.2f}; with {most} "
        f"tokens of neutral filler it is {by_place}. {within(loss, config)}{rest}"
        f"Of the attention of the query's last token, "
        f"{at('query_mass', first, 0):.2f} stays on the query behind the short prompt, "
        f"{min(mass[:-1]):.2f} to {max(mass[:-1]):.2f} behind the longest neutral ones and "
        f"{mass[-1]:.2f} behind as much filler without the instruction.",
        contrast=DecidingEstimate(
            f"strength lost to {most} tokens of neutral filler", value, low, high, config.threshold
        ),
        n=n,
        figure="context_distortion",
        model=config.model_name,
    )


def within(loss: Lost, config: Config) -> str:
    """What is lost where the model has been trained, as far as that is known."""
    known = organism.TRAINED_LENGTH if Path(config.model) == organism.MODEL else 0
    seen = [length for kind, length in loss if kind == NEUTRAL_FILLER and length < known]
    if not seen:
        return ""
    return (
        f"The model was trained on at most {known} tokens: {max(seen)} of neutral filler take "
        f"{words(loss[NEUTRAL_FILLER, max(seen)])}. "
    )


def words(loss: tuple[float, float, float, int]) -> str:
    """Value and interval."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*loss)


if __name__ == "__main__":
    defaults = bundled_emulation(OUT) | {"rival": organism.QUERIES / "rival.jsonl"}
    read = partial(read_flags, Config, sys.argv[1:], "context_distortion.py", defaults, __doc__)
    sys.exit(guarded(lambda: main(read())))
