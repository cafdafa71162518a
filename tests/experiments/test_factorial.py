"""Ingredients do what they say, and their gains are what plain arithmetic on the cells gives."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from interp.design import BASE
from interp.experiments.fits import Fitted
from interp.experiments.golden_zone import WAYS, best_combination, each_its_own, effects
from interp.experiments.ingredients import (
    Combination,
    anchored_demonstrations,
    last_states,
    neutral_text,
    own_bias,
    steered,
)
from interp.matching.evaluation import TARGET, Evaluation
from interp.matching.settings import Emulation, bundled_emulation
from interp.names import Site
from interp.subject import Batch


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    fields = bundled_emulation(tmp_path_factory.mktemp("out")) | {"floor": (), "limit": 8}
    return Evaluation.open(Emulation(**fields))


def test_a_vector_is_the_mean_difference_of_states_and_is_added_to_every_token(
    evaluation: Evaluation,
) -> None:
    base, target = (evaluation.subject.settings[name] for name in (BASE, TARGET))
    given, random = steered(evaluation, base)
    ((layer, vector),) = given.evaluation.subject.steering(given.setting)
    there, here = (last_states(evaluation, s, "matched", [layer])[:, 0] for s in (target, base))
    torch.testing.assert_close(vector, (there - here).mean(0))
    ((other, noise),) = random.evaluation.subject.steering(random.setting)
    assert other == layer
    torch.testing.assert_close(noise.norm(), vector.norm())

    batch, site = Batch.of(evaluation.queries["matched"]), Site("resid_post", layer)
    added = evaluation.subject.run(
        base, batch, evaluation.subject.prefill(base), {site: vector.__add__}
    )
    steering = given.evaluation.subject.run(given.setting, batch, given.cache)
    torch.testing.assert_close(steering, added)
    assert given.kl("heldout").mean() < random.kl("heldout").mean()
    assert "after" not in str(evaluation.subject.insertions.vectors)


def test_a_bias_for_all_queries_helps_and_one_of_its_own_is_exact(evaluation: Evaluation) -> None:
    given = Fitted.of(evaluation, evaluation.subject.settings[BASE])
    assert (
        given.biased(evaluation.targets["matched"]).kl("matched").mean()
        < given.kl("matched").mean()
    )
    assert 0 <= own_bias(given, "heldout") + 1e-12 < 1e-6


def test_demonstrations_are_nested_and_anchors_stand_before_them(evaluation: Evaluation) -> None:
    texts = anchored_demonstrations(evaluation, [2, 1], {"none": (), "anchor": (7, 8)})
    assert list(texts) == [(n, a) for a in ("none", "anchor") for n in (0, 1, 2)]
    one, two = texts[1, "none"], texts[2, "none"]
    assert two[-len(one) :] == one  # what helped most alone stands next to the query
    assert texts[2, "anchor"] == (7, 8, *two)
    without = replace(evaluation, settings=evaluation.settings.model_copy(update={"pool": None}))
    assert list(anchored_demonstrations(without, [4], {"none": ()})) == [(0, "none")]


def test_neutral_text_is_as_long_as_asked(evaluation: Evaluation) -> None:
    assert [len(neutral_text(evaluation, n)) for n in (0, 3, 300)] == [0, 3, 300]


def test_gains_are_differences_of_cells(evaluation: Evaluation) -> None:
    """Strengths that are a known sum: a part's gain alone, on average and on top is its own."""
    base = evaluation.kl(BASE, "heldout")
    worth = {4: 0.3, "anchor": 0.2, "soft token": 0.1, "constant": 0.05}
    found = {
        Combination(*cell): {"heldout": base * (1 - sum(worth.get(x, 0) for x in cell))}
        for cell in product(
            (0, 2, 4), ("none", "anchor"), ("none", "soft token"), ("none", "constant")
        )
    }
    table = effects(found, evaluation, "heldout")
    named = dict(zip(table, worth.values(), strict=True))
    assert list(named) == ["4 demonstrations", "anchor", "soft token", "constant bias"]
    for name, ways in table.items():
        assert list(ways) == list(WAYS)
        np.testing.assert_allclose([x.strength for x in ways.values()], named[name])
        np.testing.assert_allclose([x.ci_low for x in ways.values()], named[name])


def test_an_interaction_shows_alone_and_not_on_top(evaluation: Evaluation) -> None:
    """One ingredient is enough: the second gains nothing on top of the first."""
    base = evaluation.kl(BASE, "heldout")
    found = {
        Combination(*cell): {"heldout": base * (cell == (0, "none", "none", "none"))}
        for cell in product((0, 4), ("none", "anchor"), ("none", "soft token"), ("none",))
    }
    alone, average, top = effects(found, evaluation, "heldout")["anchor"].values()
    assert (alone.strength, top.strength) == (1, 0)
    assert average.strength == pytest.approx(1 / 4)


def test_the_best_is_chosen_on_matched_queries_and_each_query_has_its_own() -> None:
    cells = [Combination(n, "none", "none", "none") for n in (0, 1)]
    matched = [np.array([1.0, 3.0]), np.array([2.0, 1.0])]
    heldout = [np.array([0.0, 5.0]), np.array([1.0, 6.0])]
    found = {
        cell: {"matched": m, "heldout": h}
        for cell, m, h in zip(cells, matched, heldout, strict=True)
    }
    assert best_combination(found) == cells[1]
    assert each_its_own(found, "matched").tolist() == [1.0, 1.0]
    assert str(cells[0]) == "nothing"
    assert (
        str(Combination(1, "anchor", "none", "constant"))
        == "anchor + 1 demonstration + constant bias"
    )
