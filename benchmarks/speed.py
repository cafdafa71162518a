"""What does a study cost, beside the bare passes it needs and beside other libraries?

The bare pass is plain Hugging Face (eager attention) and peft: base, a prompt, neutral text of its
length and two LoRAs, what precedes the query computed once, all queries in one batch. Both sides
of a row are timed in this one run by turns, with the same threads; a cost is the ratio of their
medians, and its spread that of the single turns.

    python benchmarks/speed.py                     # the table; writes benchmarks/RESULTS.md
    python benchmarks/speed.py --only whole chat   # some groups of rows, printed only
    python benchmarks/speed.py --smoke             # tiny sizes: is every figure produced?
"""

from __future__ import annotations

import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import costs
import gpu
import growth
import rivals
import torch
import transformers
import tyro
from timing import Row, Setup

from interp.subject.loading import quiet

RESULTS = Path(__file__).resolve().with_name("RESULTS.md")

Group = Literal[
    "sweeps",
    "whole",
    "chat",
    "small",
    "cached",
    "nnsight",
    "long_prompt",
    "growth",
    "keys",
    "load",
    "engines",
    "gpu",
]
GROUPS: dict[Group, Callable[[Setup], Iterator[Row]]] = {
    "sweeps": costs.sweeps,
    "small": costs.small,
    "load": costs.loading,
    "whole": costs.whole,
    "long_prompt": costs.long_prompt,
    "nnsight": rivals.nnsight,
    "keys": growth.keys,
    "cached": rivals.run_with_cache,
    "engines": costs.engines,
    "growth": growth.queries,
    "gpu": gpu.rows,
    "chat": costs.chat,
}


def main(only: tuple[Group, ...] = (), smoke: bool = False, rounds: int = 3) -> None:
    """Time everything by turns.

    Args:
        only: Groups of rows (none: all, and RESULTS.md is written after each).
        smoke: Tiny sizes and one round; RESULTS.md stays as it is.
        rounds: Turns that count.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, quiet():
        setup = Setup(Path(folder), 1 if smoke else rounds, smoke)
        rows: list[Row] = []
        for name in only or tuple(GROUPS):
            rows += _measured(name, setup)
            if not (smoke or only):
                RESULTS.write_text(table(rows, setup))
    print(table(rows, setup), f"in {(time.perf_counter() - start) / 60:.1f} minutes", sep="\n")
    if smoke:
        check(rows)


def _measured(name: Group, setup: Setup) -> list[Row]:
    """The rows of a group; says how long they took."""
    start = time.perf_counter()
    rows = list(GROUPS[name](setup))
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return rows


def check(rows: Sequence[Row]) -> None:
    """Every figure is there, a positive number; a row that was left out says why."""
    for row in rows:
        if not row.measured and not row.note:
            raise SystemExit(f"{row.what}: no figure, and no reason")
        if row.measured and not all(0 < x < math.inf for x in (row.value, row.low, row.high)):
            raise SystemExit(f"{row.what}: {row.value} ({row.low} to {row.high}) is no figure")


def table(rows: Sequence[Row], setup: Setup) -> str:
    """The results as Markdown."""
    size = setup.size
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}"
    )
    shape = (
        f"{size.layers} layers of {size.d_model}, {size.queries} queries of {size.length} tokens, "
        f"prompt of {size.prompt}, base, prompt, neutral text, {size.loras} LoRAs"
    )
    return "\n".join(
        [
            "# What a study costs",
            "",
            "Written by `make bench` (`benchmarks/speed.py`): ratios of medians, in brackets the",
            f"turns ({setup.rounds} each). Reference: {shape}.",
            f"Machine: {machine}.",
            "",
            "| what | figure (turns) | target | met | |",
            "| --- | --- | --- | --- | --- |",
            *map(_line, rows),
            "",
        ]
    )


def _line(row: Row) -> str:
    shown, met = "-", ""
    if row.measured:
        shown = f"{row.value:.2f} ({row.low:.2f} to {row.high:.2f})"
        met = row.target.met(row.value)
    return f"| {row.what} | {shown} | {row.target} | {met} | {row.note} |"


if __name__ == "__main__":
    tyro.cli(main)
