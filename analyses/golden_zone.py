"""The golden zone: for single queries, inside what the model already knows, is a prompt enough?

The hypothesis claims it: demonstrations, a semantic anchor, an "intent tensor" and a logit bias
together make base say, to one query at a time, what the LoRA says. Here every combination is
measured: 0 to 8 demonstrations; no anchor, an instruction, or the one token that a search finds; no
intent, a steering vector, or a soft token; no bias, or one that is the same for every query.
Everything is fitted to the matched queries, the best combination is chosen on them, and scored on
queries that it has never seen. If it gives more than `threshold` of the LoRA's effect there, the
zone exists; what is left stands beside the distance between two seeds of the LoRA. A bias of its
own for every query and position is no evidence: it is the answer itself, exact by construction.

    python analyses/golden_zone.py                              # the bundled model
    python analyses/golden_zone.py --shots 0 1 2 4 8 16 --steps 200
    python analyses/golden_zone.py --model M --adapter A --queries Q.jsonl --heldout H.jsonl \\
        --pool P.jsonl --anchor INSTRUCTION.txt
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from pydantic import Field

from interp import organism
from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.cli.progress import counting
from interp.conditions import Prompt, prefix_body
from interp.conditions.placing import TokenIds
from interp.config import read_prompt
from interp.design import BASE
from interp.errors import ConfigError
from interp.finding import DecidingEstimate, Finding
from interp.matching.bench import Bench
from interp.matching.factorial import (
    NEUTRAL_TEXT,
    Factorial,
    best_combination,
    each_its_own,
    factorial,
)
from interp.matching.fits import FitPlan, fit_plan
from interp.matching.ingredient_effects import Worth, combination_strengths, effects, gained, left
from interp.matching.ingredients import (
    NONE,
    RANDOM_VECTOR,
    Given,
    anchored_demonstrations,
    own_bias,
)
from interp.matching.settings import Emulation, bundled_emulation
from interp.matching.strength import Strength
from interp.matching.virtual import Tuning
from interp.plots.curves import Curves, curves
from interp.queries import check_alignment
from interp.report.experiments import conclude, finished
from interp.subject.loading import threads_for

OUT = Path("runs/golden_zone")


class Config(Emulation):
    """Combine demonstrations, an anchor, an intent and a bias; score single queries."""

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


HELDOUT, INSTRUCTION, TOKEN = "heldout", "instruction", "one token"


def main(config: Config) -> None:
    """Measure all combinations, print the table and the verdict, draw the figures."""
    if finished(config):
        return
    if config.heldout is None:
        raise ConfigError("unseen queries are asked for: give --heldout")
    bench = Bench.open(config)
    with threads_for(bench.subject.n_parameters), counting("texts") as counter:
        anchors, token = anchors_of(bench, config)
        texts = anchored_demonstrations(bench, config.shots, anchors)
        tuning = Tuning("soft_prompt", 1, config.steps, config.rate, config.batch_size)
        done = partial(counter.add, "golden zone", 1, len(texts))
        found, controls = factorial(bench, texts, tuning, done)
    table, worth = combination_strengths(found | controls, bench), effects(found, bench, HELDOUT)
    seeds = bench.equals(HELDOUT)
    look = Curves(
        "What is left between the LoRA and every combination",
        "demonstrations",
        "distance left, as a share of base's",
        log_y=True,
        grey=[NEUTRAL_TEXT, RANDOM_VECTOR],
        levels={
            f"strength {config.threshold:g}": 1 - config.threshold,
            **({"other LoRA seeds": 1 - seeds.strength} if seeds else {}),
        },
    )
    gains = Curves("What each ingredient is worth", "", "gain in strength")
    note = f"Scored on the held-out queries, fitted to the matched ones. One token: {token}"
    caption = bench.caption(note)
    figures = {
        "golden_zone": curves(left(table[table["queries"] == HELDOUT]), look, caption),
        "gains": curves(gained(worth), gains, caption).update_traces(mode="markers"),
    }
    conclude(config, conclusion(found, worth, bench, config), table, figures)


def anchors_of(bench: Bench, config: Config) -> tuple[dict[str, TokenIds], str]:
    """The anchors by name, and the token that was found."""
    token = fit_plan(bench, bench.wanted["matched"], FitPlan("text", 1, config.text_steps))
    own = len(bench.subject.settings[BASE].prefix)
    anchors: dict[str, TokenIds] = {NONE: (), TOKEN: token.setting.prefix[own:]}
    if config.anchor is not None:
        prompt = Prompt(text=read_prompt(config.anchor), separator=config.separator)
        tokenizer = bench.subject.tokenizer
        check_alignment(bench.queries["matched"], prompt, tokenizer, "anchor")
        anchors[INSTRUCTION] = tuple(prefix_body(prompt, tokenizer))
    return anchors, token.text


def conclusion(found: Factorial, worth: Worth, bench: Bench, config: Config) -> Finding:
    """The verdict: the best combination on queries that it has not seen."""
    cell = best_combination(found)
    there = bench.strength(found[cell][HELDOUT], HELDOUT)
    single = bench.strength(each_its_own(found, HELDOUT), HELDOUT)
    base = bench.kl(BASE, HELDOUT)
    near = (found[cell][HELDOUT] <= (1 - config.threshold) * base).mean()
    gains = "; ".join(
        f"{name} {alone.strength:.2g} ({average.strength:+.2g})"
        for name, (alone, average, _) in ((name, ways.values()) for name, ways in worth.items())
    )
    bare = Given.of(bench, bench.subject.settings[BASE])
    sentence = (
        f"Of {len(found)} combinations the best on the matched queries is {cell}: strength "
        f"{there.strength:.4g} on held-out queries, at least {config.threshold:g} on {near:.0%} of "
        f"them one by one; the best for each query alone would reach {single.strength:.4g}. "
        f"{against(there, bench.equals(HELDOUT))}Gain alone (and on average over the "
        f"rest): {gains}. A bias of its own for every query and position is exact by construction "
        f"(leaves {own_bias(bare, HELDOUT):.1g} nats) and does not count."
    )
    what = "strength on held-out queries of the best combination without a bias by query"
    ends = (there.strength, there.ci_low, there.ci_high)
    return Finding(
        point=0,
        name="golden_zone",
        claim="On single queries inside what the model knows, a combination of demonstrations, "
        "anchor, intent and constant bias gives the LoRA's output.",
        sentence=sentence,
        contrast=DecidingEstimate(what, *ends, config.threshold),
        n=there.n,
        figure="golden_zone",
        model=config.model_name,
    )


def against(there: Strength, seeds: Strength | None) -> str:
    """How what is left compares with another seed of the LoRA."""
    if seeds is None:
        return ""
    return (
        f"Other seeds of the LoRA reach {seeds.strength:.4g}: what is left is "
        f"{there.kl / seeds.kl:.2g} times what lies between seeds. "
    )


if __name__ == "__main__":
    bundled = bundled_emulation(OUT) | {"anchor": organism.PROMPTS / "instruction_0.txt"}
    read = partial(read_flags, Config, sys.argv[1:], "golden_zone.py", bundled, __doc__)
    sys.exit(guarded(lambda: main(read())))
