"""Attribution patching: what every interchange would do to the answer, to first order.

    found = attribute(subject, plan, chunk, caches)         # one record per move
    attribution_rows(found, scale), agreement(found, effects)

    sum over a cell's entries of (value_source - value_target) * d log_odds(answer) / d value

The gradient is that of the target's own run, one backward pass for all cells (Nanda 2023,
neelnanda.io/mechanistic-interpretability/attribution-patching; Syed et al. 2310.10348, eq. 1).
TransformerLens's `attribution_patch` takes clean and corrupted token ids of one length in one state
of (trainable) weights and averages over examples: two conditions differ in weights or length, and
an interval needs every query. Where it applies, its node scores are these (tested).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Float
from numpy import ndarray
from scipy.stats import spearmanr
from torch import Tensor

from interp import edits
from interp.measures import wide
from interp.measures.output import log_odds
from interp.names import Site
from interp.patching.effects import Effects, Resampling, by_move, move_rows, ratio
from interp.patching.findings import plain
from interp.patching.interchange import PatchMove, Sweep, change_of, n_heads, reader_of
from interp.patching.sequences import targets_of
from interp.patching.sites import PatchSite, reached
from interp.positions import SEGMENTS, by_label
from interp.queries import Encoded
from interp.subject import Batch, Hook, Subject

_FEWEST = 3
"""Cells that a rank correlation needs at least: of two it is 1 or -1 whatever they are."""


@dataclass(frozen=True)
class Attribution:
    """What the source's values would do in the target's run: the first-order change of the answer's
    log-odds, summed over its tokens, nats. NaN where a query has no token at the cell's position.
    """

    source: str
    target: str
    cells: tuple[PatchSite, ...]
    values: Float[ndarray, "query cell"]


def attributed(subject: Subject, plan: Sweep) -> tuple[PatchSite, ...]:
    """The cells of every move: those of the sweep, and each head's `z`, at all tokens and at each
    of the sweep's segments and positions, whether or not the sweep replaces them."""
    heads = [
        PatchSite("z", site.layer, head, position)
        for position in ("all", *plan.segments, *plan.positions)
        for site in subject.anatomy.sites("z")
        for head in range(n_heads(subject, "z"))
    ]
    return tuple(dict.fromkeys([*plan.cells(subject, PatchMove(plan.a, plan.b)), *heads]))


def attribute(
    subject: Subject, plan: Sweep, chunk: Sequence[Encoded], caches: Mapping[str, Any]
) -> list[Attribution]:
    """All moves on one chunk of queries: per condition one run and its backward pass, which hold
    the activations of every layer at once."""
    batch = Batch.forced(chunk, subject.device)
    tokens = batch.answer
    cells = attributed(subject, plan)
    sites = list(dict.fromkeys(Site(cell.site, cell.layer) for cell in cells))
    columns = tokens.columns
    said = subject.run(subject.settings[plan.b], batch, caches[plan.b], columns=columns)
    targets = targets_of(chunk, tokens.pick_rows(said))
    own = {
        name: run(subject, name, batch, caches[name], sites, targets) for name in plan.conditions
    }
    found = []
    for source, target, control in plan.moves:
        if not control:
            flows = {site: _flow(plan, site, own[source], own[target], batch) for site in sites}
            values = _by_cell(flows, cells, chunk)
            found.append(Attribution(source, target, cells, values))
    return found


class _Run(NamedTuple):
    """A condition's values, and the gradient of the answers' log-odds with respect to them, as the
    model lays them out."""

    values: dict[Site, Tensor]
    gradients: dict[Site, Tensor]


def run(
    subject: Subject, name: str, batch: Batch, cache: Any, sites: Sequence[Site], targets: Tensor
) -> _Run:
    """A condition's own run and one backward pass, `targets` `[token]` the answers' tokens: the sum
    over the batch has every query's own gradient. No parameter gets one."""
    setting, entry = subject.settings[name], Site("resid_pre", 0)
    values: dict[Site, Tensor] = {}

    def reading(site: Site) -> Hook:
        def hook(value: Tensor) -> Tensor:
            begun = value.detach().requires_grad_() if site == entry else value
            # The model goes on with what a hook returns, not with what it sees; and a view of that
            # would change with it where the result is written in place (`resid_mid`).
            values[site] = begun.clone()
            return values[site]

        return hook

    hooks = {site: reading(site) for site in dict.fromkeys([entry, *sites])}
    cache = copy.deepcopy(cache)  # used up where autograd follows
    tokens = batch.answer
    with subject.weights.values_of(setting):
        logits = subject.run(setting, batch, cache, hooks, columns=tokens.columns, grad=True)
        with torch.enable_grad():
            total = log_odds(tokens.pick_rows(logits), targets).sum()
        gradients = torch.autograd.grad(total, [values[site] for site in sites])
    read = {site: values[site].detach() for site in sites}
    return _Run(read, dict(zip(sites, gradients, strict=True)))


