"""The one loop: shards of queries x conditions -> capture -> accumulators, merged.

    plan = Plan(conditions=list(subject.settings), pairs=[("prompt", "lora")], base="base")
    tally = sweep(subject, plan, queries, store, progress=print)

Memory holds one chunk's query rows in all conditions; what an accumulator keeps does not grow with
the number of queries. Shards are merged in their order, so a resumed run has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.capture import Captured, capture, chunks, readers
from interp.conditions import Setting
from interp.measures import tally
from interp.measures.certificate import last_outputs
from interp.measures.tally import STATE_SITES, Key, Observed, Scale, Tally
from interp.names import OUTPUT, Site
from interp.queries import Encoded
from interp.statistics import PerQuery, poisson_weights, position_weights
from interp.store import Store
from interp.subject import Batch, Subject

Progress = Callable[[str, int, int], None]
"""Called with (group, queries newly done, queries in all)."""

SHARD = 64
"""Queries per shard: what is lost at most when a run is killed."""


@dataclass(frozen=True)
class Plan:
    """What is compared and how finely; the same plan on the same queries gives the same numbers."""

    pairs: tuple[tuple[str, str], ...]
    base: str
    labels: tuple[str, ...]
    replicates: int
    seed: int
    batch_size: int


def sweep(
    subject: Subject,
    plan: Plan,
    queries: Sequence[Encoded],
    store: Store,
    group: str,
    progress: Progress,
) -> Tally:
    """Measure all queries of a group; finished shards of an earlier attempt are not done again."""
    caches: dict[str, Any] = {}
    total: Tally = {}
    for number, shard in enumerate(chunks(queries, SHARD)):
        name = f"{group}-{number:05d}"
        done = store.get(name)
        if done is None:
            if not caches:
                caches = {n: subject.prefill(s) for n, s in subject.settings.items()}
            done = {}
            for start, chunk in enumerate(chunks(shard, plan.batch_size)):
                first = number * SHARD + start * plan.batch_size
                tally.absorb_(done, measure_chunk(subject, plan, chunk, first, caches))
                progress(group, len(chunk), len(queries))
            store.put(name, done)
        else:
            progress(group, len(shard), len(queries))
        tally.absorb_(total, done)
    return total


def measure_chunk(
    subject: Subject,
    plan: Plan,
    chunk: Sequence[Encoded],
    first: int,
    caches: Mapping[str, Any],
) -> Tally:
    """Every measure on one chunk of queries; `first` is the number of its first query."""
    batch = Batch.of(chunk, subject.device)
    lengths = [len(query.ids) for query in chunk]
    answers = [query.answer_ids[0] if query.answer_ids else -1 for query in chunk]
    scale = Scale(
        poisson_weights([query.key for query in chunk], plan.replicates, plan.seed),
        position_weights(lengths, batch.ids.shape[1], plan.labels),
        torch.tensor(answers, device=subject.device),
    )
    observed = observe(subject, batch, caches, plan.base)
    measured = tally.measure(observed, plan.pairs, plan.base, scale)
    numbers = range(first, first + len(chunk))
    for a, b in plan.pairs:
        measured[Key("certificate", a, b, OUTPUT)] = PerQuery.of(
            numbers, last_outputs(observed[a].logits, observed[b].logits, batch.lengths)
        )
    return measured


def observe(
    subject: Subject, batch: Batch, caches: Mapping[str, Any], base: str
) -> dict[str, Observed]:
    """Run every condition on a batch, and the pinned runs of those with weights of their own."""
    attention = readers(subject, ("pattern", "attn_scores"))
    states = readers(subject, STATE_SITES)
    inputs = readers(subject, ("resid_pre",))
    bare = subject.settings[base]
    got: dict[str, Captured] = {}
    for name, setting in subject.settings.items():
        wanted = inputs if name == base or _reweighted(setting, bare) else {}
        got[name] = capture(subject, setting, batch, caches[name], states | attention | wanted)
    return {
        name: _observed(
            subject,
            got[name],
            *(
                _pinned(subject, batch, setting, bare, caches[base], got[name], got[base])
                if _reweighted(setting, bare)
                else ([], [])
            ),
        )
        for name, setting in subject.settings.items()
    }


def _reweighted(setting: Setting, base: Setting) -> bool:
    return setting.weights != base.weights


def _pinned(
    subject: Subject,
    batch: Batch,
    setting: Setting,
    bare: Setting,
    base_cache: Any,
    own: Captured,
    base: Captured,
) -> tuple[list[Tensor], list[Tensor]]:
    """Content patterns of the condition's weights at base's inputs, and the reverse.

    Every block's input is pinned, and the query's own keys are renormalised, so what precedes the
    query does not matter; both runs stand after base's prefix, at base's positions.
    """
    weights = Setting(bare.prefix, bare.shift, setting.adapters, setting.model)
    patterns = readers(subject, ("pattern",))
    sites = subject.sites("resid_pre")

    def content(state: Setting, cache: Any, source: Captured) -> list[Tensor]:
        pins = {site: source.values[site] for site in sites}
        rows = capture(subject, state, batch, cache, patterns, pins).values
        return [rows[site].content for site in patterns]

    cache = subject.prefill(weights)
    return content(weights, cache, base), content(bare, base_cache, own)


def _observed(
    subject: Subject, got: Captured, base_inputs: list[Tensor], base_weights: list[Tensor]
) -> Observed:
    def layers(name: str) -> list[Any]:
        return [got.values[Site(name, layer)] for layer in range(subject.n_layers)]

    return Observed(
        got.logits,
        {name: layers(name) for name in STATE_SITES},
        layers("pattern"),
        layers("attn_scores"),
        base_inputs,
        base_weights,
    )
