"""Rows of the table of costs: two ways of one piece of work, timed by turns.

    seconds = by_turns(Setup(folder, rounds=3, smoke=False), ours=study.everything, bare=bare)
    ratio("sweep", seconds["ours"], seconds["bare"], at_most(2))

A cost is the ratio of the medians, its spread that of the turns.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from reference import CACHE, SMOKE, Reference, Size, made


@dataclass(frozen=True)
class Setup:
    """Where rows may write, how many turns count, and whether sizes are tiny."""

    folder: Path
    rounds: int
    smoke: bool

    @property
    def size(self) -> Size:
        """Of the reference."""
        return SMOKE if self.smoke else Size()

    def reference(self, **changes: int) -> Reference:
        """The reference, with other sizes where given."""
        return made(CACHE, Size(**vars(self.size) | changes))


class Target(NamedTuple):
    """A bound on a figure; without one it is only printed."""

    sign: str = ""
    bound: float = math.nan

    def __str__(self) -> str:
        return f"{self.sign} {self.bound:g}" if self.sign else "printed"

    def met(self, value: float) -> str:
        """yes, no, or nothing where there is no bound."""
        if not self.sign:
            return ""
        good = value <= self.bound if self.sign in "≤<" else value >= self.bound
        return "yes" if good else "no"


def at_most(bound: float) -> Target:
    return Target("≤", bound)


def at_least(bound: float) -> Target:
    return Target("≥", bound)


PRINTED = Target()


class Row(NamedTuple):
    """A line of the table: what is measured, the figure with the ends of its turns, the target. A
    row that could not be measured has no figure; its note says why."""

    what: str
    value: float
    low: float
    high: float
    target: Target
    note: str = ""

    @classmethod
    def skipped(cls, what: str, target: Target, why: str) -> Row:
        """A row without a figure."""
        return cls(what, math.nan, math.nan, math.nan, target, why)

    @property
    def measured(self) -> bool:
        return not math.isnan(self.value)


def by_turns(
    setup: Setup, *, warm: bool = True, **ways: Callable[[], Any]
) -> dict[str, list[float]]:
    """Seconds of every way in every round. A first round, which does not count, warms up; a way
    that starts a process of its own, or takes minutes, needs none."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    first = -1 if warm and not setup.smoke else 0
    for turn in range(first, setup.rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(
    what: str, own: Sequence[float], other: Sequence[float], target: Target, note: str = ""
) -> Row:
    """The ratio of two medians, and that of the turns."""
    turns = [a / b for a, b in zip(own, other, strict=True)]
    middle = statistics.median(own) / statistics.median(other)
    seconds = f"{statistics.median(own):.3g} s over {statistics.median(other):.3g} s"
    return Row(what, middle, min(turns), max(turns), target, f"{seconds}; {note}".rstrip("; "))


def figure(what: str, values: Sequence[float], target: Target, note: str = "") -> Row:
    """The median of some figures, and their ends."""
    return Row(what, statistics.median(values), min(values), max(values), target, note)


def interp(*words: str) -> None:
    """Run the command in a process of its own; what it says where it fails."""
    command = [sys.executable, "-m", "interp", *words]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"interp {words[0]} failed: {(ran.stderr or ran.stdout).strip()[-500:]}")


def diverge(found: Reference, out: Path) -> None:
    """The whole command on a reference, from its start to its report."""
    words = ["--model", found.model, "--adapter", *found.loras, "--queries", str(found.queries)]
    role = "--system-file" if found.fields.get("chat") else "--prompt-file"
    words += [role, str(found.prompt_file), "--controls", "neutral", "--out", str(out)]
    for name, value in found.fields.items():
        flag = name.replace("_", "-")
        words += [f"--no-{flag}"] if value is False else [f"--{flag}"]
        words += [] if isinstance(value, bool) else [str(value)]
    interp("diverge", *words, "--overwrite", "--device", "cpu")


def child(file: str, *words: str) -> Any:
    """What another script of this folder prints as its last line, in JSON."""
    command = [sys.executable, str(Path(__file__).with_name(file)), *words]
    ran = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    if ran.returncode:
        raise SystemExit(f"{file} {' '.join(words)} failed: {ran.stderr.strip()[-500:]}")
    return json.loads(ran.stdout.splitlines()[-1])
