"""Which heads attend differently under a prompt and under a LoRA, and what do they look at?

A head whose content pattern is the same under both uses the query the same way. A head that moves
under the LoRA alone, and not under the prompt, was re-wired; one that puts its attention on the
prompt instead (`prefix_mass`) reads the instruction there, which the LoRA has in its weights.

    python analyses/head_probe.py                               # the three most divergent heads
    python analyses/head_probe.py --heads L1H7 L2H3
    python analyses/head_probe.py --model M --adapter A --prompt-file P --queries Q.jsonl
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import rich

from interp import Experiment, Head, diverge, load_run
from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.config import bundled
from interp.errors import ConfigError
from interp.report import write_head_view
from interp.runs.view import Run
from interp.study import heads_of_run

OUT = Path("runs/head_probe")


class Config(Experiment):
    """Compare a prompt and an adapter, and look at single heads."""

    heads: tuple[str, ...] = ()
    """Heads such as L5H3 (none: of those that differ from their null, the three of the largest
    content JS)."""


def main(config: Config) -> None:
    """Run, then one sentence, one table and one figure per head."""
    experiment = Experiment(**config.model_dump(exclude={"heads"}))
    run = load_run(diverge(experiment))
    names = config.heads or most_divergent(run, 3)
    if not names:
        print("No head's content pattern differs from its null: name some with --heads.")
        return
    for view in heads_of_run(config.out, names):  # a ConfigError for a head that there is not
        print(sentence(run, str(view.head)))
        table, files = write_head_view(config.out, view)
        rich.print(table)
        print(f"figure: {files[0].with_suffix('.json')}, and as png where a browser is found")


def most_divergent(run: Run, count: int) -> list[str]:
    """The heads of the headline's largest content JS, at the queries' last token, of those that
    differ from their null."""
    js = run.standing(run.rows("content_js", "pattern", headline(run), "last"))
    js = js.nlargest(count, "value")
    return [str(Head(int(row.layer), int(row.head))) for row in js.itertuples()]


def headline(run: Run) -> tuple[str, str]:
    """The two conditions that the run compares."""
    found = run.manifest["headline"]
    if found is None:
        raise ConfigError("nothing to compare heads between: name two conditions with --compare")
    return found["condition"], found["reference"]


def sentence(run: Run, name: str) -> str:
    """What a head does, from the numbers."""
    (a, b), head = headline(run), Head.parse(name)
    at_last = run.table.query("position == 'last' and queries == 'matched'")
    of_head = at_last[(at_last["layer"] == head.layer) & (at_last["head"] == head.head)]

    def value(measure: str, condition: str, reference: str | None = None) -> float:
        found = of_head[(of_head["measure"] == measure) & (of_head["condition"] == condition)]
        if reference is not None:
            found = found[found["reference"] == reference]
        return float(found["value"].iloc[0]) if len(found) else float("nan")

    def shown(measure: str, condition: str, reference: str | None = None) -> str:
        number = value(measure, condition, reference)
        return f"{'not measured' if number != number else f'{number:.2f}'} under {condition}"

    sides = [side for side in (a, b) if side != "base"]
    masses = ", ".join(shown("prefix_mass", s) for s in ("base", *sides))
    own = ", ".join(shown("rewiring_share", s, "base") for s in sides)
    return (
        f"{name}: content JS {value('content_js', a, b):.3f} nats; mass before the query {masses}; "
        f"share of its change that weights re-wire {own}."
    )


if __name__ == "__main__":
    read = partial(read_flags, Config, sys.argv[1:], "head_probe.py", bundled(OUT), __doc__)
    sys.exit(guarded(lambda: main(read())))
