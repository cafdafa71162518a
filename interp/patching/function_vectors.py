"""Function vectors: the mean of what some heads write under a condition, added into base's run.

A vector in place of the whole condition (Todd et al. 2310.15213): the heads that carry most are
chosen, and their writes averaged, on one half of the queries; the vector is added to base's
residual stream at the last token before the answer, layer by layer, and scored on the other half
by what it does to the whole answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from interp import edits
from interp.capture import chunks
from interp.conditions import Setting
from interp.edits import Edit
from interp.influence import Frozen
from interp.names import Head, Site
from interp.patching.effects import Resampling
from interp.patching.interchange import ConditionRun, PatchMove, read_conditions
from interp.patching.joint import approach, divided
from interp.patching.patched import Patch
from interp.queries import Encoded
from interp.registry import MEASURES
from interp.statistics import generator_of
from interp.subject import Batch, Subject

_VECTORS = ("function_vector_recovery", "function_vector_null", "function_vector_random")
"""The condition's vector; base's own, of the same heads; a random one as long as the first."""


def written_to_stream(
    subject: Subject,
    setting: Setting,
    z: Mapping[int, Float[Tensor, "batch head d_head"]],
    heads: Sequence[Head],
) -> Float[Tensor, "batch d_model"]:
    """What these heads add to the residual stream, given every layer's `z`, under the setting's
    weights: by the live output projection, without its bias; under a post-norm (Gemma) with that
    norm's scale frozen at what the whole layer writes."""
    total = torch.zeros(())
    for layer in sorted({head.layer for head in heads}):
        block, values = subject.blocks[layer], z[layer]
        chosen = [head.head for head in heads if head.layer == layer]
        masked = torch.zeros_like(values)
        masked[:, chosen] = values[:, chosen]
        with torch.no_grad(), subject.weights.of(setting):
            project = block.attn.o.original_component
            whole, part, bias = (
                project(v.flatten(1)) for v in (values, masked, torch.zeros_like(values))
            )
            write = part - bias
            if (norm := getattr(block, "ln1_post", None)) is not None:
                write = Frozen.at(norm, whole).push(write).to(write.dtype)
        total = total.to(write.device) + write
    return total


def function_vector(
    subject: Subject,
    condition: str,
    queries: Sequence[Encoded],
    caches: Mapping[str, Any],
    rows: int,
    heads: Sequence[Head],
) -> Float[Tensor, " d_model"]:
    """The mean over queries of what these heads write at the last token before the answer under a
    condition."""
    total = torch.zeros(subject.d_model, device=subject.device)
    for chunk in chunks(queries, rows):
        batch = Batch.forced(chunk, subject.device)
        states = read_conditions(subject, batch, caches, [condition], ["z"])[condition]
        last = torch.arange(len(chunk)), batch.ends - 1
        z = {s.layer: v[last[0], :, last[1]] for s, v in states.values.items() if s.name == "z"}
        total += written_to_stream(subject, subject.settings[condition], z, heads).sum(0)
    return total / len(queries)


def function_vector_rows(
    subject: Subject,
    move: PatchMove,
    queries: Sequence[Encoded],
    caches: Mapping[str, Any],
    rows: int,
    heads: Sequence[Head],
    selection: Bool[ndarray, " query"],
    scale: Resampling,
) -> pd.DataFrame:
    """Rows of a run's table: recovery by layer at which the vectors of `_VECTORS` are added."""
    here, there = divided(queries, selection)
    own, null = (function_vector(subject, c, here, caches, rows, heads) for c in move[:2])
    drawn = generator_of(f"function_vector:{move.source}").standard_normal(len(own))
    random = torch.tensor(drawn, dtype=own.dtype, device=own.device)
    vectors = [own, null, random * (own.norm() / random.norm())]
    layers = range(subject.n_layers)

    def patches(_: ConditionRun, batch: Batch) -> list[Patch]:
        index = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        last = index == batch.ends[:, None] - 1
        sites = (Site("resid_post", layer) for layer in layers)
        return [[Edit(site, edits.add(v), where=last)] for site in sites for v in vectors]

    found = approach(subject, move, there, caches, rows, patches)
    estimate = found.estimate(scale.half(~selection))
    columns = zip(*(column[:, 0] for column in estimate), strict=True)
    places = [(layer, measure) for layer in layers for measure in _VECTORS]
    return pd.DataFrame(_rows(move, places, columns))


def _rows(
    move: PatchMove, places: Sequence[tuple[int, str]], columns: Iterator[tuple[Any, ...]]
) -> Iterator[dict[str, Any]]:
    for (layer, measure), (value, low, high, n) in zip(places, columns, strict=True):
        yield {
            "measure": measure,
            "condition": move.source,
            "reference": move.target,
            "site": "resid_post",
            "layer": layer,
            "position": "last",
            "queries": "matched",
            "value": value,
            "ci_low": low,
            "ci_high": high,
            "n": n,
            "units": MEASURES[measure].units,
        }
