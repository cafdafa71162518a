"""Where does the hypothesis hold that a prompt can emulate a LoRA, where does it fail?

Runs the experiments on its five weak points, on the golden zone where it should hold, on the
library of prompts that would follow from it and on the strength of the best prompt, one after
another, and writes one report with a scorecard. Of a weak point "supported" means that the
hypothesis fails there, of the other three that it holds. Flags are passed on to every experiment.

    python analyses/weak_points.py                              # the bundled model
    python analyses/weak_points.py --resume                     # go on after an interruption
    python analyses/weak_points.py --only golden_zone --seed 1
    python analyses/weak_points.py --model M --adapter A --queries Q.jsonl --heldout H.jsonl \\
        --pool P.jsonl --floor A1 A2 --out runs/mine
"""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import rich

from interp.cli import guarded
from interp.cli.child import run_child
from interp.cli.flags import as_flags, read_flags
from interp.cli.progress import console
from interp.errors import ConfigError, RunError
from interp.finding import FILE, read_finding
from interp.matching.settings import Emulation, bundled_emulation
from interp.queries import read_queries
from interp.report.scorecard import scorecard_table, write_scorecard

OUT = Path("runs/weak_points")
NAMES = (
    "generalisation",
    "beyond_tokens",
    "context_distortion",
    "architectural_limits",
    "internal_state",
    "golden_zone",
    "prompt_library",
    "equivalence_strength",
)
OWN = ("out", "resume", "overwrite")
"""Settings that every experiment has of its own."""
SAME = ("model", "adapter", "fine_tuned", "prompt_file")
LOG = "output.txt"


class Config(Emulation):
    """Run all experiments on the hypothesis and write their scorecard."""

    only: tuple[str, ...] = ()
    """Names of the experiments to run; the others' findings are kept if they are of the same model
    and target."""
    scripts: Path = Path(__file__).parent
    """Folder of the experiments' scripts."""


def main(config: Config) -> None:
    """Run the experiments, print and write the scorecard of those that were not lost."""
    if unknown := set(config.only) - set(NAMES):
        raise ConfigError(f"no experiment {min(unknown)!r}; there are {', '.join(NAMES)}")
    said = f"{config.target.describe()}, {len(read_queries(config.queries, config.limit))} queries"
    say(f"target: {said}")  # and what would fail everywhere fails here, at once
    chosen = [name for name in NAMES if name in (config.only or NAMES)]
    failed = run_all(config, chosen)
    kept = [name for name in NAMES if name not in failed and known(config, name, chosen)]
    if kept:
        notes = [f"{name} failed: {line}" for name, line in failed.items()]
        report = write_scorecard(config.out, kept, notes)
        rich.print(scorecard_table([read_finding(config.out / name) for name in kept]))
        print(f"report: {report}")
    if failed:
        what = f"{len(failed)} of {len(chosen)} experiments failed ({', '.join(failed)})"
        raise RunError(f"{what}; what they said is in {config.out}/NAME/{LOG}")


def run_all(config: Config, names: Sequence[str]) -> dict[str, str]:
    """Run one after another; what failed, and why."""
    shared = Config(**bundled_emulation(config.out) | {name: getattr(config, name) for name in OWN})
    passed = [*as_flags(config, shared, Emulation), *(["--resume"] if config.resume else [])]
    failed, start = {}, time.monotonic()
    for done, name in enumerate(names):
        spent = time.monotonic() - start
        left = f", about {spent / done * (len(names) - done) / 60:.0f} min left" if done else ""
        say(f"[{done + 1}/{len(names)}] {name} ({spent / 60:.1f} min so far{left})")
        began, out = time.monotonic(), config.out / name
        command = [sys.executable, str(config.scripts / f"{name}.py"), *passed, "--out", str(out)]
        line = run_child(command, out / LOG)
        if line is None and not (out / FILE).exists():
            line = f"left no {FILE}"
        if line:
            failed[name] = line
        say(f"  {name}: {f'FAILED: {line}' if line else 'done'}, {time.monotonic() - began:.0f} s")
    return failed


def known(config: Config, name: str, chosen: Sequence[str]) -> bool:
    """Whether there is a finding of this run, or an earlier one of the same model and target."""
    if name in chosen:
        return True
    with contextlib.suppress(RunError):
        settings = read_finding(config.out / name).settings
        mine = config.model_dump(mode="json", include=set(SAME))
        return all(settings.get(key) == mine[key] for key in SAME)
    return False


def say(line: str) -> None:
    """A line of progress."""
    console().print(line, markup=False, soft_wrap=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    again = shlex.join([word for word in words if word != "--resume"] + ["--resume"])
    read_config = partial(
        read_flags, Config, words, "weak_points.py", bundled_emulation(OUT), __doc__
    )
    hint = f"Go on with: python {sys.argv[0]} {again}"
    sys.exit(guarded(lambda: main(read_config()), hint))
