"""Many edits of one condition's run, at the price of the layers above them.

    for numbers, logits in patched_logits(subject, setting, batch, cache, own, patches, rows=2048):
        logits[i]                   # [token, d_vocab], `batch.answer` under patches[numbers[i]]

The state that enters the first edited block is the run's own, kept from before: blocks below it are
not run again, and neither is the prefix. Patches that begin at the same block ride in one batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from interp import edits
from interp.conditions import Setting
from interp.edits import Edit, PlacedEdit
from interp.names import Site
from interp.subject import Batch, Subject

Patch = Sequence[Edit]
"""Edits that act together in one run."""


def patched_logits(
    subject: Subject,
    setting: Setting,
    batch: Batch,
    cache: Any,
    own: Mapping[Site, Tensor],
    patches: Sequence[Patch],
    rows: int,
) -> Iterator[tuple[list[int], Tensor]]:
    """Run a setting once per patch: numbers of the patches, and logits `[patch, token, d_vocab]` at
    the tokens that predict the answers (`batch.answer`).

    `cache` is `subject.prefill(setting)`, `own` the setting's own `resid_pre` of every layer
    `[batch, query_pos, d_model]`, `rows` how many queries fit one forward pass.
    """
    entered = [[_at_entry(edit, subject.n_layers) for edit in patch] for patch in patches]
    starts = [min(edit.site.layer for edit in patch) for patch in entered]
    order = sorted(range(len(patches)), key=starts.__getitem__)
    most = max(1, rows // len(batch.ids))
    for start, group in groupby(order, key=starts.__getitem__):
        numbers = list(group)
        for first in range(0, len(numbers), most):
            some = numbers[first : first + most]
            stacked = [entered[number] for number in some]
            yield some, _stack(subject, setting, batch, cache, own, stacked, start)


def moves_output(subject: Subject, setting: Setting, batch: Batch, cache: Any, site: str) -> bool:
    """Whether what is put at a site moves the model's output: some go on with their own value."""
    nothing = edits.hooks(
        PlacedEdit(Edit(own, edits.zero_ablation())) for own in subject.sites(site)
    )
    plain, without = (subject.run(setting, batch, cache, hooks) for hooks in ({}, nothing))
    return not torch.equal(plain, without)


def _at_entry(edit: Edit, n_layers: int) -> Edit:
    """What leaves a block enters the next one: edited there, the block itself need not run."""
    site = edit.site
    if site.name == "resid_post" and site.layer + 1 < n_layers:
        return replace(edit, site=Site("resid_pre", site.layer + 1))
    return edit


def _stack(
    subject: Subject,
    setting: Setting,
    batch: Batch,
    cache: Any,
    own: Mapping[Site, Tensor],
    patches: Sequence[Patch],
    start: int,
) -> Tensor:
    """One forward pass from block `start` on, every patch on a copy of the batch."""
    size, copies = len(batch.ids), len(patches)
    entry = Site("resid_pre", start)
    placed = []
    if start:
        before = own[entry].repeat(copies, 1, 1)
        placed.append(PlacedEdit(Edit(entry, edits.replace(before))))
    placed += [
        PlacedEdit(edit, slice(i * size, (i + 1) * size))
        for i, patch in enumerate(patches)
        for edit in patch
    ]
    many = batch.repeat(copies)
    tokens = many.answer
    logits = subject.run(
        setting, many, cache, edits.hooks(placed), start=start, columns=tokens.columns
    )
    return tokens.pick_rows(logits).unflatten(0, (copies, -1))
