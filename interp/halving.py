"""Batches that halve where memory runs out: what is lost is one attempt, never a result.

    batches = Halving(size=64)
    tally = batches.measured(range(64), measure)        # measure(numbers) -> Tally
    sizes_of(tally)                     # {32: 64}: batch size -> queries that were measured at it

A batch that does not fit is tried again in halves, and all that come after are as small. The size
that a query was measured at is kept beside its measures, so that a resumed run knows it too.
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from interp.errors import RunError
from interp.measures.tally import Key, Tally, absorb_
from interp.memory import is_out_of_memory
from interp.statistics import PerQuery

_SIZES = Key("batch_size", "", "", "")

_LESS = (
    "ask for fewer measures (--preset quick, --measures), shorten the prompt or the queries, take "
    "--dtype bfloat16, or a device with more memory"
)


class Halving:
    """Batches of at most `size` queries, which becomes smaller where memory runs out."""

    def __init__(self, size: int) -> None:
        self.size = size

    def measured(self, numbers: Sequence[int], measure: Callable[[Sequence[int]], Tally]) -> Tally:
        """What `measure` makes of the queries of these numbers, so many at a time as fit; a
        `RunError` where one alone does not."""
        total: Tally = {}
        done = 0
        while done < len(numbers):
            part = numbers[done : done + self.size]
            found = _attempt(measure, part)
            if found is None:
                self._halve(len(part))
            else:
                sizes = np.full((len(part), 1), float(self.size))
                absorb_(total, {**found, _SIZES: PerQuery.of(part, sizes)})
                done += len(part)
        return total

    def _halve(self, failed: int) -> None:
        if failed == 1:
            raise RunError(f"memory ran out on a single query: {_LESS}")
        self.size = failed // 2
        logging.getLogger("interp").warning(
            "memory ran out on %d queries at once: going on with %d", failed, self.size
        )
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _attempt(measure: Callable[[Sequence[int]], Tally], part: Sequence[int]) -> Tally | None:
    """None where memory runs out. What the attempt held is free once this returns: the error, whose
    traceback holds it, is gone."""
    try:
        return measure(part)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    return None


def sizes_of(tally: Tally) -> dict[int, int]:
    """Batch size -> how many queries were measured at it, the largest first."""
    kept = tally[_SIZES]
    assert isinstance(kept, PerQuery)
    counts = Counter(kept.compute()[:, 0].astype(int).tolist())
    return dict(sorted(counts.items(), reverse=True))


@contextmanager
def memory_errors() -> Iterator[None]:
    """Where memory runs out inside, outside of all batches, is a `RunError` of one line."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        said = " ".join(str(error).split())[:160]
        raise RunError(f"memory ran out ({said}): {_LESS}") from error
