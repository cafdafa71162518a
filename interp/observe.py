"""All conditions on one batch of queries: what each does, and what it would do at base's inputs.

    observed, last = observe(subject, batch, caches, base="base")
    observed["lora"].changes[3].shares        # of layer 3's heads; see `interp.measures.tally`
    last["lora"].resid_post                   # [batch, layer, d_model], for the readout

Besides its own run, every condition has a run with each block's input pinned to base's: its weights
and its prefix alone, without what they do to the states further down.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from einops import einsum
from torch import Tensor

from interp.capture import Captured, Reader, capture, keep
from interp.conditions import Setting
from interp.edits import Edit
from interp.edits import replace as replace_by
from interp.finite import first_broken
from interp.measures import DTYPE_NOISE, wide
from interp.measures.attention import (
    AttentionRows,
    Changes,
    HeadRun,
    change_shares,
    mixed,
    read_rows,
    read_scores,
)
from interp.measures.plan import STATE_SITES, Observed
from interp.measures.routing import Routing
from interp.measures.scores import PLAYERS, Coalition, coalitions, split_scores
from interp.names import Site
from interp.readout import READ_SITES, LastStates
from interp.subject import Batch, Subject
from interp.subject.routers import LINKS


class _PatternRead(NamedTuple):
    """What is kept of a pattern: its rows, and what its prefix keys wrote (where asked)."""

    rows: AttentionRows
    from_prefix: Tensor | None


_Sources = dict[tuple[bool, bool], Captured]
"""Runs, by whether weights and inputs are a condition's (else base's)."""


def observe(
    subject: Subject,
    batch: Batch,
    caches: Mapping[str, Any],
    base: str,
    withheld: Collection[str] = (),
    sites: Sequence[str] = STATE_SITES,
) -> tuple[dict[str, Observed], dict[str, LastStates]]:
    """Run every condition on a batch; what the measures take of it, and what the readout takes.

    `withheld`: what is not read, of `interp.capabilities.GROUPS`; `sites`: whose states are.
    """
    bare = subject.settings[base]
    runs = {}
    for name, setting in subject.settings.items():
        heads = name == base or not subject.anatomy.mixed
        heads &= "change decomposition" not in withheld
        split = ("q", "k") if "score split" not in withheld else ()
        read = {s: keep for s in subject.anatomy.points if s.name in (*sites, *split)}
        read |= _own_run(subject, setting, caches[name], bare, heads, withheld, len(batch.ids))
        runs[name] = capture(subject, setting, batch, caches[name], read)
    observed = {name: _observed(subject, run, sites, batch) for name, run in runs.items()}
    if "pinned inputs" not in withheld:
        sources = _pin_(observed, subject, batch, caches, base, runs, withheld)
        if "score split" not in withheld:
            _split_(observed, subject, batch, caches[base], base, sources)
    tokens = batch.answer
    last = {n: LastStates.of(r.values, r.logits, tokens) for n, r in runs.items()}
    return observed, last


def _pin_(
    observed: dict[str, Observed],
    subject: Subject,
    batch: Batch,
    caches: Mapping[str, Any],
    base: str,
    runs: Mapping[str, Captured],
    withheld: Collection[str],
) -> dict[str, _Sources]:
    """Add what the runs at pinned inputs tell: re-wiring, and what heads' changes are of. Returns
    the runs in which weights or inputs are a condition's."""
    bare, plain = subject.settings[base], runs[base]
    changes, split = (name not in withheld for name in ("change decomposition", "score split"))
    sources: dict[str, _Sources] = {
        name: {(True, True): run, (False, False): plain, (False, True): run}
        for name, run in runs.items()
    }
    before = _head_runs(subject, plain) if changes else []
    for name, setting in subject.settings.items():
        if name == base:
            continue
        pinned = _pinned(
            subject, batch, setting, bare, caches[name], plain, heads=changes, split=split
        )
        observed[name] = replace(observed[name], pinned=_contents(subject, pinned))
        sources[name][True, False] = pinned
        if changes:
            own = observed[name].states["z"]
            if not subject.anatomy.mixed:
                own = [run.z for run in _head_runs(subject, runs[name])]
            shares = _changes(own, _head_runs(subject, pinned), before)
            observed[name] = replace(observed[name], changes=shares)
    for name, setting in subject.settings.items():  # after the others: weights are switched once
        if setting.weights != bare.weights:
            inputs = _pinned(subject, batch, bare, bare, caches[base], runs[name], split=split)
            observed[name] = replace(observed[name], base_weights=_contents(subject, inputs))
            sources[name][False, True] = inputs
    return sources


