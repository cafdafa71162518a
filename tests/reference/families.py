"""Families of conditions: distances between and within them, from the states themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .numbers import EPSILON, Array
from .pooling import chosen_tokens
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


def rows(study: Study) -> Table:
    """Every pair of families, and all at once."""
    table: Table = {}
    if len(study.families) < 2:
        return table
    for site in SITES:
        for position in ("last", "mean"):
            for names, key, statistic in questions(study.families):
                maps = squared_distances(
                    study, [m for n in names for m in study.families[n]], site, position
                )
                sizes = [len(study.families[n]) for n in names]
                for cell, value in values(maps, sizes, statistic).items():
                    layer, head = (*cell, None, None)[:2]
                    table[key[0], key[1], key[2], site, layer, head, position] = value
    return table


def questions(
    families: Mapping[str, Sequence[str]],
) -> Iterator[tuple[list[str], tuple[str, str, str | None], Callable[[Array, Groups], float]]]:
    """What is asked of which families: their names, the row's head, the statistic."""
    for a, b in itertools.combinations(families, 2):
        yield [a, b], ("divergence_index", a, b), divergence_index
        yield [a, b], ("permanova_f", a, b), permanova_f
    yield list(families), ("permanova_f", "families", None), permanova_f


@dataclass(frozen=True)
class Distances:
    """Mean squared distance `[*cell, member, member]` and mean squared size `[*cell]`; queries."""

    squared: Array
    size: Array
    n: int


def squared_distances(study: Study, members: Sequence[str], site: str, position: str) -> Distances:
    read = SITES[site]
    total, size, tokens = 0.0, 0.0, 0
    for states in study.together(*members):
        chosen = chosen_tokens(position, states[0].length)
        x = np.stack([read(s)[..., chosen, :] for s in states])  # [member, *cell, pos, d]
        change = x[:, None] - x[None]
        total = total + (change * change).sum((-1, -2))
        size = size + (x * x).sum((-1, -2)).mean(0)
        tokens += len(chosen)
    squared = np.moveaxis(np.asarray(total), (0, 1), (-2, -1)) / tokens
    return Distances(squared, np.asarray(size) / tokens, len(study.observed["base"]))


def values(
    maps: Distances, sizes: Sequence[int], statistic: Callable[[Array, Groups], float]
) -> dict[tuple[int, ...], Value]:
    """The statistic in every cell, and how far rounding may move it."""
    found = {}
    groups = in_order(sizes)
    for cell in np.ndindex(maps.size.shape):
        squared = maps.squared[cell]
        value = statistic(squared, groups)
        within = np.mean([squared[i, j] for g in groups for i, j in itertools.combinations(g, 2)])
        error = 4 * EPSILON * np.sqrt(maps.size[cell] / within) * value if within > 0 else np.inf
        found[cell] = Value(value, maps.n, float(error), scale=max(1.0, value))
    return found


def in_order(sizes: Sequence[int]) -> list[list[int]]:
    ends = np.cumsum(sizes)
    return [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def divergence_index(squared: Array, groups: Groups) -> float:
    """Mean distance between two families, over half the sum of the mean distances within."""
    distance, (a, b) = np.sqrt(squared), groups
    between = np.mean([distance[i, j] for i in a for j in b])
    within = [np.mean([distance[i, j] for i, j in itertools.combinations(g, 2)]) for g in groups]
    return float(between / np.mean(within)) if np.mean(within) > 0 else float("nan")


def permanova_f(squared: Array, groups: Groups) -> float:
    """Anderson's (2001) pseudo-F of squared distances."""
    members = [i for group in groups for i in group]
    n, k = len(members), len(groups)
    total = sum(squared[i, j] for i, j in itertools.combinations(members, 2)) / n
    within = sum(
        sum(squared[i, j] for i, j in itertools.combinations(group, 2)) / len(group)
        for group in groups
    )
    if within == 0:
        return float("nan") if total == 0 else float("inf")
    return float(((total - within) / (k - 1)) / (within / (n - k)))


def regroupings(sizes: Sequence[int]) -> list[list[list[int]]]:
    """All ways to give the members to families of these sizes, each once: families of one size are
    interchangeable."""
    seen: dict[frozenset[frozenset[int]], list[list[int]]] = {}
    for order in itertools.permutations(range(sum(sizes))):
        groups = [[order[i] for i in group] for group in in_order(sizes)]
        seen.setdefault(frozenset(map(frozenset, groups)), groups)
    return list(seen.values())
