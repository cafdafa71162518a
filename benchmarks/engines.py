"""How much faster are two workers of Ray, of one thread each, than one?

The whole study of the reference model is timed, from the opening of the model to the run's files,
by turns with one worker and with two on the same cores: Ray's start, the workers' imports and their
loading are in both. The time of the shards leaves all that out. Tables and
arrays must be the same bytes with every number of workers.

    python benchmarks/engines.py             # at least a minute per run; benchmarks/engines.json
    python benchmarks/engines.py --smoke     # tiny sizes: does everything run, and agree?
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; workers have as many

import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from reference import SMOKE, Reference, Size, made

from interp.runs.files import ARRAYS, TABLE
from interp.store import SHARD
from interp.study import run_study
from interp.subject.loading import quiet

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache" / "bench"
TARGET = 1.6


class Seconds(NamedTuple):
    """Of a whole study, and of its shards alone, at the pace of those after the first ones."""

    whole: float
    shards: float


def timed(found: Reference, out: Path, workers: int) -> Seconds:
    """The study with so many workers."""
    counted: list[float] = []

    def progress(stage: str, newly: int, total: int) -> None:
        if stage == "matched":
            counted.append(time.perf_counter())

    start = time.perf_counter()
    asked = found.experiment(out).model_copy(update={"engine": "ray", "workers": workers})
    with quiet():
        run_study(asked, progress)
    end = time.perf_counter()
    first = workers - 1  # every worker has opened its model once its first shard is done
    per_shard = (counted[-1] - counted[first]) / (len(counted) - workers)
    return Seconds(end - start, per_shard * len(counted))


def compared(found: Reference, rounds: int) -> dict[int, list[Seconds]]:
    """Every round's seconds by number of workers; a `ValueError` where the bytes differ."""
    seconds: dict[int, list[Seconds]] = defaultdict(list)
    bytes_of: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        for _ in range(rounds):
            for workers in (1, 2):
                seconds[workers].append(timed(found, out, workers))
                for name in (TABLE, ARRAYS):
                    content = (out / name).read_bytes()
                    if bytes_of.setdefault(name, content) != content:
                        raise ValueError(f"{name} has other bytes with {workers} workers")
    return seconds


def summary(seconds: Mapping[int, Sequence[Seconds]], size: Size) -> dict[str, Any]:
    """Ratios of medians, those of single turns, and what was measured."""
    found: dict[str, Any] = {
        "what": f"{size.layers} layers of {size.d_model}, {size.queries} queries of {size.length} "
        f"tokens, prompt of {size.prompt}; workers of one thread",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }
    for name in Seconds._fields:
        one, two = ([getattr(s, name) for s in seconds[n]] for n in (1, 2))
        found[name] = {
            "one worker": [round(s, 1) for s in one],
            "two workers": [round(s, 1) for s in two],
            "speed-up": round(statistics.median(one) / statistics.median(two), 2),
            "by turn": [round(a / b, 2) for a, b in zip(one, two, strict=True)],
        }
    return found


def main(smoke: bool = False, queries: int = 24 * SHARD, rounds: int = 1) -> None:
    """Time one worker and two by turns.

    Args:
        smoke: Tiny sizes; engines.json stays as it is.
        queries: Number of queries, in shards of 64.
        rounds: Turns.
    """
    size = replace(SMOKE, queries=4 * SHARD) if smoke else Size(queries=queries)
    found = summary(compared(made(CACHE, size), rounds), size)
    print(json.dumps(found, indent=1))
    print(f"speed-up {found['whole']['speed-up']} (target {TARGET}), the same bytes")
    if not smoke:
        (HERE / "engines.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
