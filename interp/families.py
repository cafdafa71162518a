"""Families of conditions: is the distance between kinds more than that within them?

    d = distances(g)                              # [*cell, cond, cond] from the pooled Gram
    divergence_index(d, prompts, loras)           # [*cell]; prompts = [1, 2, 3], loras = [4, 5, 6]
    permanova_f(d, [prompts, loras])
    relabellings = label_permutations([prompts, loras])
    permuted_index(d, prompts, loras, relabellings).p_max_t
    mds = classical_mds(d)
    aligned(mds.coordinates)                      # layer after layer

One prompt against one adapter says nothing about prompts and adapters: a kind needs several
members. A family is a list of places on the condition axis; conditions in no family are left out.
All tests permute the labels of conditions, with the same relabellings in every cell of the map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from math import factorial, prod
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from interp.significance import permutation_p, rows_per_block
from interp.statistics import percentile_interval

_ROUNDING = 1e-13
"""A squared distance no larger than this, relative to the squared norms, is what is left of equal
states after the sums of the Gram were rounded: it is 0."""

_Group = Sequence[int]
_Sums = Callable[[ndarray, ndarray], tuple[ndarray, ndarray]]


def distances(
    g: Float[ndarray, "*cell cond cond"], noise: float = 0.0
) -> Float[ndarray, "*cell cond cond"]:
    """`sqrt(g_cc + g_c'c' - 2 g_cc')`, `[0, inf)` in the units of the state.

    Exactly symmetric with a zero diagonal; 0 where the difference is the Gram's rounding
    (`_ROUNDING`) or the states' own, at most `noise` times their root mean square norm. For a Gram
    pooled over tokens it is the root mean square distance of two conditions' states.
    """
    inner = 0.5 * (g + np.swapaxes(g, -1, -2))
    norms = np.diagonal(inner, axis1=-2, axis2=-1)
    scale = norms[..., :, None] + norms[..., None, :]
    squares = scale - 2 * inner
    return np.sqrt(np.where(squares <= max(_ROUNDING, noise**2 / 2) * scale, 0.0, squares))


# Two statistics, as ratios of sums over pairs of conditions ----------------------------------


def divergence_index(
    d: Float[ndarray, "*cell cond cond"], a: _Group, b: _Group
) -> Float[ndarray, "*cell"]:
    """Mean distance between two families over ½(mean within a + mean within b), `[0, inf)`.

    1 where the families are draws of one kind. NaN where neither family varies (0 / 0 or x / 0).
    """
    between, within = _index_sums(_pairs(d, [a, b]), _identity([a, b]))
    return _over(between, within, zero=np.nan)[0, ...]


def permanova_f(
    d: Float[ndarray, "*cell cond cond"], groups: Sequence[_Group]
) -> Float[ndarray, "*cell"]:
    """Pseudo-F of Anderson (2001), `[0, inf]`: `(SS_A / (a - 1)) / (SS_W / (N - a))`.

    `SS_T = sum of d² over pairs / N`, `SS_W = sum over families (sum of d² over its pairs / its
    size)`, `SS_A = SS_T - SS_W`. inf where families differ and none varies within, NaN where all
    distances are 0. It grows with a difference of location, and also of spread when families are
    of unequal size.
    """
    labels = _identity(groups)
    among, within = _f_sums(_pairs(d, groups), labels)
    freedom = labels.shape[1] - len(groups)
    return (_over(among, within, zero=np.inf) * freedom / (len(groups) - 1))[0, ...]


def _identity(groups: Sequence[_Group]) -> Int[ndarray, "1 member"]:
    members = [member for group in groups for member in group]
    if len(groups) < 2 or min(map(len, groups)) < 2:
        raise ValueError(f"needs two families of two members or more: {[*map(list, groups)]}")
    if len(set(members)) != len(members):
        raise ValueError(f"a condition is in two families: {[*map(list, groups)]}")
    return np.repeat(np.arange(len(groups)), [len(group) for group in groups])[None]


def _pairs(d: ndarray, groups: Sequence[_Group]) -> Float[ndarray, "pair *cell"]:
    """Distances of all pairs of the members of some families, in the order of `np.triu_indices`."""
    members = np.array([member for group in groups for member in group])
    first, second = np.triu_indices(len(members), 1)
    return np.moveaxis(d[..., members[first], members[second]], -1, 0)


def _together(labels: ndarray) -> tuple[ndarray, ndarray]:
    """For every relabelling and pair: whether both are in one family, and the size of the first's
    (relabelling keeps sizes)."""
    first, second = np.triu_indices(labels.shape[1], 1)
    sizes = np.bincount(labels[0])
    return labels[:, first] == labels[:, second], sizes[labels[:, first]]


def _index_sums(pairs: ndarray, labels: ndarray) -> tuple[ndarray, ndarray]:
    """Mean distance between, and half the sum of the means within, per relabelling and cell."""
    same, size = _together(labels)
    across = (~same).sum(1, keepdims=True)
    between = np.where(same, 0.0, 1 / across)
    within = np.where(same, 1 / (size * (size - 1)), 0.0)
    return np.tensordot(between, pairs, 1), np.tensordot(within, pairs, 1)


def _f_sums(pairs: ndarray, labels: ndarray) -> tuple[ndarray, ndarray]:
    """`SS_A` and `SS_W` per relabelling and cell."""
    same, size = _together(labels)
    within = np.tensordot(np.where(same, 1 / size, 0.0), pairs**2, 1)
    total = (pairs**2).sum(0) / labels.shape[1]
    return np.where(within == 0, total, np.maximum(total - within, 0)), within


def _over(above: ndarray, below: ndarray, zero: float) -> ndarray:
    """`above / below`; where below is 0, `zero`, or NaN where above is 0 as well."""
    undefined = np.where(above > 0, zero, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below == 0, undefined, above / below)


# Permutation tests ---------------------------------------------------------------------------


def label_permutations(
    groups: Sequence[_Group], limit: int = 10_000, seed: int = 0
) -> Int[ndarray, "relabelling member"]:
    """Family numbers of the members (in the order of `groups`) under relabelling; row 0 is theirs.

    All distinct ones where there are at most `limit`, which makes the test exact: families of
    equal size exchange their names without changing any statistic, so that 5 and 5 members have
    252 / 2 = 126 relabellings and not 252. Else `limit - 1` random ones and the families' own.
    """
    own = _identity(groups)
    sizes = [len(group) for group in groups]
    if _count(sizes) <= limit:
        return np.array(list(_partitions(sizes)))
    generator = np.random.default_rng(seed)
    return np.concatenate([own, generator.permuted(np.repeat(own, limit - 1, 0), axis=1)])


def _count(sizes: Sequence[int]) -> int:
    """In how many ways members fall into unnamed families of these sizes."""
    names = prod(factorial(count) for count in Counter(sizes).values())
    return factorial(sum(sizes)) // prod(map(factorial, sizes)) // names


def _partitions(sizes: Sequence[int]) -> Iterator[list[int]]:
    """Each of these ways once: families of equal size are in the order of their first members."""

    def fill(labels: list[int], firsts: dict[int, int], group: int) -> Iterator[list[int]]:
        if group == len(sizes):
            yield labels
            return
        free = [member for member, label in enumerate(labels) if label < 0]
        for chosen in combinations(free, sizes[group]):
            if chosen[0] > firsts.get(sizes[group], -1):
                filled = [group if m in chosen else label for m, label in enumerate(labels)]
                yield from fill(filled, firsts | {sizes[group]: chosen[0]}, group + 1)

    return fill([-1] * sum(sizes), {}, 0)


class Permuted(NamedTuple):
    """A statistic per cell, its one-sided permutation p, and p corrected over the map (max-T).

    `smallest_p` is the least p that these relabellings can give: 1/126 for families of 5 and 5,
    1/3 for 2 and 2.
    """

    value: Float[ndarray, "*cell"]
    p: Float[ndarray, "*cell"]
    p_max_t: Float[ndarray, "*cell"]
    smallest_p: float


def permuted_index(
    d: Float[ndarray, "*cell cond cond"],
    a: _Group,
    b: _Group,
    relabellings: Int[ndarray, "relabelling member"],
) -> Permuted:
    """`divergence_index` with p: how often families made at random are as far apart.

    Exact where members of both families are exchangeable. Cells without an index have no p.
    """
    value = divergence_index(d, a, b)
    return _permuted(value, d, [a, b], relabellings, _index_sums)


def permuted_f(
    d: Float[ndarray, "*cell cond cond"],
    groups: Sequence[_Group],
    relabellings: Int[ndarray, "relabelling member"],
) -> Permuted:
    """`permanova_f` with p (Anderson 2001): how often families made at random differ as much."""
    value = permanova_f(d, groups)
    return _permuted(value, d, groups, relabellings, _f_sums)


def _permuted(
    value: ndarray, d: ndarray, groups: Sequence[_Group], labels: ndarray, sums: _Sums
) -> Permuted:
    """x / (x + y) stands for x / y: it grows with it, is never infinite, and has the same ranks in
    all cells together, so the same p and max-T p."""
    if not np.array_equal(labels[:1], _identity(groups)):
        raise ValueError("these relabellings are not of these families")
    pairs = _pairs(d, groups)

    def share(rows: ndarray) -> ndarray:
        above, below = sums(pairs, rows)
        return _over(above, above + below, zero=np.nan)

    step = rows_per_block(value.size)
    blocks = (share(labels[start : start + step]) for start in range(0, len(labels), step))
    observed = np.where(np.isnan(value), np.nan, share(labels[:1])[0])
    same, _ = _together(labels)
    smallest = float((same == same[0]).all(1).mean())
    return Permuted(value, *permutation_p(observed, blocks), smallest)


def index_interval(
    grams: Float[ndarray, "replicate *cell cond cond"], a: _Group, b: _Group, noise: float = 0.0
) -> tuple[Float[ndarray, "*cell"], Float[ndarray, "*cell"]]:
    """95 % interval of the index over queries, from the Gram of every bootstrap replicate; `noise`
    as in `distances`.

    Sums serve as well as means: the index does not change with the scale of a Gram. It says how
    well the index of **these** conditions is known, not how it varies over other members.
    """
    return percentile_interval(divergence_index(distances(grams, noise), a, b))


# Maps of conditions --------------------------------------------------------------------------


class _Mds(NamedTuple):
    """Coordinates of conditions; the share of variance on each axis (of the positive eigenvalues)
    and that of the negative ones, which no Euclidean map shows (of all absolute eigenvalues)."""

    coordinates: Float[ndarray, "*cell cond axis"]
    share: Float[ndarray, "*cell axis"]
    negative_share: Float[ndarray, "*cell"]


def classical_mds(d: Float[ndarray, "*cell cond cond"], k: int = 2) -> _Mds:
    """Classical scaling (Torgerson 1952): the centred map in k dimensions of distances d.

    Distances within k dimensions are reproduced exactly. Axes fall in variance, and on each the
    condition farthest from the centre is positive. NaN where a distance is; shares NaN where all
    distances are 0.
    """
    count = d.shape[-1]
    if not 1 <= k <= count:
        raise ValueError(f"{count} conditions have no map in {k} dimensions")
    bad = ~np.isfinite(d).all((-1, -2), keepdims=True)
    centre = np.eye(count) - 1 / count
    eigenvalues, vectors = np.linalg.eigh(-0.5 * centre @ np.where(bad, 0.0, d) ** 2 @ centre)
    noise = 1e-12 * np.abs(eigenvalues).max(-1, keepdims=True)
    eigenvalues = np.where(np.abs(eigenvalues) <= noise, 0.0, eigenvalues)
    positive = np.maximum(eigenvalues, 0)
    top, axes = positive[..., : -k - 1 : -1], vectors[..., : -k - 1 : -1]
    coordinates = _oriented(axes) * np.sqrt(top)[..., None, :]
    negative = (positive - eigenvalues).sum(-1)
    everything = np.abs(eigenvalues).sum(-1)
    bare = bad[..., 0]
    with np.errstate(invalid="ignore"):
        return _Mds(
            np.where(bad, np.nan, coordinates),
            np.where(bare, np.nan, top / positive.sum(-1, keepdims=True)),
            np.where(bare[..., 0], np.nan, negative / everything),
        )


def _oriented(axes: ndarray) -> ndarray:
    """Signs such that the largest entry is positive (the first of those equal to rounding)."""
    sizes = np.abs(axes)
    first = (sizes >= sizes.max(-2, keepdims=True) * (1 - 1e-9)).argmax(-2)
    sign = np.sign(np.take_along_axis(axes, first[..., None, :], -2))
    return axes * np.where(sign == 0, 1, sign)


def aligned(coordinates: Float[ndarray, "layer cond axis"]) -> Float[ndarray, "layer cond axis"]:
    """Each layer's map turned (and mirrored) onto the layer before it, by orthogonal Procrustes
    (Schönemann 1966); distances stay as they are. Layers with NaN are passed over."""
    from scipy.linalg import orthogonal_procrustes  # slow to import, and of no other use here

    turned = coordinates.copy()
    previous = None
    for layer, points in enumerate(coordinates):
        if not np.isfinite(points).all():
            continue
        if previous is not None:
            turned[layer] = points @ orthogonal_procrustes(points, previous)[0]
        previous = turned[layer]
    return turned
