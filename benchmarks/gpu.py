"""What a sweep costs on a GPU, over the bare passes there; no figure where there is none.

Random models in the shape of 0.6 and 7 billion parameters, 512 queries, weights in bfloat16 and in
float32. Peak memory is that of the device, of its tensors alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from bare import Bare
from costs import Study
from reference import CACHE, SMOKE, Reference, Size, made
from timing import PRINTED, Row, Setup, at_most, by_turns, figure, ratio

from interp.memory import peak_memory

SHAPES = {
    "0.6B": Size(28, 1024, 16, vocabulary=151_936, queries=512, prompt=64),
    "7B": Size(32, 4096, 32, vocabulary=32_000, queries=512, prompt=64, tied=False),
}
DTYPES = ("bfloat16", "float32")


def rows(setup: Setup) -> Iterator[Row]:
    """Sweep of outputs, states and attention over the bare pass, and what it holds at most. A smoke
    test takes tiny sizes, and the CPU where there is no GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, size in ({"a tiny model": SMOKE} if setup.smoke else SHAPES).items():
        for dtype in DTYPES:
            words = f"{device if setup.smoke else 'GPU'}, {name} in {dtype}, {size.queries} queries"
            what = f"{words}: sweep of outputs, states, attention"
            if device == "cpu" and not setup.smoke:
                yield Row.skipped(what, at_most(1.5), "not measured: no cuda device here")
                continue
            found = made(CACHE, size, device)
            found = replace(found, fields={"device": device, "dtype": dtype, "memory": 8.0})
            yield from _measured(setup, found, what, words)


def _measured(setup: Setup, found: Reference, what: str, words: str) -> Iterator[Row]:
    device = torch.device(found.fields["device"])
    bare, study = Bare.of(found), Study(found, setup.folder)
    used: list[float] = []

    def sweep() -> None:
        with peak_memory(device) as memory:
            study.outputs_states_attention()
        used.append((memory.most - memory.before) / 1e9)

    seconds = by_turns(setup, bare=_waited(bare, device), sweep=_waited(sweep, device))
    above = max(statistics.median(used), 1e-3)
    yield ratio(what, seconds["sweep"], seconds["bare"], at_most(1.5))
    yield figure(f"{words}: peak memory above the model, GB", [above], PRINTED)


def _waited(way: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """The same, until the device is done."""

    def run() -> None:
        way()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run