def _split_(
    observed: dict[str, Observed],
    subject: Subject,
    batch: Batch,
    cache: Any,
    base: str,
    sources: Mapping[str, _Sources],
) -> None:
    """Add what the changes of the heads' scores are of."""
    bare = subject.settings[base]
    for name, setting in subject.settings.items():
        if name == base:
            continue
        nobody, *members = coalitions(PLAYERS if setting.weights != bare.weights else PLAYERS[:2])
        scores = {nobody: observed[base].scores}
        for some in members:
            scores[some] = _scores_of(subject, batch, cache, bare, sources[name], some)
        splits = []
        for layer, own in enumerate(observed[name].scores):
            here = {m: found[layer] for m, found in scores.items()}
            splits.append(split_scores(here, own, DTYPE_NOISE[own.dtype]))
        observed[name] = replace(observed[name], splits=splits)


def _scores_of(
    subject: Subject,
    batch: Batch,
    cache: Any,
    bare: Setting,
    sources: _Sources,
    members: Coalition,
) -> list[Tensor]:
    """The scores, layer by layer, of queries and keys of which these members are a condition's, in
    a run of base's: what precedes the query and the model's own weights do not reach them."""
    sites = subject.sites("attn_scores")
    edits = [
        Edit(site, replace_by(sources["weights" in members, side in members].values[site]))
        for name, side in (("q", "query"), ("k", "key"))
        for site in subject.sites(name)
    ]
    got = capture(
        subject,
        bare,
        batch,
        cache,
        dict.fromkeys(sites, read_scores),
        edits,
        last=True,
        attention_only=True,
    )
    return [got.values[site] for site in sites]


def _own_run(
    subject: Subject,
    setting: Setting,
    cache: Any,
    bare: Setting,
    heads: bool,
    withheld: Collection[str],
    size: int,
) -> dict[Site, Reader]:
    """What is read of a condition's own run of `size` queries beside its states; `heads`: also what
    its heads read, as base's."""
    names = {*READ_SITES, "resid_pre", *(["v"] if heads else [])}
    points = subject.anatomy.points
    read: dict[Site, Reader] = {site: keep for site in points if site.name in names}
    if "scores" not in withheld:
        read |= {site: read_scores for site in points if site.name == "attn_scores"}
    if "routing" not in withheld:
        reader = partial(_read_routing, size=size, link=subject.anatomy.link)
        read |= dict.fromkeys(subject.anatomy.sites("router"), reader)
    if "patterns" not in withheld:
        read |= _patterns(subject, setting, cache if heads else None, bare, heads)
    return read


def _patterns(
    subject: Subject, setting: Setting, cache: Any, bare: Setting, heads: bool
) -> dict[Site, Reader]:
    """Readers of every layer's pattern; with `heads`, also of what the prefix's keys wrote."""
    return {
        Site("pattern", layer): partial(
            _read_pattern,
            n_prefix=setting.n_prefix,
            own_first=not bare.prefix,
            sink=subject.anatomy.sinks,
            values=_prefix_values(subject, cache, layer) if heads else None,
        )
        for layer in subject.anatomy.layers("pattern")
    }


def _read_routing(routed: Tensor, *, size: int, link: str) -> Routing:
    numbers, weights = routed.unflatten(0, (size, -1)).unbind(-1)
    return Routing(LINKS[link](wide(numbers)), weights != 0)


