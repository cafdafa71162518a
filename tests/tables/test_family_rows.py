"""Rows about families are those of `interp.families` on Grams pooled by hand."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp import families
from interp.measures.tally import Key, Tally
from interp.positions import position_weights
from interp.statistics import Ratio
from interp.tabulate.families import family_rows

LAYERS, HEADS, QUERIES, WIDTH = 2, 3, 9, 4
LABELS = ("last", "mean", "0", "1")
POSITIONS = position_weights([4, 2, 3, 1, 4, 4, 2, 3, 4], WIDTH, LABELS)[..., :2]

KINDS = {"few": ("few_0", "few_1", "few_2"), "lora": ("lora_0", "lora_1"), "soft": ("s", "t")}
COUNT = sum(map(len, KINDS.values()))
GROUPS = {"few": [0, 1, 2], "lora": [3, 4], "soft": [5, 6]}


def family_tally(place: tuple[int, ...]) -> tuple[Tally, np.ndarray]:
    """An accumulator of random states' Grams, and the pooled Grams under every replicate,
    `[replicate, (layer, head,) label, member, member]`."""
    generator = np.random.default_rng(1)
    x = generator.normal(size=(QUERIES, *place, WIDTH, COUNT, 5))
    x[..., 3:, :] += 0.5
    g = np.einsum("...id,...jd->...ij", x, x)
    weights = np.concatenate([np.ones((QUERIES, 1)), generator.poisson(1, (QUERIES, 25))], 1)
    i, j = np.triu_indices(COUNT)
    triangle = np.moveaxis(g[..., i, j], -1, 1)
    pooled = np.einsum("qr,q...tij,qtp->r...pij", weights, g, POSITIONS)
    tokens = np.einsum("qr,qtp->rp", weights, POSITIONS)
    pooled /= tokens.reshape(len(tokens), *[1] * len(place), 2, 1, 1)
    key = Key("family_gram", "", "", "z")
    return {key: Ratio.of(triangle, 1.0, weights, POSITIONS)}, pooled


@pytest.mark.parametrize("place", [(LAYERS,), (LAYERS, HEADS)], ids=["layers", "heads"])
@pytest.mark.parametrize("names", [("few", "lora"), ("few", "lora", "soft")], ids=str)
def test_family_rows_are_those_of_the_families_of_these_grams(
    place: tuple[int, ...], names: tuple[str, ...]
) -> None:
    tally, pooled = family_tally(place)
    count = sum(len(KINDS[name]) for name in names)
    if count < COUNT:  # the members of the families alone stand in the accumulator
        keep = [i * COUNT + j for i in range(count) for j in range(i, count)]
        order = [i * COUNT + j for i, j in zip(*np.triu_indices(COUNT), strict=True)]
        chosen = np.isin(order, keep)
        ((key, full),) = tally.items()
        assert isinstance(full, Ratio)
        tally = {key: Ratio(full.numerator[:, chosen], full.denominator, full.n)}
        pooled = pooled[..., :count, :count]
    kinds = {name: KINDS[name] for name in names}
    got = pd.DataFrame(list(family_rows(tally, kinds, LABELS, "heldout", seed=5)))
    d = families.distances(pooled[0])
    expected: dict[tuple[str, str, str | None], Any] = {}
    for a, b in combinations(names, 2):
        orders = families.label_permutations([GROUPS[a], GROUPS[b]], 9_999, 5)
        sides = GROUPS[a], GROUPS[b]
        expected["divergence_index", a, b] = families.permuted_index(d, *sides, orders)
        expected["permanova_f", a, b] = families.permuted_f(d, sides, orders)
    if len(names) > 2:
        everyone = list(GROUPS.values())
        orders = families.label_permutations(everyone, 9_999, 5)
        expected["permanova_f", "families", None] = families.permuted_f(d, everyone, orders)
    cells = [*np.ndindex(*place, 2)]
    assert len(got) == len(expected) * len(cells)
    assert (got[["site", "queries", "n"]] == ["z", "heldout", QUERIES]).all(None)
    for (measure, a, b), wanted in expected.items():
        own = got[(got["measure"] == measure) & (got["condition"] == a)]
        own = own[own["reference"].isna() if b is None else own["reference"] == b]
        assert [*own["position"]] == [LABELS[cell[-1]] for cell in cells]
        assert [*own["layer"]] == [cell[0] for cell in cells]
        heads = [cell[1] if len(place) == 2 else None for cell in cells]
        assert [None if pd.isna(head) else head for head in own["head"]] == heads
        np.testing.assert_allclose(own["value"].astype(float), wanted.value.ravel(), rtol=1e-9)
        np.testing.assert_array_equal(own["p_adjusted"].astype(float), wanted.p_max_t.ravel())
        if measure == "divergence_index":
            bounds = families.index_interval(pooled[1:], GROUPS[a], GROUPS[str(b)])
            for name, bound in zip(("ci_low", "ci_high"), bounds, strict=True):
                np.testing.assert_allclose(own[name].astype(float), bound.ravel(), rtol=1e-9)
        else:
            assert own[["ci_low", "ci_high"]].isna().all(None)


def test_one_family_has_nothing_to_be_compared_with() -> None:
    tally, _ = family_tally((LAYERS,))
    assert list(family_rows(tally, {"few": KINDS["few"]}, LABELS, "matched", 0)) == []
