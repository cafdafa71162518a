"""Routers pick what they should, a mixture is answered as after its labels, its LoRA learns it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from interp import organism
from interp.errors import ConfigError
from interp.experiments.draws import HELDOUT
from interp.experiments.fits import FitPlan
from interp.experiments.library import (
    BEST_SINGLE,
    CHOICE,
    MATCHED,
    NEAREST,
    ORACLE_ROUTER,
    RANDOM_ROUTER,
    ROUTERS,
    SERVED,
    Library,
    Task,
    build,
    nearest_centroid,
    read_split,
    served,
    states_of,
)
from interp.experiments.mixture import labels_of, trained
from interp.matching.evaluation import Evaluation
from interp.matching.settings import Emulation, bundled_emulation
from interp.organism.facts import RELATIONS
from interp.queries import Query, read_queries

MIXTURE = [organism.QUERIES / f"mixture{part}.jsonl" for part in ("", "_heldout")]


def test_the_bundled_mixture_has_true_answers_and_unseen_words() -> None:
    matched, heldout = map(read_queries, MIXTURE)
    for query in (*matched, *heldout):
        relation = RELATIONS[str(query.label).removesuffix(" :")]
        assert relation.trained
        assert relation.answers[query.text.removesuffix(" ->")] == query.answer
    assert not {query.text for query in matched} & {query.text for query in heldout}


def test_what_fits_does_not_choose() -> None:
    split = read_split(*MIXTURE, None)
    assert [len(some) for some in split.values()] == [67, 33, 50]
    assert not set(split[MATCHED]) & set(split[CHOICE])
    for some in split.values():  # every task is in every part
        assert len(labels_of({"": some})) == 5


def test_routers_pick_what_they_should() -> None:
    kl = np.array([[0.0, 1.0, 5.0], [2.0, 3.0, 1.0]])
    routes = {NEAREST: {MATCHED: np.array([0, 1, 1])}, SERVED: {MATCHED: np.array([1, 0, 0])}}
    library = Library(("a", "b"), {MATCHED: kl}, routes)
    picked = {router: library.picked(router, MATCHED).tolist() for router in (NEAREST, SERVED)}
    assert picked == {NEAREST: [0, 3, 1], SERVED: [2, 1, 5]}
    assert library.picked(ORACLE_ROUTER, MATCHED).tolist() == [0, 1, 1]
    assert library.picked(RANDOM_ROUTER, MATCHED).tolist() == [1, 2, 3]
    assert library.picked(BEST_SINGLE, MATCHED).tolist() == [0, 1, 5]


def test_a_prompt_that_serves_no_query_best_is_never_picked() -> None:
    states = np.array([[0.0], [1.0], [10.0]])
    kl = np.array([[0.0, 0.0, 9.0], [5.0, 5.0, 5.0], [9.0, 9.0, 0.0]])
    centroids = served(states, kl)
    assert centroids[[0, 2]].tolist() == [[0.5], [10.0]]
    assert nearest_centroid(np.array([[-3.0], [6.0]]), centroids).tolist() == [0, 2]


def test_k_and_router_are_chosen_on_the_queries_that_choose() -> None:
    def library(choice: float, heldout: float) -> Library:
        kl = {CHOICE: np.full((1, 2), choice), HELDOUT: np.full((1, 2), heldout)}
        routes = {router: dict.fromkeys(kl, np.zeros(2, int)) for router in ROUTERS}
        return Library(("a",), kl, routes)

    evaluation: Evaluation = None  # type: ignore[assignment]
    task = Task("", evaluation, {1: library(2.0, 0.0), 2: library(1.0, 5.0)}, None)
    assert task.chosen == (2, NEAREST)


def test_queries_of_a_mixture_need_an_instruction() -> None:
    with pytest.raises(ConfigError, match="'big ->' of the mixture has no label"):
        labels_of({MATCHED: [Query("small ->", label="opposite :"), Query("big ->")]})


def test_a_mixture_is_answered_as_after_its_labels_and_a_lora_learns_it(tmp_path: Path) -> None:
    settings = Emulation(**bundled_emulation(tmp_path))
    asked = {name: some[:10] for name, some in read_split(*MIXTURE, None).items()}
    evaluation = trained(settings, asked, seeds=1, epochs=6)
    for label in labels_of(asked):
        own = np.array([query.label == label for query in evaluation.queries[HELDOUT]])
        kl = evaluation.kl(label, HELDOUT)
        np.testing.assert_allclose(kl[own], 0, atol=1e-5)
        assert kl[~own].mean() > 1
    learned = evaluation.equals(MATCHED)
    assert learned is not None
    assert learned.strength > 0.3

    library = build(evaluation, states_of(evaluation, 3), 2, FitPlan("text", 1, steps=2))
    assert len(library.texts) == 2
    oracle, picked = (library.picked(r, HELDOUT) for r in (ORACLE_ROUTER, NEAREST))
    assert (oracle <= picked).all()
    assert set(np.unique(library.routes[NEAREST][MATCHED])) == {0, 1}
