"""Every edge between two conditions to first order, and some of them exactly, query by query.

    scores = trace(job, chunk)["prompt", "base"]        # [query, edge], nats
    patched = patch_edges(job, move, edges, chunk)      # the same, of a few, by running them

`sum over tokens of <w_source - w_target, gradient at the receiver's input>`: `w` is what the sender
writes, the gradient that of the answer's log-odds in the target's run (Syed et al. 2310.10348).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from interp.edges.nodes import Edge, InputNode, Sender, edges_between
from interp.edges.paths import path_effects
from interp.edges.reading import CLOSE, read_gradients
from interp.edges.writing import what_is_written
from interp.errors import SubjectError
from interp.patching.interchange import PatchMove, read_conditions
from interp.patching.sequences import targets_of
from interp.queries import Encoded
from interp.subject import Batch, Subject


class EdgeJob(NamedTuple):
    """What is traced: a model's nodes under these conditions. `speaker`: whose top token stands
    for a missing answer; `rows`: queries in one forward pass, `chunk`: taken apart at once."""

    subject: Subject
    moves: Sequence[PatchMove]
    speaker: str
    queries: Sequence[Encoded]
    caches: Mapping[str, Any]
    senders: Sequence[Sender]
    receivers: Sequence[InputNode]
    rows: int
    chunk: int

    @property
    def edges(self) -> list[Edge]:
        """All of them, receiver by receiver."""
        return edges_between(self.senders, self.receivers)

    @property
    def conditions(self) -> list[str]:
        """Those of any move."""
        return list(dict.fromkeys(name for move in self.moves for name in move[:2]))


def trace(
    job: EdgeJob, chunk: Sequence[Encoded]
) -> dict[tuple[str, str], Float[ndarray, "query edge"]]:
    """Every move's edges to first order: the change of the answer's log-odds, nats, summed over its
    tokens, in the order of `job.edges`."""
    batch = Batch.forced(chunk, job.subject.device)
    targets = answers_of(job, chunk, batch)
    written = {name: _written(job, name, batch) for name in job.conditions}
    found: dict[tuple[str, str], dict[InputNode, ndarray]] = {}
    for target in job.conditions:
        moves = [move for move in job.moves if move.target == target]
        if not moves:
            continue
        steps = {move: written[move.source] - written[target] for move in moves}
        gradients = read_gradients(
            job.subject, target, batch, job.caches[target], job.receivers, targets
        )
        for receiver, gradient in gradients:
            there = [i for i, s in enumerate(job.senders) if s.since <= receiver.at]
            for move, step in steps.items():
                score = torch.einsum("ubsd,bsd->bu", step[there], gradient)
                own = found.setdefault((move.source, move.target), {})
                own[receiver] = score.cpu().numpy()
    return {
        move: np.concatenate([scores[receiver] for receiver in job.receivers], axis=1)
        for move, scores in found.items()
    }


def answers_of(job: EdgeJob, chunk: Sequence[Encoded], batch: Batch) -> Int[Tensor, " token"]:
    """The tokens whose log-odds count."""
    setting, cache = job.subject.settings[job.speaker], job.caches[job.speaker]
    tokens = batch.answer
    logits = job.subject.run(setting, batch, cache, columns=tokens.columns)
    return targets_of(chunk, tokens.pick_rows(logits))


def _written(job: EdgeJob, name: str, batch: Batch) -> Tensor:
    """What every sender writes under a condition; a `SubjectError` where that is not all."""
    setting = job.subject.settings[name]
    found = what_is_written(job.subject, setting, batch, job.caches[name], job.senders)
    if not found.error <= CLOSE:
        raise SubjectError(
            f"{job.subject.name}: edges cannot be traced, what heads and MLPs write misses the "
            f"last state by {found.error:.1g} of it; `interp patch` measures its nodes"
        )
    return found.values


def patch_edges(
    job: EdgeJob, move: PatchMove, edges: Sequence[Edge], chunk: Sequence[Encoded]
) -> Float[ndarray, "query edge"]:
    """The exact change of the answer's log-odds, nats, by each of these edges alone."""
    batch = Batch.forced(chunk, job.subject.device)
    targets = answers_of(job, chunk, batch)
    step = _written(job, move.source, batch) - _written(job, move.target, batch)
    number = {sender: i for i, sender in enumerate(job.senders)}
    differences = {edge.sender: step[number[edge.sender]] for edge in edges}
    [own] = read_conditions(job.subject, batch, job.caches, [move.target], ()).values()
    setting = job.subject.settings[move.target]
    return path_effects(job.subject, setting, batch, own, differences, edges, targets, job.rows)
