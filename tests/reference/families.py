"""Families of conditions: distances between and within them, from the states themselves."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .numbers import EPSILON, STILL, Array
from .running import States
from .study import Study, Table, Value

SITES: dict[str, Callable[[States], Array]] = {
    "resid_post": lambda a: a.resid_post,
    "attn_out": lambda a: a.attn_out,
    "mlp_out": lambda a: a.mlp_out,
    "z": lambda a: a.z,
    "pattern": lambda a: np.sqrt(a.content),
}
"""A state per token; of a pattern its square roots, whose distance is Hellinger's."""
Groups = Sequence[Sequence[int]]
"""Families by the places of their members among all members."""
Statistic = Callable[[Array, Groups], Array]
Question = tuple[list[str], tuple[str, str, str | None], Statistic]
TIE = 2e-5
"""Statistics that are nearer to each other than this (relative) may be equal (float32 states)."""


def rows(study: Study) -> Table:
    """Every pair of families, and all at once where there are more than two."""
    table: Table = {}
    for names, key, statistic in questions(study.families):
        members = [m for name in names for m in study.families[name]]
        sizes = [len(study.families[name]) for name in names]
        for site in SITES:
            labels = ("last", "mean", *study.segments)
            maps = {label: squared_distances(study, members, site, label) for label in labels}
            for (label, *cell), value in values(maps, sizes, statistic).items():
                layer, head = (*cell, None, None)[:2]
                table[*key, site, layer, head, label] = value
    return table


def questions(families: Mapping[str, Sequence[str]]) -> Iterator[Question]:
    """What is asked of which families: their names, the row's head, the statistic."""
    for a, b in itertools.combinations(families, 2):
        yield [a, b], ("divergence_index", a, b), divergence_index
        yield [a, b], ("permanova_f", a, b), permanova_f
    if len(families) > 2:
        yield list(families), ("permanova_f", "families", None), permanova_f


@dataclass(frozen=True)
class Distances:
    """Mean squared distance `[*cell, member, member]`, 0 where members differ by rounding alone;
    mean squared size `[*cell]`; queries."""

    squared: Array
    size: Array
    n: int


def squared_distances(study: Study, members: Sequence[str], site: str, label: str) -> Distances:
    read = SITES[site]
    total, size, tokens = 0.0, 0.0, 0
    for states, rows_ in zip(study.together(*members), study.rows, strict=True):
        chosen = rows_.of(label)
        x = np.stack([read(s)[..., chosen, :] for s in states])  # [member, *cell, pos, d]
        change = x[:, None] - x[None]
        total = total + (change * change).sum((-1, -2))
        size = size + (x * x).sum((-1, -2)).mean(0)
        tokens += len(chosen)
    squared = np.moveaxis(np.asarray(total), (0, 1), (-2, -1)) / tokens
    mean_size = np.asarray(size) / tokens
    still = squared <= STILL**2 * mean_size[..., None, None]
    n = len(study.observed["base"])
    return Distances(np.where(still, 0.0, squared), mean_size, n)


def values(
    maps: Mapping[str, Distances], sizes: Sequence[int], statistic: Statistic
) -> dict[tuple[Any, ...], Value]:
    """The statistic in every cell of a site's map, its p over all ways to make such families, and
    how far rounding may move it. p counts the ways that are as extreme anywhere on the map."""
    found = {}
    ways = regroupings(tuple(sizes))
    tried = {label: [statistic(each.squared, g) for g in ways] for label, each in maps.items()}
    highest = np.max([[np.nanmax(x) for x in each] for each in tried.values()], axis=0)
    for label, each in maps.items():
        for cell in np.ndindex(each.size.shape):
            value = float(tried[label][0][cell])
            p = (share(highest, value, TIE), share(highest, value, -TIE))
            error = rounding(each.squared[cell], each.size[cell], sizes) * value
            found[label, *cell] = Value(value, each.n, error, scale=max(1.0, value), p=p)
    return found


def share(highest: Array, value: float, margin: float) -> float:
    """Of all ways, the given one (the first) among them, those that are as extreme."""
    return float(np.mean([True, *(highest[1:] >= value * (1 + margin))]))


def rounding(squared: Array, size: float, sizes: Sequence[int]) -> float:
    """Relative error of a ratio to the distances within families."""
    within = np.mean(np.sqrt(pairs_within(squared, in_order(sizes))))
    return float(4 * EPSILON * np.sqrt(size) / within) if within > 0 else float("inf")


def in_order(sizes: Sequence[int]) -> list[list[int]]:
    ends = np.cumsum(sizes)
    return [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def pairs_within(x: Array, groups: Groups) -> Array:
    return np.stack([x[..., i, j] for g in groups for i, j in itertools.combinations(g, 2)])


def over(above: Array, below: Array) -> Array:
    """Infinite where nothing varies within families that differ, NaN where nothing varies."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(above) / below


def divergence_index(squared: Array, groups: Groups) -> Array:
    """Mean distance between two families, over half the sum of the mean distances within."""
    distance, (a, b) = np.sqrt(squared), groups
    between = np.mean([distance[..., i, j] for i in a for j in b], axis=0)
    within = np.mean([pairs_within(distance, [group]).mean(0) for group in groups], axis=0)
    return over(between, within)


def permanova_f(squared: Array, groups: Groups) -> Array:
    """Anderson's (2001) pseudo-F of squared distances."""
    members = [i for group in groups for i in group]
    n, k = len(members), len(groups)
    total = pairs_within(squared, [members]).sum(0) / n
    within = sum(pairs_within(squared, [group]).sum(0) / len(group) for group in groups)
    return over((total - within) / (k - 1), within / (n - k))


@functools.cache
def regroupings(sizes: tuple[int, ...]) -> list[list[list[int]]]:
    """All ways to give the members to families of these sizes, each once, the given one first:
    families of one size are interchangeable."""
    seen: dict[frozenset[frozenset[int]], list[list[int]]] = {}
    for order in itertools.permutations(range(sum(sizes))):
        groups = [[order[i] for i in group] for group in in_order(sizes)]
        seen.setdefault(frozenset(map(frozenset, groups)), groups)
    return list(seen.values())
