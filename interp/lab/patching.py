"""One condition's values put into another's run, layer by layer and head by head, by query.

    found = patching(subject, queries, ("lora", "base"), ("z", None, "all"), 16, 0.02)
    found.mean_recovery.sel(layer=3, head=2)

Every place is patched in a forward pass of its own, of the very shape of the target's own run: so
a condition's own values change nothing, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import xarray as xr
from jaxtyping import Float
from numpy import ndarray

from interp.capture import chunks
from interp.edits import BY_HEAD, Edit
from interp.errors import ConfigError, SubjectError
from interp.lab.activations import check_vouched, sites_of
from interp.names import Site
from interp.patching.interchange import ConditionRun, change_of, n_heads, read_conditions
from interp.patching.patched import moves_output, patched_logits
from interp.patching.sequences import sequence_kl
from interp.queries import Encoded
from interp.subject import Batch, Subject

HEADED = (*BY_HEAD, "pattern")
"""Sites that can be patched head by head."""

READ_ONLY = ("attn_scores", "router")

_Place = tuple[Site, int | None]
"""A site of one layer, and the head (none: all of it)."""


def patching(
    subject: Subject,
    queries: Sequence[Encoded],
    pair: tuple[str, str],
    places: tuple[str, Iterable[int] | None, str | Iterable[int] | None],
    batch_size: int,
    tolerance: float,
) -> xr.Dataset:
    """Damage and recovery of a (source, target) `pair` at (site, layers, heads)."""
    site, layers, heads = places
    found, numbers = _sites(subject, site, layers), _heads(subject, site, heads)
    each: Sequence[int | None] = numbers or [None]
    every = [(own, head) for own in found for head in each]
    damage, distance, apart = _measured(subject, queries, pair, site, every, batch_size)
    if not np.isfinite(damage).all():
        raise SubjectError(
            f"{site} of {pair[0]}, put into the run of {pair[1]}, gives logits that are no "
            "numbers: use a wider dtype"
        )
    shape = (len(queries), len(found), *([len(numbers)] if numbers else []))
    effects = (damage.reshape(shape), distance.reshape(shape), apart)
    coords = {"layer": [own.layer for own in found], **({"head": numbers} if numbers else {})}
    return _labelled(effects, coords, [query.text for query in queries], tolerance).assign_attrs(
        model=subject.name, site=site, source=pair[0], target=pair[1]
    )


def _measured(
    subject: Subject,
    queries: Sequence[Encoded],
    pair: tuple[str, str],
    site: str,
    places: Sequence[_Place],
    batch_size: int,
) -> tuple[Float[ndarray, "query place"], Float[ndarray, "query place"], Float[ndarray, " query"]]:
    """KL(target ‖ patched), KL(source ‖ patched) and KL(source ‖ target)."""
    settings = {name: subject.settings[name] for name in pair}
    caches = {name: subject.prefill(setting) for name, setting in settings.items()}
    first = Batch.forced(queries[:1], subject.device)
    if not moves_output(subject, settings[pair[1]], first, caches[pair[1]], site):
        raise SubjectError(f"{site} cannot be patched: {subject.name} goes on with its own value")
    measured: list[ndarray] = []
    apart: list[ndarray] = []
    for chunk in chunks(queries, batch_size):
        batch = Batch.forced(chunk, subject.device)
        states = read_conditions(subject, batch, caches, list(caches), (site,))
        source, target = (states[name] for name in pair)
        measured.append(_effects(subject, pair[1], batch, source, target, places))
        apart.append(sequence_kl(source.logits, target.logits, batch.answer).cpu().numpy())
    damage, distance = np.concatenate(measured, axis=1)
    return damage, distance, np.concatenate(apart)


def _effects(
    subject: Subject,
    name: str,
    batch: Batch,
    source: ConditionRun,
    target: ConditionRun,
    places: Sequence[_Place],
) -> Float[ndarray, "2 query place"]:
    """KL(target ‖ patched) and KL(source ‖ patched) at every place."""
    patches = [[_edit(source, *place)] for place in places]
    setting, size = subject.settings[name], len(batch.ids)
    measured = np.empty((2, size, len(places)))
    runs = patched_logits(subject, setting, batch, target.cache, target.entries, patches, rows=size)
    for numbers, logits in runs:
        for number, row in zip(numbers, logits, strict=True):
            for kind, own in enumerate((target, source)):
                kl = sequence_kl(own.logits, row, batch.answer)
                measured[kind, :, number] = kl.cpu().numpy()
    return measured


def _edit(source: ConditionRun, site: Site, head: int | None) -> Edit:
    value = source.values[site]
    value = value if head is None else value[:, head]
    return Edit(site, change_of(site.name, "content", value), head)


def _sites(subject: Subject, name: str, layers: Iterable[int] | None) -> list[Site]:
    if name in READ_ONLY:
        raise ConfigError(f"{name} can be read, not patched")
    there = sites_of(subject, [name])[name]
    check_vouched(subject, [name])
    if not there:
        raise ConfigError(f"{name} cannot be patched: give a site of the blocks")
    if layers is None:
        return there
    found = {site.layer: site for site in there}
    for layer in (wanted := list(layers)):
        if layer not in found:
            raise ConfigError(f"no {name} in layer {layer}: there are {', '.join(map(str, found))}")
    return [found[layer] for layer in wanted]


def _heads(subject: Subject, name: str, heads: str | Iterable[int] | None) -> list[int]:
    if heads is None:
        return []
    if name not in HEADED:
        raise ConfigError(f"{name} has no heads: they are in {', '.join(HEADED)}")
    there = range(n_heads(subject, name))
    if isinstance(heads, str) and heads != "all":
        raise ConfigError(f'heads are numbers, or "all", not {heads!r}')
    wanted = list(there if isinstance(heads, str) else heads)
    if beyond := [head for head in wanted if head not in there]:
        raise ConfigError(f"no head {beyond[0]} of {name}: there are 0 to {len(there) - 1}")
    return wanted


def _labelled(
    effects: tuple[ndarray, ndarray, ndarray],
    coords: dict[str, list[int]],
    texts: Sequence[str],
    tolerance: float,
) -> xr.Dataset:
    damage, distance, apart = effects
    by_query = apart.reshape(-1, *[1] * (damage.ndim - 1))
    nats, share = {"units": "nats per answer"}, {"units": "share"}
    place = tuple(coords)
    dims = ("query", *place)
    return xr.Dataset(
        {
            "damage": (dims, damage, nats),
            "distance": (dims, distance, nats),
            "recovery": (dims, _recovery(distance, by_query, tolerance), share),
            "mean_damage": (place, damage.mean(0), nats),
            "mean_recovery": (place, _recovery(distance.mean(0), apart.mean(), tolerance), share),
            "apart": ("query", apart, nats),
        },
        coords={"query": range(len(texts)), "text": ("query", list(texts)), **coords},
    )


def _recovery(distance: ndarray, apart: ndarray | float, tolerance: float) -> ndarray:
    """`1 - distance / apart`; NaN where there is nothing to recover."""
    known = np.asarray(apart) > tolerance
    return np.where(known, 1 - distance / np.where(known, apart, 1.0), np.nan)
