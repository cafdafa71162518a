"""A LoRA without some of its parts: which of its changes does the behaviour need?

    parts = parts_of(subject, "lora", ("layers", "modules", "directions"))
    found = ablate(subject, "lora", parts, chunk)

A part whose removal changes the residual stream and not the output is a by-product. What lies below
a part is not run again; the prefix is, under the weights that are left.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp import edits
from interp.capture import capture, keep
from interp.edits import Edit
from interp.names import Site
from interp.patching.effects import Resampling, move_rows, ratio
from interp.patching.interchange import read_conditions
from interp.patching.sequences import sequence_kl
from interp.queries import Encoded
from interp.subject import Batch, Subject
from interp.subject.directions import ranks, truncated

_BLOCK, _EVERY = "block", "every"
"""Sites of a part: all adapted modules of a layer; all there are. Otherwise a module's path."""


@dataclass(frozen=True)
class AdapterPart:
    """What is left of an adapter: `silent` modules are off, updates of `kept` modules have the
    directions where their mask is True.

    `position` as a run's table has it: `off` (this part is), `alone` (all the rest is), `direction
    i` (that one is off, the largest is 0), `first k` (only these of every module are on). `layer`:
    None for a module outside the blocks.
    """

    site: str
    layer: int | None
    position: str
    silent: frozenset[str] = frozenset()
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    head: None = None


def parts_of(subject: Subject, condition: str, kinds: Sequence[str]) -> list[AdapterPart]:
    """The parts of a condition's adapters: `layers`, `modules`, `directions` (of a single plain
    LoRA; DoRA's and several adapters' updates have none that could be taken apart)."""
    setting = subject.settings[condition]
    modules = subject.weights.adapted(setting)
    layers = {name: layer_of(name) for name in modules}
    adapter = subject.weights.only_adapter(setting)
    made = {
        "layers": lambda: _by_layer(layers),
        "modules": lambda: (AdapterPart(n, layers[n], "off", frozenset([n])) for n in modules),
        "directions": lambda: _by_direction(ranks(subject.weights, adapter), layers),
    }
    return [part for kind in kinds for part in made[kind]()]


def layer_of(module: str) -> int | None:
    """The block of a module: the first number in its path (`model.layers.3.mlp.up_proj`)."""
    found = re.search(r"\.(\d+)\.", module)
    return int(found[1]) if found else None


def _by_layer(layers: Mapping[str, int | None]) -> Iterator[AdapterPart]:
    for layer in sorted({layer for layer in layers.values() if layer is not None}):
        here = frozenset(name for name, its in layers.items() if its == layer)
        yield AdapterPart(_BLOCK, layer, "off", here)
        yield AdapterPart(_BLOCK, layer, "alone", frozenset(layers) - here)


def _by_direction(
    ranks: Mapping[str, int], layers: Mapping[str, int | None]
) -> Iterator[AdapterPart]:
    for module, rank in ranks.items():
        for i in range(rank):
            mask = torch.arange(rank) != i
            yield AdapterPart(module, layers[module], f"direction {i}", kept={module: mask})
    for k in range(max(ranks.values(), default=-1) + 1):
        first = {module: torch.arange(rank) < k for module, rank in ranks.items()}
        yield AdapterPart(_EVERY, None, f"first {k}", kept=first)


@dataclass(frozen=True)
class Ablated:
    """Per query, what a condition without its parts does.

    `damage`: `KL(p_full ‖ p_ablated)`, nats per answer. `moved`, `change`: how far the part's
    layer's `resid_post` is from the whole condition's where the answer is predicted, and how far
    the condition without any adapter is (NaN where the part is not one that is off). `apart`:
    `KL(p_full ‖ p)` of the condition without any adapter. All are sums over the answer's tokens.
    """

    damage: Float[ndarray, "query part"]
    moved: Float[ndarray, "query part"]
    change: Float[ndarray, "query part"]
    apart: Float[ndarray, " query"]


def ablate(
    subject: Subject, condition: str, parts: Sequence[AdapterPart], chunk: Sequence[Encoded]
) -> Ablated:
    """Run a condition without each of its parts on one chunk of queries."""
    setting = subject.settings[condition]
    adapter = subject.weights.only_adapter(setting)
    bare = subject.without(subject.weights.adapted(setting))
    batch = Batch.forced(chunk, subject.device)
    tokens = batch.answer
    full, none = (
        read_conditions(
            model, batch, {condition: model.prefill(setting)}, [condition], ["resid_post"]
        )[condition]
        for model in (subject, bare)
    )
    damage, moved, change = np.full((3, len(chunk), len(parts)), np.nan)
    for i, part in enumerate(parts):
        start = part.layer or 0
        entered = (none if part.position == "alone" else full).values[Site("resid_pre", start)]
        entry = [Edit(Site("resid_pre", start), edits.replace(entered))] if start else []
        left, site = subject.without(part.silent), Site("resid_post", start)
        with truncated(subject.weights, adapter, part.kept):
            cache = left.prefill(setting)
            read = {site: keep}
            at = tokens.columns
            got = capture(left, setting, batch, cache, read, entry, start=start, columns=at)
        damage[:, i] = sequence_kl(full.logits, tokens.pick_rows(got.logits), tokens).cpu()
        if part.layer is not None and part.position != "alone":
            whole = tokens.pick(full.values[site])
            for distance, other in ((moved, got.values), (change, none.values)):
                apart_here = (tokens.pick(other[site]) - whole).norm(dim=-1)
                distance[:, i] = tokens.total(apart_here).cpu()
    apart = sequence_kl(full.logits, none.logits, tokens).cpu().numpy()
    return Ablated(damage, moved, change, apart)


def ablation_rows(
    condition: str, parts: Sequence[AdapterPart], found: Ablated, scale: Resampling
) -> pd.DataFrame:
    """Rows of a run's table: `ablation_damage` (nats), `ablation_kept` (of what the adapter does to
    the output: `1 - damage / apart`), `ablation_change` (`moved / change`: how much of what the
    adapter does to the stream there hangs on the part). Ratios of sums over queries."""
    apart = np.broadcast_to(found.apart[:, None], found.damage.shape)
    measures: dict[str, tuple[ndarray, ndarray | float]] = {
        "ablation_damage": (found.damage, 1.0),
        "ablation_kept": (apart - found.damage, apart),
        "ablation_change": (found.moved, found.change),
    }
    frames = []
    for measure, (above, below) in measures.items():
        estimate = ratio(above, below, scale).compute()
        frame = move_rows((condition, None), parts, measure, estimate)
        frames.append(frame[frame["n"] > 0])
    return pd.concat(frames, ignore_index=True).assign(queries="matched")
