"""Values of a model's sites under its conditions, as one labelled data set.

    acts = activations(subject, queries, ["resid_post", "pattern"], ["base", "lora"], {}, 16)
    acts.resid_post.sel(condition="lora", layer=3, position=-1)

Queries of one length share a forward pass, so that nothing is padded inside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from interp.capture import Captured, Reader, by_length, capture, keep
from interp.errors import ConfigError, SubjectError
from interp.heads import token_texts
from interp.measures.attention import MASKED
from interp.names import HOOKS, Site
from interp.queries import Encoded
from interp.subject import Batch, Subject

LOGITS = "logits"
BY_KEY = ("attn_scores", "pattern")

DIMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(HOOKS, ("position", "d_model")),
    **dict.fromkeys(("q", "z"), ("head", "position", "d_head")),
    **dict.fromkeys(("k", "v"), ("kv_head", "position", "d_head")),
    **dict.fromkeys(BY_KEY, ("head", "position", "key")),
    "router": ("position", "expert"),
    LOGITS: ("position", "d_vocab"),
}
"""Site -> the dimensions of its value beside condition, query and layer."""

Reduce = Mapping[str, Callable[[Tensor], Tensor]]


def activations(
    subject: Subject,
    queries: Sequence[Encoded],
    names: Sequence[str],
    conditions: Sequence[str],
    reduce: Reduce,
    batch_size: int,
) -> xr.Dataset:
    """One variable per site, NaN where a query has no such token or a layer no such site."""
    sites = sites_of(subject, names)
    if extra := reduce.keys() - (sites.keys() - {LOGITS}):
        there = ", ".join(name for name in sites if name != LOGITS)
        raise ConfigError(f"reduce names {min(extra)!r}, which is not read: there are {there}")
    reading = _Reading(sites, reduce)
    found: dict[str, list[list[np.ndarray]]] = {name: [] for name in names}
    for condition in conditions:
        setting = subject.settings[condition]
        cache = subject.prefill(setting)
        own: dict[str, dict[int, np.ndarray]] = {name: {} for name in names}
        for numbers in by_length(queries, batch_size):
            batch = Batch.of([queries[number] for number in numbers], subject.device)
            read = reading.readers
            got = capture(subject, setting, batch, cache, read, last=LOGITS not in names)
            for name in names:
                own[name] |= zip(numbers, reading.values(name, got), strict=True)
        for name in names:
            found[name].append([own[name][number] for number in range(len(queries))])
    arrays = {name: right_aligned(values) for name, values in found.items()}
    return as_dataset(subject, queries, conditions, reading, arrays)


def sites_of(subject: Subject, names: Sequence[str]) -> dict[str, list[Site]]:
    """Name -> the site of every layer that has it (none of `logits`); an error of one line for what
    is unknown, withheld, or not there."""
    there = [name for name in HOOKS if subject.anatomy.sites(name)]
    if not names:
        raise ConfigError(f"no sites: choose from {', '.join(there)}, {LOGITS}")
    for name in names:
        if name != LOGITS and name not in there:
            lacks = "has no" if name in HOOKS else "knows no site"
            raise ConfigError(
                f"{subject.name} {lacks} {name}: choose from {', '.join(there)}, {LOGITS}"
            )
    check_vouched(subject, names)
    return {name: subject.anatomy.sites(name) for name in names}


def check_vouched(subject: Subject, names: Sequence[str]) -> None:
    """A `SubjectError` where patterns are asked for that are not plain Hugging Face's."""
    if "patterns" in subject.withheld and (asked := [name for name in names if name in BY_KEY]):
        raise SubjectError(f"{asked[0]} is withheld: {subject.withheld['patterns']}")


