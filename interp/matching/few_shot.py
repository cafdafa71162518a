"""Which demonstrations make the model say what another condition says? Greedy forward selection.

chosen = select(scorer, [shot_ids, ...], most=4)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from interp.conditions.placing import TokenIds
from interp.matching.prefixes import Scorer
from interp.progress import StepProgress


class _Chosen(NamedTuple):
    """Numbers of the demonstrations in the order in which they stand, and the loss after each was
    added; the last added stands first: nearest to the query is what helped most alone."""

    shots: list[int]
    loss: float
    history: list[float]


def select(
    scorer: Scorer,
    written: Callable[[list[int]], TokenIds],
    among: int,
    most: int,
    progress: StepProgress = lambda step, loss, best: None,
) -> _Chosen:
    """Of `among` demonstrations add the one that helps most, until none helps or there are `most`;
    `written` gives the token ids of some of them, in their order."""
    chosen: list[int] = []
    history: list[float] = []
    while len(chosen) < min(most, among):
        left = [i for i in range(among) if i not in chosen]
        tried = [[i, *chosen] for i in left]
        losses = scorer.losses([written(some) for some in tried])
        best = int(losses.argmin())
        if history and float(losses[best]) >= history[-1]:
            break
        chosen, loss = tried[best], float(losses[best])
        history.append(loss)
        progress(len(history), loss, loss)
    return _Chosen(chosen, history[-1], history)
