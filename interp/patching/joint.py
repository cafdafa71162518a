"""Several edits together in one condition's run: how near does it come to another's output?

approach(subject, Move("prompt", "base"), queries, caches, rows, heads_replaced([[Head(3, 1)]]))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from interp import edits
from interp.capture import chunks
from interp.edits import Edit
from interp.names import Head, Site
from interp.patching.effects import Resampling, ratio
from interp.patching.interchange import ConditionRun, PatchMove, read_conditions
from interp.patching.patched import Patch, patched_logits
from interp.patching.sequences import sequence_kl
from interp.queries import Encoded
from interp.statistics import Estimate
from interp.subject import Batch, Subject

_Patches = Callable[[ConditionRun, Batch], list[Patch]]
"""Patches of a run, made of the source's states (its `z`) on a batch of queries."""


class _Approach(NamedTuple):
    """`to_source`: `KL(p_source ‖ p_patched)`; `apart`: `KL(p_source ‖ p_target)`; nats per answer,
    summed over its tokens."""

    to_source: Float[ndarray, "query patch"]
    apart: Float[ndarray, " query"]

    @property
    def recovery(self) -> Float[ndarray, " patch"]:
        """`1 - sum of to_source / sum of apart`; NaN where nothing is apart."""
        return 1 - self.to_source.sum(0) / (self.apart.sum() or np.nan)

    def estimate(self, scale: Resampling) -> Estimate:
        """The same with its interval, `[patch, 1]`."""
        apart = np.broadcast_to(self.apart[:, None], self.to_source.shape)
        return ratio(apart - self.to_source, apart, scale).compute()


def divided(
    queries: Sequence[Encoded], selection: Bool[ndarray, " query"]
) -> tuple[list[Encoded], list[Encoded]]:
    """The queries that select, and those that score."""
    here = [query for query, keep in zip(queries, selection, strict=True) if keep]
    return here, [query for query, keep in zip(queries, selection, strict=True) if not keep]


def approach(
    subject: Subject,
    move: PatchMove,
    queries: Sequence[Encoded],
    caches: Mapping[str, Any],
    rows: int,
    patches: _Patches,
) -> _Approach:
    """Run the move's target under every patch; `rows` query rows fit one forward pass."""
    found, apart = [], []
    for chunk in chunks(queries, rows):
        batch = Batch.forced(chunk, subject.device)
        tokens = batch.answer
        source = read_conditions(subject, batch, caches, [move.source], ["z"])[move.source]
        own = read_conditions(subject, batch, caches, [move.target], [])[move.target]
        made = patches(source, batch)
        near = np.empty((len(chunk), len(made)))
        setting = subject.settings[move.target]
        for numbers, logits in patched_logits(
            subject, setting, batch, own.cache, own.entries, made, rows
        ):
            for number, row in zip(numbers, logits, strict=True):
                near[:, number] = sequence_kl(source.logits, row, tokens).cpu()
        found.append(near)
        apart.append(sequence_kl(source.logits, own.logits, tokens).cpu().numpy())
    return _Approach(np.concatenate(found), np.concatenate(apart))


def heads_replaced(sets: Sequence[Sequence[Head]]) -> _Patches:
    """Per set of heads one patch: their `z` is the source's at every query token."""

    def patches(source: ConditionRun, _: Batch) -> list[Patch]:
        return [[_replaced(source, head) for head in heads] for heads in sets]

    return patches


def _replaced(source: ConditionRun, head: Head) -> Edit:
    site = Site("z", head.layer)
    return Edit(site, edits.replace(source.values[site][:, head.head]), head.head)