@dataclass(frozen=True)
class _Reading:
    """What is read at every site; `kept`: how many of a value's first dimensions are still there
    behind the user's function."""

    sites: Mapping[str, Sequence[Site]]
    reduce: Reduce
    kept: dict[str, int] = field(default_factory=dict)

    @property
    def readers(self) -> dict[Site, Reader]:
        return {site: self._reader(site.name) for own in self.sites.values() for site in own}

    def _reader(self, name: str) -> Reader:
        if name not in self.reduce:
            return {"pattern": _shares, "attn_scores": _scores}.get(name, keep)

        def reduced(value: Tensor) -> Tensor:
            seen = value.detach().clone() if name in BY_KEY else keep(value)
            return self._checked(name, seen.shape, self.reduce[name](seen))

        return reduced

    def _checked(self, name: str, before: torch.Size, found: Any) -> Tensor:
        """What the user's function returned."""
        if not isinstance(found, Tensor) or found.shape[:1] != before[:1]:
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ConfigError(
                f"reduce of {name} returned {what}: return a tensor with the batch first, here "
                f"({before[0]}, ...), for a value {tuple(before)}"
            )
        same = found.ndim if found.shape == before[: found.ndim] else 1
        self.kept[name] = min(same, self.kept.get(name, same))
        return found.detach().clone()

    def dims(self, name: str, extra: int) -> tuple[str, ...]:
        """The names of a value's `extra` dimensions beside condition, query and layer."""
        if name not in self.reduce:
            return DIMS[name]
        if self.kept[name] == extra + 1:
            return tuple("all_keys" if dim == "key" else dim for dim in DIMS[name][:extra])
        return tuple(f"{name}_{number}" for number in range(extra))

    def values(self, name: str, got: Captured) -> list[np.ndarray]:
        """Every query's `[layer, *dims]`, or its logits `[query_pos, d_vocab]`."""
        if name == LOGITS:
            return list(got.logits.detach().float().cpu().numpy())
        layers = [got.values[site].float().cpu() for site in self.sites[name]]
        if len(shapes := {tuple(value.shape) for value in layers}) > 1:
            raise ConfigError(
                f"{name} has other shapes in other layers, {' and '.join(map(str, shapes))}: "
                "reduce it to one"
            )
        return list(torch.stack(layers, dim=1).numpy())


def _shares(
    pattern: Float[Tensor, "batch head query_pos key"],
) -> Float[Tensor, "batch head query_pos own_keys"]:
    """Attention on the query's own keys, then, in the last column, on all that precedes it."""
    own, before = _parts(pattern)
    return torch.cat([own, before.sum(-1, keepdim=True)], dim=-1)


def _scores(
    scores: Float[Tensor, "batch head query_pos key"],
) -> Float[Tensor, "batch head query_pos own_keys"]:
    """The same of scores before the softmax: the softmax of these is the pattern so divided."""
    own, before = _parts(scores.masked_fill(scores < MASKED, -torch.inf))
    return torch.cat([own, before.logsumexp(-1, keepdim=True)], dim=-1)


def _parts(value: Tensor) -> tuple[Tensor, Tensor]:
    length, value = value.shape[-2], value.detach()
    return value[..., -length:], value[..., :-length]


def right_aligned(values: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Arrays `[condition][query]` of as many dimensions as one array, NaN before the shorter."""
    every = [one for own in values for one in own]
    if len({one.ndim for one in every}) > 1:
        raise ConfigError("reduce returned tensors of different numbers of dimensions")
    most = np.max([one.shape for one in every], axis=0)
    filled = np.full((len(values), len(values[0]), *most), np.nan, np.float32)
    for condition, own in enumerate(values):
        for query, one in enumerate(own):
            place = tuple(slice(size - n, None) for size, n in zip(most, one.shape, strict=True))
            filled[condition, query][place] = one
    return filled


def as_dataset(
    subject: Subject,
    queries: Sequence[Encoded],
    conditions: Sequence[str],
    reading: _Reading,
    arrays: Mapping[str, np.ndarray],
) -> xr.Dataset:
    """The arrays with names on their dimensions, and the queries' tokens beside them."""
    sizes: dict[str, int] = {}
    variables = []
    for name, values in arrays.items():
        whole = name == LOGITS
        own = reading.dims(name, values.ndim - 2 - (not whole))
        shape = values.shape[len(values.shape) - len(own) :]
        own = tuple(_fitting(sizes, name, *pair) for pair in zip(own, shape, strict=True))
        coords = {} if whole else {"layer": [site.layer for site in reading.sites[name]]}
        if "key" in own:
            values = np.roll(values, 1, axis=-1)  # the part before the query comes first
        dims = ("condition", "query", *coords, *own)
        variables.append(xr.DataArray(values, dims=dims, coords=coords, name=name))
    data = xr.merge(variables, join="outer").assign_attrs(model=subject.name)
    longest = max(len(query.ids) for query in queries)
    positions = np.arange(-longest, 0)
    if "key" in data.dims:
        data = data.assign_coords(key=[0, *positions])
    tokens = [token_texts(subject, query.ids) for query in queries]
    padded = [[""] * (longest - len(own)) + own for own in tokens]
    return data.assign_coords(
        condition=list(conditions),
        query=range(len(queries)),
        position=positions,
        text=("query", [query.text for query in queries]),
        n_tokens=("query", [len(own) for own in tokens]),
        token=(("query", "position"), padded),
    )


def _fitting(sizes: dict[str, int], name: str, dim: str, size: int) -> str:
    """The dimension, or one of the site's own where another site has it in another size (latent
    attention: heads of keys are wider than those of values)."""
    return dim if sizes.setdefault(dim, size) == size else f"{dim}_{name}"
