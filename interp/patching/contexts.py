"""Contexts exchanged: the keys and values of what precedes the query, each apart or together.

    plan = Contexts.of(subject, "prefix_0", "prefix_1", caches)   # None where they cannot be
    effects = exchange(subject, plan, chunk, caches)
    context_exchange_rows(effects, scale)

Two contexts of as many tokens (two prefix tunings, a prompt under two weights) give a query as many
keys and values. One condition's are put into the other's run, in one layer or in all of them: are
keys exchangeable between tasks, and values not (2508.17032)?
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.capture import capture
from interp.edits import Edit, replace
from interp.names import Site
from interp.patching.effects import PATCHING_CONTROLS, Effects, Resampling, measured_rows
from interp.patching.interchange import (
    ConditionRun,
    PatchMove,
    effects_of,
    moved,
    partners,
    read_conditions,
)
from interp.patching.sequences import sequence_kl, sequence_odds, targets_of
from interp.patching.sites import PatchSite
from interp.queries import Encoded
from interp.statistics import generator_of
from interp.subject import Batch, Subject

EXCHANGED_PARTS = {"k": ("keys",), "v": ("values",), "kv": ("keys", "values")}
"""What is exchanged: keys, values, both."""

_ONE, _WHOLE = "context", "whole context"
"""Positions of a cell: the context in one layer, and in all of them."""


@dataclass(frozen=True)
class Contexts:
    """Two conditions with as many keys before the query, and the layers at which they are
    exchanged one by one; `every`: the layers that have keys."""

    a: str
    b: str
    layers: tuple[int, ...]
    every: tuple[int, ...]
    seed: int = 0

    @classmethod
    def of(
        cls,
        subject: Subject,
        a: str,
        b: str,
        caches: Mapping[str, Any],
        every: int = 1,
        seed: int = 0,
    ) -> Contexts | None:
        """None where there is nothing to exchange: no context, or another length, or the same."""
        layers = subject.anatomy.layers("k")
        if caches[a] is None or caches[b] is None or not layers:
            return None
        pairs = [(caches[a].layers[i], caches[b].layers[i]) for i in layers]
        if any(x.keys.shape != y.keys.shape for x, y in pairs):
            return None
        if all(torch.equal(x.keys, y.keys) and torch.equal(x.values, y.values) for x, y in pairs):
            return None
        return cls(a, b, layers[::-every][::-1], layers, seed)

    @property
    def moves(self) -> list[PatchMove]:
        """Both directions, and their controls."""
        own = [PatchMove(self.a, self.b), PatchMove(self.b, self.a)]
        return [*own, *(move._replace(control=c) for move in own for c in PATCHING_CONTROLS)]

    @property
    def cells(self) -> tuple[PatchSite, ...]:
        """Keys, values and both: in every layer by itself, and in all at once."""
        each = [
            PatchSite(site, layer, None, _ONE) for site in EXCHANGED_PARTS for layer in self.layers
        ]
        return (*each, *(PatchSite(site, self.every[0], None, _WHOLE) for site in EXCHANGED_PARTS))

    def cache(self, move: PatchMove, cell: PatchSite, caches: Mapping[str, Any]) -> Any:
        """The target's context with a cell's part of the source's in its place."""
        mixed, source = copy.deepcopy(caches[move.target]), caches[move.source]
        for layer in [cell.layer] if cell.position == _ONE else self.every:
            for part in EXCHANGED_PARTS[cell.site]:
                own, new = (getattr(c.layers[layer], part) for c in (mixed, source))
                if move.control:
                    name = f"context:{self.seed}:{part}:{layer}"
                    step = _step(own, new, move.control, name)
                    new = moved(own, step, (new - own).norm(dim=-1, keepdim=True))
                setattr(mixed.layers[layer], part, new.clone())
        return mixed


def _step(own: Tensor, new: Tensor, control: str, name: str) -> Tensor:
    """Where a control goes: anywhere, or along what the two contexts differ by at another token."""
    if control == "random_direction":
        noise = generator_of(name).standard_normal(own.shape)
        return torch.tensor(noise, device=own.device, dtype=own.dtype)
    others = partners(range(own.shape[-2]), name)
    return (new - own)[..., others, :]


def exchange(
    subject: Subject, plan: Contexts, chunk: Sequence[Encoded], caches: Mapping[str, Any]
) -> list[Effects]:
    """Every move at every cell, on one chunk of queries."""
    batch = Batch.forced(chunk, subject.device)
    tokens = batch.answer
    states = read_conditions(subject, batch, caches, (plan.a, plan.b), ())
    targets = targets_of(chunk, states[plan.b].logits)
    said = {name: own.logits for name, own in states.items()}
    found = []
    for move in plan.moves:
        measured = np.empty((len(plan.cells), 3, len(chunk)))
        for number, cell in enumerate(plan.cells):
            cache = plan.cache(move, cell, caches)
            row = _run(subject, batch, move.target, states[move.target], cell.layer, cache)
            measured[number, 0] = sequence_kl(said[move.target], row, tokens).cpu()
            measured[number, 1] = sequence_kl(said[move.source], row, tokens).cpu()
            measured[number, 2] = sequence_odds(row, targets, tokens).cpu()
        found.append(effects_of(move, plan.cells, measured, states, targets, tokens))
    return found


def _run(
    subject: Subject, batch: Batch, target: str, own: ConditionRun, layer: int, cache: Any
) -> Tensor:
    """The target's logits after another context; blocks below the layer are as they were."""
    entry = Site("resid_pre", layer)
    setting, columns = subject.settings[target], batch.answer.columns
    edits = [Edit(entry, replace(own.values[entry]))]
    got = capture(subject, setting, batch, cache, {}, edits, start=layer, columns=columns)
    return batch.answer.pick_rows(got.logits)


def context_exchange_rows(effects: Sequence[Effects], scale: Resampling) -> pd.DataFrame:
    """Damage, recovery and their controls, at position `context`; of all layers at once, the layer
    is null. `p_adjusted` as in `interp.patching.effects.effect_rows`."""
    table = measured_rows(effects, scale)
    table.loc[table["position"] == _WHOLE, "layer"] = pd.NA
    return table.assign(position=_ONE, queries="matched")
