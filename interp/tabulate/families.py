"""Rows of the families: is the distance between kinds of conditions more than that within them?

family_rows(tally, design.families, labels, "matched", seed=0, noise=1e-5)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from interp.families import (
    Permuted,
    distances,
    index_interval,
    label_permutations,
    permuted_f,
    permuted_index,
)
from interp.measures.tally import Tally
from interp.registry import MEASURES
from interp.statistics import Ratio

RELABELLINGS = 10_000
"""All there are, or at most so many of them, the families as they are among them."""

ALL = "families"
"""The condition of a row about all families at once."""


def family_rows(
    tally: Tally,
    families: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    queries: str,
    seed: int,
    noise: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """`divergence_index` and `permanova_f` of every two families, and of all together; p by
    relabelling, corrected by max-T over the site's layers, heads and positions. States that differ
    by `noise` (relative) or less are the same."""
    if len(families) < 2:
        return
    places = _places(families)
    sides: list[tuple[str, str | None]] = list(combinations(families, 2))
    sides += [(ALL, None)] if len(families) > 2 else []
    for key, accumulator in sorted(tally.items()):
        if key.measure != "family_gram" or not isinstance(accumulator, Ratio):
            continue
        g = _grams(accumulator, sum(map(len, families.values())))
        d = distances(g[0], noise)
        n = int(accumulator.n.max())
        for a, b in sides:
            groups = [places[a], places[b]] if b is not None else [*places.values()]
            orders = label_permutations(groups, RELABELLINGS, seed)
            found = {"permanova_f": permuted_f(d, groups, orders)}
            bounds = {}
            if b is not None:
                found["divergence_index"] = permuted_index(d, groups[0], groups[1], orders)
                bounds["divergence_index"] = _intervals(g[1:], groups, noise)
            for measure, permuted in found.items():
                about: dict[str, Any] = {"measure": measure, "condition": a, "reference": b}
                about |= {
                    "site": key.site,
                    "queries": queries,
                    "n": n,
                    "units": MEASURES[measure].units,
                }
                yield from _rows(about, permuted, bounds.get(measure), labels)


def _places(families: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """Where every family's members stand on the axis of members."""
    numbers = iter(range(sum(map(len, families.values()))))
    return {family: [next(numbers) for _ in members] for family, members in families.items()}


def _grams(accumulator: Ratio, count: int) -> np.ndarray:
    """`[replicate, layer, (head,) label, member, member]` from the upper triangle."""
    with np.errstate(divide="ignore", invalid="ignore"):
        triangle = np.moveaxis(accumulator.numerator / accumulator.denominator, 1, -1)
    i, j = np.triu_indices(count)
    full = np.empty((*triangle.shape[:-1], count, count))
    full[..., i, j] = full[..., j, i] = triangle
    return full


def _intervals(replicates: np.ndarray, groups: Sequence[Sequence[int]], noise: float) -> np.ndarray:
    """`[2, layer, ...]`, one layer at a time: all replicates of all heads are large."""
    layers = range(replicates.shape[1])
    a, b = groups
    return np.stack(
        [np.stack(index_interval(replicates[:, i], a, b, noise)) for i in layers], axis=1
    )


def _rows(
    about: dict[str, Any], found: Permuted, bounds: np.ndarray | None, labels: Sequence[str]
) -> Iterator[dict[str, Any]]:
    for cell in np.ndindex(found.value.shape):
        *place, label = cell
        layer, head = (*place, None)[:2]
        yield about | {
            "layer": layer,
            "head": head,
            "position": labels[label],
            "value": found.value[cell],
            "ci_low": bounds[0][cell] if bounds is not None else None,
            "ci_high": bounds[1][cell] if bounds is not None else None,
            "p_adjusted": found.p_max_t[cell],
        }
