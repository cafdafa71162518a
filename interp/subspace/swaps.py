"""Two conditions' states at one layer: what of the difference a basis puts in, and what that does.

    swaps = read_swaps(job, PatchMove("prompt", "base"), layer=3, queries=queries)
    loss_of(job, move, swaps)(basis)            # KL(p_source ‖ p_patched), nats, and its gradient
    score_swaps(job, move, swaps, {"learned": [basis]})         # the same by query

The state put in is `h_target + R R' (h_source - h_target)` at all tokens of query and answer, `R`
`[d_model, k]` orthonormal (Geiger et al. 2303.02536). Blocks above the layer run.
TransformerLens's `fit_das` takes one position per example, one set of weights and class labels;
where it applies, its step is this one (tested).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp import edits
from interp.capture import capture, chunks, keep
from interp.edits import Change, Edit
from interp.names import Site
from interp.patching.interchange import ConditionRun, PatchMove, aligned_tokens, moved, partners
from interp.patching.patched import Patch, patched_logits
from interp.patching.sequences import sequence_kl
from interp.queries import Encoded
from interp.runs.subspaces import APART, DIFFERENCE, FULL, SHUFFLED
from interp.subject import Batch, Hook, Subject
from interp.subspace.learning import BasisLoss

Bases = Sequence[Sequence[Tensor]]
"""By dimension the bases of a kind (one, or random ones, whose effects are averaged)."""


class SwapJob(NamedTuple):
    """What states are exchanged in: the model, what precedes the queries under each condition, how
    many rows fit a forward pass, and the seed."""

    subject: Subject
    caches: Mapping[str, Any]
    rows: int
    seed: int


@dataclass(frozen=True)
class Swap:
    """A move's states on a few queries at one layer: those of source and target, and those of both
    at other queries, row by row under these. Tensors are `[query, query_pos, d_model]`."""

    layer: int
    batch: Batch
    source: ConditionRun
    target: ConditionRun
    other_source: Tensor
    other_target: Tensor

    @property
    def own(self) -> Tensor:
        """The target's states."""
        return self.target.values[Site("resid_post", self.layer)]

    @property
    def given(self) -> Tensor:
        """The source's states."""
        return self.source.values[Site("resid_post", self.layer)]

    @property
    def apart(self) -> Float[Tensor, " query"]:
        """`KL(p_source ‖ p_target)`, nats per answer."""
        return sequence_kl(self.source.logits, self.target.logits, self.batch.answer)

    @property
    def tokens(self) -> Float[Tensor, "token d_model"]:
        """What the states differ by, padding left out."""
        return self._real(self.given - self.own)

    @property
    def tokens_of_others(self) -> Float[Tensor, "token d_model"]:
        """The same of other queries' source states."""
        return self._real(self.other_source - self.own)

    def _real(self, values: Tensor) -> Tensor:
        """Those of real tokens."""
        inside = torch.arange(values.shape[1], device=values.device)
        return values[inside < self.batch.lengths[:, None]]

    def change(self, kind: str, basis: Tensor) -> Change:
        """What takes the place of the target's state."""
        if kind == SHUFFLED:
            return edits.project(basis, towards=self.other_source)
        if kind != DIFFERENCE:
            return edits.project(basis, towards=self.given)
        step, length = (
            (x @ basis) @ basis.T
            for x in (self.other_source - self.other_target, self.given - self.own)
        )
        return edits.replace(moved(self.own, step, length.norm(dim=-1, keepdim=True)))

    def edit(self, change: Change) -> Edit:
        """The same as an edit of the layer's state."""
        return Edit(Site("resid_post", self.layer), change)


def read_swaps(
    job: SwapJob, move: PatchMove, layer: int, queries: Sequence[Encoded], size: int
) -> list[Swap]:
    """The states of a move's two conditions at these queries, `size` at a time, and at their
    partners, each of which is one of these queries too."""
    number_of = partners([query.key for query in queries], job.seed)
    others = [queries[i] for i in number_of]
    found = []
    for here, there in zip(chunks(queries, size), chunks(others, size), strict=True):
        batch, other = (Batch.forced(some, job.subject.device) for some in (here, there))
        source, target = (_read(job, name, batch, layer) for name in move[:2])
        site = Site("resid_post", layer)
        unrelated = [
            aligned_tokens(_read(job, name, other, layer).values[site], here, there)
            for name in move[:2]
        ]
        found.append(Swap(layer, batch, source, target, *unrelated))
    return found