def _read_pattern(
    pattern: Tensor, *, n_prefix: int, own_first: bool, sink: bool, values: Tensor | None
) -> _PatternRead:
    length = pattern.shape[-2]
    reached = pattern.shape[-1] - length  # of the prefix: a sliding window leaves its start behind
    rows = read_rows(pattern.detach(), reached == n_prefix, own_first, sink)
    if values is None:
        return _PatternRead(rows, None)
    behind = values[..., values.shape[-2] - reached :, :]
    written = einsum(pattern[..., :reached].detach(), behind[0], "b h q k, h k d -> b h q d")
    return _PatternRead(rows, written)


def _prefix_values(subject: Subject, cache: Any, layer: int) -> Tensor:
    """The values of the prefix's keys, one set per head `[1, head, key, d_head]`; of no key where
    there is no prefix, which mixes to 0."""
    if cache is None:
        nothing = (1, subject.n_heads, 0, 1)
        return torch.zeros(nothing, device=subject.device, dtype=subject.dtype)
    source = subject.anatomy.values_of(layer)
    return _per_head(subject, cache.layers[source.layer].values)


def _per_head(subject: Subject, values: Tensor) -> Tensor:
    """Grouped-query heads share values: repeated, one set per head."""
    return values.repeat_interleave(subject.n_heads // values.shape[1], dim=1)


def _pinned(
    subject: Subject,
    batch: Batch,
    setting: Setting,
    bare: Setting,
    cache: Any,
    source: Captured,
    *,
    heads: bool = False,
    split: bool = False,
) -> Captured:
    """A setting's patterns where every block's input is that of another run; with `heads`, also
    what its heads read and mix, with `split` their queries and keys."""
    inputs = [Edit(site, replace_by(source.values[site])) for site in subject.sites("resid_pre")]
    read = _patterns(subject, setting, cache if heads else None, bare, heads)
    names = (*(("v", "z") if heads else ()), *(("q", "k") if split else ()))
    read |= {site: keep for site in subject.anatomy.points if site.name in names}
    return capture(subject, setting, batch, cache, read, inputs, last=True, attention_only=True)


def _contents(subject: Subject, got: Captured) -> list[Tensor]:
    return [got.values[site].rows.content for site in subject.anatomy.sites("pattern")]


def _head_runs(subject: Subject, got: Captured) -> list[HeadRun]:
    """What the heads of every layer that has some mix, and what comes of it: z, or where a gate or
    a norm stands before z, the mix itself."""
    anatomy, runs = subject.anatomy, []
    for layer in anatomy.layers("pattern"):
        pattern = got.values[Site("pattern", layer)]
        values = got.values[anatomy.values_of(layer)]
        z = got.values[Site("z", layer)]
        run = HeadRun(
            pattern.rows.content,
            pattern.rows.content_mass,
            _per_head(subject, values),
            pattern.from_prefix.expand_as(z),
            z,
        )
        runs.append(run if anatomy.mixed else run._replace(z=mixed(run)))
    return runs


def _observed(subject: Subject, got: Captured, sites: Sequence[str], batch: Batch) -> Observed:
    def layers(name: str) -> list[Any]:
        return [got.values[site] for site in subject.anatomy.sites(name) if site in got.values]

    return Observed(
        logits=got.logits,
        states={name: found for name in sites if (found := layers(name))},
        rows=[read.rows for read in layers("pattern")],
        scores=layers("attn_scores"),
        routing=layers("router"),
        broken=first_broken(got, batch),
    )


def _changes(
    own: Sequence[Tensor], pinned: Sequence[HeadRun], base: Sequence[HeadRun]
) -> list[Changes]:
    """By layer; `own`: what the condition's heads mix in its own run."""
    return [
        change_shares(z, at_inputs, before, DTYPE_NOISE[z.dtype])
        for z, at_inputs, before in zip(own, pinned, base, strict=True)
    ]
