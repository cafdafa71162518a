"""The memory and time of one way of working, in a process of its own; prints them as JSON.

    python benchmarks/peaks.py ours                     # the sweep of outputs, states, attention
    python benchmarks/peaks.py run_with_cache           # the workflow of `rivals.py`
    python benchmarks/peaks.py study --queries 10000    # a whole run, as it goes

`above`: the most that was in memory less what was there once the model was loaded, in GB. The
system's count of a process's most begins with its parent's, and is not used.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import tyro
from costs import Study
from reference import CACHE, SMOKE, Size, made
from rivals import Workflow

from interp.memory import peak_memory
from interp.store import FOLDER
from interp.study import run_study
from interp.subject.loading import quiet

SMALL = Size(layers=2, d_model=64, heads=4, vocabulary=128, length=6, prompt=20)
"""So small that many queries take minutes."""


def above(way: str, smoke: bool) -> dict[str, float]:
    """What one way takes above the loaded model."""
    found = made(CACHE, SMOKE if smoke else Size())
    with tempfile.TemporaryDirectory() as folder:
        run: Any
        if way == "ours":
            run = Study(found, Path(folder)).outputs_states_attention
        else:
            run = Workflow(found)
        start = time.perf_counter()
        with peak_memory(torch.device("cpu")) as memory:
            run()
        seconds = time.perf_counter() - start
    loaded, most = memory.before / 1e9, memory.most / 1e9
    return {"loaded": loaded, "above": most - loaded, "seconds": seconds}


@dataclass
class Course:
    """A run as it goes: after every chunk the queries done, seconds, and GB in use; at its end the
    peak in GB, and the bytes of its shards."""

    folder: Path
    done: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    shards: int = 0
    peak: float = 0.0

    def __call__(self, stage: str, newly: int, total: int) -> None:
        if stage == "matched":
            self.done.append(newly + (self.done[-1] if self.done else 0))
            self.seconds.append(time.perf_counter())
            self.used.append(psutil.Process().memory_info().rss / 1e9)
            files = (self.folder / FOLDER).glob("*.safetensors")
            self.shards = sum(file.stat().st_size for file in files)


def study(queries: int) -> dict[str, Any]:
    """A whole run of so many queries of a small model, without its report."""
    found = made(CACHE, Size(**vars(SMALL) | {"queries": queries}))
    with tempfile.TemporaryDirectory() as folder:
        course = Course(Path(folder) / "run")
        with peak_memory(torch.device("cpu")) as memory:
            run_study(found.experiment(course.folder), course)
        course.peak = memory.most / 1e9
    return asdict(course) | {"folder": ""}


def main(
    way: Literal["ours", "run_with_cache", "study"], /, queries: int = 1000, smoke: bool = False
) -> None:
    """Print what a way of working takes.

    Args:
        way: What runs.
        queries: How many, of `study`.
        smoke: Tiny sizes.
    """
    with quiet():
        print(json.dumps(study(queries) if way == "study" else above(way, smoke)))


if __name__ == "__main__":
    tyro.cli(main)
