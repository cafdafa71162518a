"""How many heads together carry a behaviour? Greedy joint patching into base.

Heads are added one by one, each time the one that helps most on one half of the queries; what they
recover is measured on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from interp.names import Head
from interp.patching.effects import Resampling
from interp.patching.interchange import PatchMove
from interp.patching.joint import approach, divided, heads_replaced
from interp.queries import Encoded
from interp.subject import Subject

_GOAL = 0.9
"""Recovery that counts as all of it."""

_Recovered = Callable[[Sequence[Sequence[Head]]], Float[ndarray, " set"]]


def search_heads(
    recovered: _Recovered, candidates: Sequence[Head], goal: float = _GOAL
) -> list[Head]:
    """Heads in the order in which they were added, until `goal` is reached or none helps more."""
    chosen: list[Head] = []
    reached = 0.0
    while reached < goal and len(chosen) < len(candidates):
        left = [head for head in candidates if head not in chosen]
        found = recovered([[*chosen, head] for head in left])
        best = int(np.nanargmax(found))
        if found[best] <= reached:
            break
        chosen.append(left[best])
        reached = float(found[best])
    return chosen


class _Joint(NamedTuple):
    """Heads that were added one by one, and on the other half of the queries the `recovery` after
    each, with 95 % intervals; `all_heads`: of every head at once, which leaves only what the MLPs
    and the embedding do themselves. `enough`: how many heads reach the `goal` there; None: these
    do not. `n`: queries scored."""

    source: str
    target: str
    heads: list[str]
    recovery: list[float]
    ci_low: list[float]
    ci_high: list[float]
    all_heads: float
    goal: float
    enough: int | None
    n: int


def greedy_heads(
    subject: Subject,
    move: PatchMove,
    queries: Sequence[Encoded],
    caches: Mapping[str, Any],
    rows: int,
    candidates: Sequence[Head],
    selection: Bool[ndarray, " query"],
    scale: Resampling,
) -> _Joint:
    """Search among `candidates` on the queries of `selection`, score on the others."""
    here, there = divided(queries, selection)
    run = partial(approach, subject, move, caches=caches, rows=rows)
    chosen = search_heads(lambda sets: run(here, patches=heads_replaced(sets)).recovery, candidates)
    everyone = [Head(i, j) for i in subject.anatomy.layers("z") for j in range(subject.n_heads)]
    steps = [chosen[: i + 1] for i in range(len(chosen))]
    found = run(there, patches=heads_replaced([*steps, everyone]))
    estimate = found.estimate(scale.half(~selection))
    value, low, high = (column[:, 0].tolist() for column in estimate[:3])
    enough = next((i + 1 for i, v in enumerate(value[:-1]) if v >= _GOAL), None)
    return _Joint(
        move.source,
        move.target,
        [str(head) for head in chosen],
        value[:-1],
        low[:-1],
        high[:-1],
        value[-1],
        _GOAL,
        enough,
        len(there),
    )
