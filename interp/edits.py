"""Edits: what takes the place of a site's value at the query tokens.

    swap = Edit(Site("z", 3), replace(source[:, 5]), head=5)          # one head's output
    calm = Edit(Site("resid_post", 2), project(basis), where=last)    # without some directions
    capture(subject, setting, batch, cache, read={}, edits=[swap, calm])

A change sees the value in the layout of `capture.keep`: heads stand before positions. Several edits
of one site act in their order; a value that no edit touches passes through untouched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import ConfigError
from interp.measures import wide
from interp.names import Site

Change = Callable[[Tensor], Tensor]

BY_HEAD = ("q", "k", "v", "z")
"""Sites whose hooks see positions before heads."""


@dataclass(frozen=True)
class Edit:
    """One change of a site's value at the query tokens.

    `change` maps the value to what takes its place: `[batch, query_pos, d_model]` of a residual
    site, `[batch, head, query_pos, d_head]` of `q`, `k`, `v`, `z` (for `k` and `v`: key/value
    heads), `[batch, head, query_pos, key]` of `pattern`. With `head` it sees that head alone,
    without its dimension. `where`: the query tokens at which it acts, all without it.
    """

    site: Site
    change: Change
    head: int | None = None
    where: Bool[Tensor, "batch query_pos"] | None = None


def replace(value: Tensor) -> Change:
    """Another run's value, or a mean (mean ablation): whatever broadcasts to the site's shape."""
    return lambda own: value.to(own.dtype).expand_as(own)


def add(value: Tensor) -> Change:
    """The value, and this on top."""
    return lambda own: own + value.to(own.dtype)


def zero_ablation() -> Change:
    """Zero ablation."""
    return torch.zeros_like


def project(basis: Float[Tensor, "d rank"], towards: Tensor | None = None) -> Change:
    """The value with its part inside the span of `basis` taken from `towards` (Geiger et al. 2021:
    a subspace interchange), or removed where there is none. The basis need not be orthonormal."""
    u, s, _ = torch.linalg.svd(basis.to(torch.float64), full_matrices=False)
    rounding = torch.finfo(basis.dtype).eps * max(basis.shape)
    directions = u[:, s > rounding * s[:1]]  # as many as span it: columns may depend on others

    def change(own: Tensor) -> Tensor:
        move = -own if towards is None else towards.to(own.dtype) - own
        inside = directions.to(own.device, own.dtype)
        return own + (move @ inside) @ inside.T

    return change


def content_rows(content: Float[Tensor, "batch *head query_pos query_pos2"]) -> Change:
    """A pattern whose rows divide what falls on the query's own keys as `content` does (rows that
    sum to 1), and keep what the target's own run puts on everything before the query. A row of NaN,
    from a run that looks before the query alone, divides nothing and leaves the row as it is."""

    def change(own: Tensor) -> Tensor:
        length = content.shape[-1]
        inside = own[..., -length:]
        moved = (wide(inside).sum(-1, keepdim=True) * wide(content)).to(own.dtype)
        moved = torch.where(content.isnan(), inside, moved)
        return torch.cat([own[..., :-length], moved], dim=-1)

    return change


def whole_rows(pattern: Float[Tensor, "batch *head query_pos key"]) -> Change:
    """Another run's whole rows, prefix columns included: both must have as many keys."""

    def change(own: Tensor) -> Tensor:
        if own.shape[-1] != pattern.shape[-1]:
            raise ConfigError(
                f"whole pattern rows need as many keys in both runs, not {pattern.shape[-1]} and "
                f"{own.shape[-1]}: use content rows, which leave the prefix's columns alone"
            )
        return pattern.to(own.dtype)

    return change


class PlacedEdit(NamedTuple):
    """An edit, and the rows of the batch that it is for."""

    edit: Edit
    rows: slice = slice(None)


def hooks(placed: Iterable[PlacedEdit]) -> dict[Site, Change]:
    """One hook per site, on the value as the model has it."""
    by_site: dict[Site, list[PlacedEdit]] = {}
    for one in placed:
        by_site.setdefault(one.edit.site, []).append(one)
    return {site: _hook(site, edits) for site, edits in by_site.items()}


def _hook(site: Site, placed: list[PlacedEdit]) -> Change:
    def hook(value: Tensor) -> Tensor:
        by_head = site.name in BY_HEAD
        edited = (rearrange(value, "b s h d -> b h s d") if by_head else value).clone()
        for one in placed:
            _apply_(edited[one.rows], one.edit)
        return rearrange(edited, "b h s d -> b s h d") if by_head else edited

    return hook


def _apply_(value: Tensor, edit: Edit) -> None:
    """Change a value in place."""
    own = value if edit.head is None else value[:, edit.head]
    new = edit.change(own)
    if edit.where is not None:
        at = edit.where.view(len(own), *[1] * (own.ndim - 3), own.shape[-2], 1)
        new = torch.where(at, new, own)
    own.copy_(new)
