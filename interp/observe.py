"""All conditions on one batch of queries: what each does, and what it would do at base's inputs.

    observed, last = observe(subject, batch, caches, base="base")
    observed["lora"].changes[3].shares        # of layer 3's heads; see `interp.measures.tally`
    last["lora"].resid_post                   # [batch, layer, d_model], for the readout

Besides its own run, every condition has a run with each block's input pinned to base's: its weights
and its prefix alone, without what they do to the states further down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interp.capture import Captured, Reader, capture, keep
from interp.conditions import Setting
from interp.edits import Edit
from interp.edits import replace as replace_by
from interp.measures import NOISE
from interp.measures.attention import (
    AttentionRows,
    HeadRun,
    change_shares,
    read_rows,
    read_scores,
)
from interp.measures.tally import STATE_SITES, Observed
from interp.names import Site
from interp.readout import LastStates
from interp.subject import Batch, Subject


class PatternRead(NamedTuple):
    """What is kept of a pattern: its rows, and what its prefix keys wrote (where asked)."""

    rows: AttentionRows
    from_prefix: Tensor | None


def observe(
    subject: Subject, batch: Batch, caches: Mapping[str, Any], base: str
) -> tuple[dict[str, Observed], dict[str, LastStates]]:
    """Run every condition on a batch; what the measures take of it, and what the readout takes."""
    bare = subject.settings[base]
    runs = {}
    for name, setting in subject.settings.items():
        read = _own_run(subject, setting, caches[name], bare, heads=name == base)
        runs[name] = capture(subject, setting, batch, caches[name], read)
    plain = runs[base]
    heads = _head_runs(subject, plain)
    observed = {name: _observed(subject, run) for name, run in runs.items()}
    for name, setting in subject.settings.items():
        if name != base:
            pinned = _pinned(subject, batch, setting, bare, caches[name], plain)
            observed[name] = _with_pinned(observed[name], pinned, heads)
    for name, setting in subject.settings.items():  # after the others: weights are switched once
        if setting.weights != bare.weights:
            inputs = _pinned(subject, batch, bare, bare, caches[base], runs[name])
            base_weights = [run.content for run in inputs]
            observed[name] = replace(observed[name], base_weights=base_weights)
    tokens = batch.answer
    last = {n: LastStates.of(r.values, r.logits, tokens) for n, r in runs.items()}
    return observed, last


def _own_run(
    subject: Subject, setting: Setting, cache: Any, bare: Setting, *, heads: bool
) -> dict[Site, Reader]:
    """What is read of a condition's own run; `heads`: also what its heads read, as base's."""
    names = (*STATE_SITES, "resid_pre", *(["v"] if heads else []))
    read: dict[Site, Reader] = {site: keep for name in names for site in subject.sites(name)}
    scores = dict.fromkeys(subject.sites("attn_scores"), read_scores)
    return read | scores | _patterns(subject, setting, cache if heads else None, bare, heads)


def _patterns(
    subject: Subject, setting: Setting, cache: Any, bare: Setting, heads: bool
) -> dict[Site, Reader]:
    """Readers of every layer's pattern; with `heads`, also of what the prefix's keys wrote."""
    return {
        site: partial(
            _read_pattern,
            n_prefix=setting.n_prefix,
            own_first=not bare.prefix,
            values=_prefix_values(subject, cache, site.layer) if heads else None,
        )
        for site in subject.sites("pattern")
    }


def _read_pattern(
    pattern: Tensor, *, n_prefix: int, own_first: bool, values: Tensor | None
) -> PatternRead:
    length = pattern.shape[-2]
    reached = pattern.shape[-1] - length  # of the prefix: a sliding window leaves its start behind
    rows = read_rows(pattern.detach(), first=reached == n_prefix, own_first=own_first)
    if values is None:
        return PatternRead(rows, None)
    behind = values[..., values.shape[-2] - reached :, :]
    return PatternRead(rows, pattern[..., :reached].detach() @ behind)


def _prefix_values(subject: Subject, cache: Any, layer: int) -> Tensor:
    """The values of the prefix's keys, one set per head `[1, head, key, d_head]`."""
    if cache is None:
        size = subject.bridge.cfg.d_head
        return torch.zeros(1, 1, 0, size, device=subject.device, dtype=subject.dtype)
    return _per_head(subject, cache.layers[layer].values)


def _per_head(subject: Subject, values: Tensor) -> Tensor:
    """Grouped-query heads share values: repeated, one set per head."""
    return values.repeat_interleave(subject.n_heads // values.shape[1], dim=1)


def _pinned(
    subject: Subject, batch: Batch, setting: Setting, bare: Setting, cache: Any, source: Captured
) -> list[HeadRun]:
    """A setting's heads where every block's input is that of another run."""
    inputs = [Edit(site, replace_by(source.values[site])) for site in subject.sites("resid_pre")]
    names = ("v", "z")
    read: dict[Site, Reader] = {site: keep for name in names for site in subject.sites(name)}
    read |= _patterns(subject, setting, cache, bare, heads=True)
    return _head_runs(subject, capture(subject, setting, batch, cache, read, inputs, last=True))


def _head_runs(subject: Subject, got: Captured) -> list[HeadRun]:
    runs = []
    for layer in range(subject.n_layers):
        pattern, values, z = (got.values[Site(name, layer)] for name in ("pattern", "v", "z"))
        mass = 1 - pattern.rows.prefix_mass
        own = _per_head(subject, values)
        runs.append(HeadRun(pattern.rows.content, mass, own, pattern.from_prefix, z))
    return runs


def _observed(subject: Subject, got: Captured) -> Observed:
    def layers(name: str) -> list[Any]:
        return [got.values[Site(name, layer)] for layer in range(subject.n_layers)]

    return Observed(
        logits=got.logits,
        states={name: layers(name) for name in STATE_SITES},
        rows=[read.rows for read in layers("pattern")],
        scores=layers("attn_scores"),
    )


def _with_pinned(
    observed: Observed, pinned: Sequence[HeadRun], base: Sequence[HeadRun]
) -> Observed:
    noise = NOISE[observed.logits.dtype]
    changes = [
        change_shares(z, own, before, noise)
        for z, own, before in zip(observed.states["z"], pinned, base, strict=True)
    ]
    return replace(observed, pinned=[run.content for run in pinned], changes=changes)
