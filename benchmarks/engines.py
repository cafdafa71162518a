"""How much faster are two workers of Ray, of one thread each, than one?

The whole study of the reference model is timed, from the opening of the model to the run's files,
by turns with one worker and with two on the same cores: Ray's start, the workers' imports and their
loading are in both. The time of the shards leaves all that out. Tables and arrays must be the same
bytes with every number of workers; with --smoke, in process too.

    python benchmarks/engines.py             # at least a minute per run
    python benchmarks/engines.py --smoke     # tiny sizes: does everything run, and agree?

A row of `benchmarks/speed.py`; the last line is JSON.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; workers have as many

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import tyro
from reference import CACHE, SMOKE, Reference, Size, made

from interp.runs.files import ARRAYS, TABLE
from interp.store import SHARD
from interp.study import run_study
from interp.subject.loading import quiet


class Seconds(NamedTuple):
    """Of a whole study, and of its shards alone, at the pace of those after the first ones."""

    whole: float
    shards: float


def timed(found: Reference, out: Path, workers: int) -> Seconds:
    """The study with so many workers; 0: in process."""
    counted: list[float] = []

    def progress(stage: str, newly: int, total: int) -> None:
        if stage == "matched":
            counted.append(time.perf_counter())

    start = time.perf_counter()
    engine = {"engine": "ray", "workers": workers} if workers else {}
    with quiet():
        run_study(found.experiment(out).model_copy(update=engine), progress)
    end = time.perf_counter()
    at_once = max(workers, 1)  # every worker has opened its model once its first shard is done
    per_shard = (counted[-1] - counted[at_once - 1]) / (len(counted) - at_once)
    return Seconds(end - start, per_shard * len(counted))


def compared(found: Reference, rounds: int, counts: Sequence[int]) -> dict[int, list[Seconds]]:
    """Every round's seconds by number of workers; a `ValueError` where the bytes differ."""
    seconds: dict[int, list[Seconds]] = defaultdict(list)
    bytes_of: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        for _ in range(rounds):
            for workers in counts:
                seconds[workers].append(timed(found, out, workers))
                for name in (TABLE, ARRAYS):
                    content = (out / name).read_bytes()
                    if bytes_of.setdefault(name, content) != content:
                        raise ValueError(f"{name} has other bytes with {workers} workers")
    return seconds


def main(smoke: bool = False, queries: int = 16 * SHARD, rounds: int = 1) -> None:
    """Time one worker and two by turns; prints the speed-up of every turn.

    Args:
        smoke: Tiny sizes, and in process too.
        queries: Number of queries, in shards of 64.
        rounds: Turns.
    """
    size = replace(SMOKE, queries=3 * SHARD) if smoke else Size(queries=queries)
    seconds = compared(made(CACHE, size), rounds, (0, 1, 2) if smoke else (1, 2))
    found = {
        name: [
            [getattr(one, name), getattr(two, name)]
            for one, two in zip(seconds[1], seconds[2], strict=True)
        ]
        for name in Seconds._fields
    }
    print(json.dumps(found))


if __name__ == "__main__":
    tyro.cli(main)