def _flow(
    plan: Sweep, site: Site, source: _Run, target: _Run, batch: Batch
) -> Float[ndarray, "batch head query_pos"]:
    """Change times gradient, summed over everything but heads (one where a site has none) and
    positions; 0 at padding."""
    given = reader_of(site.name, plan.pattern)(source.values[site])
    own, gradient = (_heads_first(site, by[site]) for by in (target.values, target.gradients))
    new = change_of(site.name, plan.pattern, given)(own)
    flow = ((wide(new) - wide(own)) * wide(gradient)).sum(-1)
    flow = flow if flow.ndim == 3 else flow[:, None]
    inside = torch.arange(flow.shape[-1], device=flow.device) < batch.lengths[:, None, None]
    return flow.where(inside, 0.0).cpu().numpy().astype(np.float64)


def _heads_first(site: Site, value: Tensor) -> Tensor:
    return rearrange(value, "b s h d -> b h s d") if site.name in edits.BY_HEAD else value


# --- without torch -------------------------------------------------------------------------------


def _by_cell(
    flows: Mapping[Site, Float[ndarray, "batch head query_pos"]],
    cells: Sequence[PatchSite],
    chunk: Sequence[Encoded],
) -> Float[ndarray, "batch cell"]:
    """Sums over every cell's heads and positions; NaN where a query has none of the latter."""
    labels = list(dict.fromkeys(cell.position for cell in cells))
    weights = np.stack([reached(chunk, label) for label in labels], axis=-1).astype(np.float64)
    absent = np.where(weights.any(1), 0.0, np.nan)[:, None]
    sums = {site: by_label(flow, weights) + absent for site, flow in flows.items()}
    taken = []
    for cell in cells:
        here = sums[Site(cell.site, cell.layer)][..., labels.index(cell.position)]
        taken.append(here.sum(-1) if cell.head is None else here[:, cell.head])
    return np.stack(taken, axis=-1)


def attribution_rows(found: Sequence[Attribution], scale: Resampling) -> pd.DataFrame:
    """Rows of a run's table: measure `attribution`, mean over queries and its interval, nats."""
    parts = [
        move_rows(
            (own.source, own.target),
            own.cells,
            "attribution",
            ratio(own.values, 1.0, scale).compute(),
        )
        for own in found
    ]
    return pd.concat(parts, ignore_index=True).assign(queries="matched")


def agreement(found: Sequence[Attribution], effects: Sequence[Effects]) -> list[dict[str, Any]]:
    """How far attribution ranks the places of a site as the interchange itself does: Spearman's
    correlation of the mean first-order and the mean exact change of the answer's log-odds, over
    layers, over heads, over either at all segments, and over single positions (of all layers). None
    below three places, or where one ranking is flat."""
    exact = by_move(effects)
    records = []
    for own in found:
        done = exact[own.source, own.target, ""]
        change = dict(zip(done.cells, (done.log_odds - done.target_odds[:, None]).T, strict=True))
        estimate = dict(zip(own.cells, own.values.T, strict=True))
        groups: dict[tuple[str, str], list[PatchSite]] = {}
        for cell in done.cells:
            groups.setdefault((cell.site, _by(cell)), []).append(cell)
        for (site, by), cells in groups.items():
            x, y = ([np.nanmean(of[cell]) for cell in cells] for of in (estimate, change))
            record = {"source": own.source, "target": own.target, "site": site, "by": by}
            records.append(plain({**record, "cells": len(cells), "spearman": spearman(x, y)}))
    return records


def _by(cell: PatchSite) -> str:
    """What distinguishes a cell from the others of its site."""
    by = "layer" if cell.head is None else "head"
    if cell.position in SEGMENTS:
        return f"{by} and segment"
    return by if cell.position == "all" else "position"


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation, ties sharing their mean rank, in [-1, 1]; NaN below three values, where one
    side is flat or a value is NaN."""
    flat = len(set(x)) == 1 or len(set(y)) == 1
    if len(x) < _FEWEST or flat or np.isnan([x, y]).any():
        return np.nan
    return float(spearmanr(x, y).statistic)
