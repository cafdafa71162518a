"""The controls of an interchange go as far as the interchange itself, and elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from interp.names import Site
from interp.patching.effects import PATCHING_CONTROLS
from interp.patching.interchange import ConditionRun, PatchMove, Sweep, _Values, partners
from interp.patching.sites import PatchSite
from interp.queries import Encoded

D = 16
SITE = Site("mlp_out", 0)
HERE = [
    Encoded("matched:0", "", (1, 2, 3)),
    Encoded("matched:1", "", (1, 2)),
    Encoded("matched:2", "", (1, 2, 3, 4, 5), (6, 7, 8), n_text=2),
]
THERE = [
    Encoded("matched:3", "", (1,)),
    Encoded("matched:4", "", (1, 2, 3, 4)),
    Encoded("matched:5", "", (1, 2, 3, 4, 5, 6), (7, 8), n_text=3),
]
LENGTHS = [3, 2, 7]
COUNTERPARTS = [[0, 0, 0], [2, 3], [1, 2, 3, 4, 5, 6, 6]]
"""Rows of `THERE` for those of `HERE`: text and template from the right, answers from the left."""


def drawn(seed: int, queries: list[Encoded]) -> Tensor:
    longest = max(len(query.forced) for query in queries)
    return torch.randn(len(queries), longest, D, generator=torch.Generator().manual_seed(seed))


def states(queries: list[Encoded], first: int) -> dict[str, ConditionRun]:
    values = {name: drawn(first + i, queries) for i, name in enumerate(("a", "b"))}
    return {name: ConditionRun({SITE: v}, torch.zeros(2, 1), None) for name, v in values.items()}


def placed(
    control: str, own: Mapping[str, ConditionRun], other: Mapping[str, ConditionRun]
) -> Tensor:
    """What a control of the move from a into b puts into b's run."""
    plan = Sweep("a", "b", "base", ("mlp_out",), (), ())
    values = _Values(plan, HERE, THERE, own, other)
    edit = values.edit(PatchMove("a", "b", control), PatchSite("mlp_out", 0, None, "all"))
    return edit.change(own["b"].values[SITE])


@pytest.mark.parametrize("control", PATCHING_CONTROLS)
def test_as_far_as_the_source_and_elsewhere(control: str) -> None:
    own, other = states(HERE, 0), states(THERE, 10)
    a, b = (own[name].values[SITE] for name in "ab")
    step = placed(control, own, other) - b
    for query, length in enumerate(LENGTHS):
        for position in range(length):
            mine, theirs = step[query, position], (a - b)[query, position]
            assert mine.norm() == pytest.approx(float(theirs.norm()), rel=1e-5)
            assert abs(torch.cosine_similarity(mine, theirs, dim=0)) < 0.8


def test_along_the_difference_at_the_unrelated_query_in_the_same_segment() -> None:
    own, other = states(HERE, 0), states(THERE, 10)
    step = placed("random_difference", own, other) - own["b"].values[SITE]
    there = other["a"].values[SITE] - other["b"].values[SITE]
    for query, places in enumerate(COUNTERPARTS):
        assert len(places) == LENGTHS[query]
        for position, counterpart in enumerate(places):
            along = torch.cosine_similarity(step[query, position], there[query, counterpart], dim=0)
            assert along == pytest.approx(1, abs=1e-5)


def test_where_nothing_differs_nothing_moves() -> None:
    """Also in an unrelated query where this one differs by far: no direction, and no NaN."""
    own, other = states(HERE, 0), states(THERE, 10)
    still = dict.fromkeys("ab", other["a"])
    far = {
        "a": ConditionRun({SITE: 1e3 * own["a"].values[SITE]}, own["a"].logits, None),
        "b": own["b"],
    }
    assert torch.equal(placed("random_difference", far, still), own["b"].values[SITE])
    for control in PATCHING_CONTROLS:
        same = dict.fromkeys("ab", own["b"])
        assert torch.equal(placed(control, same, other), own["b"].values[SITE])


@pytest.mark.parametrize("n", [2, 3, 17])
def test_partners_are_others_each_once(n: int) -> None:
    keys = [f"matched:{i}" for i in range(n)]
    found = partners(keys, 0)
    assert sorted(found) == list(range(n))
    assert all(i != partner for i, partner in enumerate(found))
    assert n < 5 or partners(keys, 1) != found
