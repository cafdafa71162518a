"""What grows: memory and time with the number of queries, time with the prompt's length."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from costs import Study
from timing import PRINTED, Row, Setup, at_most, child, figure

from interp.batch import Batch
from interp.capture import capture
from interp.names import Site

MANY = 100_000
"""Queries that a run may have."""


def queries(setup: Setup) -> Iterator[Row]:
    """A small model on few and on thirty times as many queries. Memory: the peak of the longer run,
    and what it would be with many more, as fast as memory in use grew in the run's second half,
    over the peak of the shorter. Time: a query's at the run's end over its beginning."""
    few, more = (64, 512) if setup.smoke else (1000, 30_000)
    runs = {n: child("peaks.py", "study", "--queries", str(n)) for n in (few, more)}
    small, large = (runs[n]["peak"] for n in (few, more))
    half = len(runs[more]["done"]) // 2
    slope = float(np.polyfit(runs[more]["done"][half:], runs[more]["used"][half:], 1)[0])
    grown = (large + max(slope, 0.0) * (MANY - more)) / small
    note = (
        f"{small:.3f} GB at {few:,}, {large:.3f} GB at {more:,}, then {1e6 * slope:+.2g} kB a query"
    )
    words = f"peak memory of a run of {MANY:,} queries (extrapolated), over {few:,}"
    yield figure(words, [grown], at_most(1.05), note)
    first, last = _paces(runs[more])
    early, late = (1e3 * statistics.median(part) for part in (first, last))
    note = f"{late:.3g} ms over {early:.3g} ms, medians of {len(first)} parts"
    words = f"time per query at the end over the beginning of {more:,}"
    turns = [b / a for a, b in zip(first, last, strict=True)]
    yield Row(words, late / early, min(turns), max(turns), at_most(1.1), note)
    note = "on disk until the run is done, in MB"
    by_shard = runs[more]["shards"] / 1e6 / more * 64
    yield figure("shards of 64 queries of that small model", [by_shard], PRINTED, note)


def _paces(run: dict[str, Sequence[float]], parts: int = 3) -> tuple[list[float], list[float]]:
    """Seconds per query in some parts of a run's first and of its second half."""
    done, seconds = np.array(run["done"]), np.array(run["seconds"])
    cuts = np.linspace(0, len(done) - 1, 2 * parts + 1).astype(int)
    paces = (np.diff(seconds[cuts]) / np.diff(done[cuts])).tolist()
    return paces[:parts], paces[parts:]


def keys(setup: Setup) -> Iterator[Row]:
    """Residual stream and patterns of every layer behind prompts of growing length: seconds per
    query row and key behind the longest, over those behind one of an eighth."""
    lengths = (20, 40, 160, 320) if setup.smoke else (64, 256, 1024, 4096, 8192)
    seconds = {length: _per_row(setup, length) for length in lengths}
    middle = [statistics.median(turns) for turns in seconds.values()]
    exponent = np.polyfit(np.log(lengths), np.log(middle), 1)[0]
    longest, eighth = lengths[-1], lengths[-1] // 8
    turns = [b / a / 8 for a, b in zip(seconds[eighth], seconds[longest], strict=True)]
    of_row = ", ".join(
        f"{1e3 * row:.3g} ms at {n:,}" for n, row in zip(lengths, middle, strict=True)
    )
    note = f"a row: {of_row}; exponent over all {exponent:.2f}"
    words = f"capture per query row and key: prompt of {longest:,} over {eighth:,}"
    yield figure(words, turns, at_most(1.1), note)


def _per_row(setup: Setup, length: int) -> list[float]:
    """Seconds per query row behind a prompt of this length, turn by turn."""
    study = Study(setup.reference(prompt=length, queries=4, loras=1), setup.folder)
    subject = study.subject
    setting = subject.settings["prompt"]
    cache = subject.prefill(setting)
    batch = Batch.of(study.prepared.groups["matched"])
    read = {
        Site(name, layer): torch.clone
        for layer in range(subject.n_layers)
        for name in ("pattern", "resid_post")
    }
    seconds = []
    for _ in range(setup.rounds + 1):
        start = time.perf_counter()
        capture(subject, setting, batch, cache, read)
        seconds.append((time.perf_counter() - start) / batch.ids.numel())
    return seconds[1:]