def _read(job: SwapJob, name: str, batch: Batch, layer: int) -> ConditionRun:
    """A condition's own run: its state at the layer, and what enters the block from which on a
    patched run goes."""
    subject, cache, tokens = job.subject, job.caches[name], batch.answer
    read = dict.fromkeys([Site("resid_post", layer), _entry(subject, layer)], keep)
    setting = subject.settings[name]
    got = capture(subject, setting, batch, cache, read, columns=tokens.columns)
    return ConditionRun(got.values, tokens.pick_rows(got.logits), cache)


def _entry(subject: Subject, layer: int) -> Site:
    """What enters the first block that runs when a layer's state is replaced."""
    return Site("resid_pre", min(layer + 1, subject.n_layers - 1))


# --- to learn from -------------------------------------------------------------------------------


def loss_of(
    job: SwapJob, move: PatchMove, swaps: Sequence[Swap], *, shuffled: bool = False
) -> BasisLoss:
    """Mean over queries of `KL(p_source ‖ p_patched)`, nats per answer, as a function of the basis;
    `shuffled`: the states put in are those of other queries."""
    count = sum(len(swap.batch.ids) for swap in swaps)

    def loss(basis: Tensor) -> tuple[float, Tensor]:
        total, gradient = 0.0, torch.zeros_like(basis)
        for swap in swaps:
            given = swap.other_source if shuffled else swap.given
            value, slope = _divergence(job, move, swap, given, basis)
            total, gradient = total + value / count, gradient + slope / count
        return total, gradient

    return loss


def _divergence(
    job: SwapJob, move: PatchMove, swap: Swap, given: Tensor, basis: Tensor
) -> tuple[float, Tensor]:
    """The sum over a swap's queries, and its gradient with respect to the basis."""
    subject, tokens = job.subject, swap.batch.answer
    setting = subject.settings[move.target]
    entry, site = _entry(subject, swap.layer), Site("resid_post", swap.layer)
    leaf = basis.clone().requires_grad_()

    def put_in(_: Tensor) -> Tensor:
        return swap.own + ((given - swap.own) @ leaf) @ leaf.T

    hooks: dict[Site, Hook] = {entry: put_in}
    if entry.layer == swap.layer:  # of the last layer the block itself runs
        hooks = {entry: lambda _: swap.target.values[entry].clone(), site: put_in}
    with subject.weights.values_of(setting):
        logits = subject.run(
            setting,
            swap.batch,
            copy.deepcopy(swap.target.cache),  # used up where autograd follows
            hooks,
            start=entry.layer,
            columns=tokens.columns,
            grad=True,
        )
        with torch.enable_grad():
            total = sequence_kl(swap.source.logits, tokens.pick_rows(logits), tokens).sum()
        (gradient,) = torch.autograd.grad(total, leaf)
    return float(total.detach()), gradient


# --- to score ------------------------------------------------------------------------------------


def score_swaps(
    job: SwapJob, move: PatchMove, swaps: Sequence[Swap], bases: Mapping[str, Bases]
) -> dict[str, Float[ndarray, "query k"]]:
    """`KL(p_source ‖ p_patched)` of every query, nats per answer, by kind and dimension; beside it
    `full` and `apart`, one column each. `bases`: kind -> its bases, in the order of dimensions."""
    parts = [_score(job, move, swap, bases) for swap in swaps]
    return {kind: np.concatenate([part[kind] for part in parts]) for kind in parts[0]}


def _score(
    job: SwapJob, move: PatchMove, swap: Swap, bases: Mapping[str, Bases]
) -> dict[str, Float[ndarray, "query k"]]:
    patches: list[Patch] = [[swap.edit(edits.replace(swap.given))]]
    owners: list[tuple[str, int]] = [(FULL, 0)]
    for kind, by_dimension in bases.items():
        for column, several in enumerate(by_dimension):
            for basis in several:
                patches.append([swap.edit(swap.change(kind, basis))])
                owners.append((kind, column))
    subject, tokens = job.subject, swap.batch.answer
    sums: dict[tuple[str, int], list[ndarray]] = {}
    own, setting = swap.target, subject.settings[move.target]
    for numbers, logits in patched_logits(
        subject, setting, swap.batch, own.cache, own.entries, patches, job.rows
    ):
        for number, row in zip(numbers, logits, strict=True):
            near = sequence_kl(swap.source.logits, row, tokens).cpu().numpy()
            sums.setdefault(owners[number], []).append(near)
    columns: dict[str, list[ndarray]] = {APART: [swap.apart.cpu().numpy()]}
    for (kind, _), found in sorted(sums.items()):
        columns.setdefault(kind, []).append(np.mean(found, axis=0))
    return {kind: np.stack(by_k, axis=1) for kind, by_k in columns.items()}
