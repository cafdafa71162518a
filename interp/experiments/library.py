"""A library of prompts, one for every cluster of queries, and a mechanism that picks one.

    evaluation = Evaluation.open(settings, asked=read_split(matched, heldout, None))
    library = build(evaluation, states_of(evaluation, layer=3), k=4, plan=FitPlan("text", 2))
    library.picked(NEAREST, "heldout")              # KL(target ‖ picked prompt) of every query

Clusters are k-means on base's state of a query's last token: what is known before a prompt is
chosen. The prompts are fitted to the matched queries of their cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray
from sklearn.cluster import KMeans

from interp.design import BASE
from interp.experiments.draws import HELDOUT
from interp.experiments.fits import FitPlan, fit_plan
from interp.experiments.ingredients import last_states
from interp.matching.evaluation import Evaluation
from interp.matching.strength import Strength
from interp.queries import Query, read_queries

MATCHED, CHOICE = "matched", "choice"
NEAREST, SERVED = "nearest centroid", "nearest centroid of what works"
ORACLE_ROUTER, RANDOM_ROUTER, BEST_SINGLE = "oracle router", "random router", "best single prompt"
_WEIGHTS = "the weights: LoRA seeds"
ROUTERS = (NEAREST, SERVED)
"""What may be used; the others are bounds and controls."""

_States = Mapping[str, Float[ndarray, "query d_model"]]


@dataclass(frozen=True)
class Library:
    """`k` prompts: what each says, its divergence from the target on every query of every group
    (nats), and which prompt every router picks."""

    texts: tuple[str, ...]
    kl: Mapping[str, Float[ndarray, "prompt query"]]
    routes: Mapping[str, Mapping[str, Int[ndarray, " query"]]]

    def picked(self, router: str, group: str) -> Float[ndarray, " query"]:
        """`KL(target ‖ the prompt that the router picks)`; of the random router its mean."""
        kl = self.kl[group]
        if router == RANDOM_ROUTER:
            return kl.mean(0)
        if router == BEST_SINGLE:
            return kl[self.kl[MATCHED].mean(1).argmin()]
        route = kl.argmin(0) if router == ORACLE_ROUTER else self.routes[router][group]
        return kl[route, np.arange(kl.shape[1])]


def read_split(queries: Path, heldout: Path, limit: int | None) -> dict[str, list[Query]]:
    """The matched queries without every third, which choose; and the held-out ones."""
    asked = read_queries(queries, limit)
    return {
        MATCHED: [query for i, query in enumerate(asked) if i % 3 < 2],
        CHOICE: asked[2::3],
        HELDOUT: read_queries(heldout, limit),
    }


def build(
    evaluation: Evaluation,
    states: _States,
    k: int,
    plan: FitPlan,
    done: Callable[[], None] = lambda: None,
) -> Library:
    """Cluster, fit a prompt to every cluster, score all of them on all queries."""
    means = KMeans(k, n_init=10, random_state=evaluation.settings.seed).fit(states[MATCHED])
    prompts = []
    for cluster in range(k):
        chosen = np.flatnonzero(means.labels_ == cluster).tolist()
        wanted = evaluation.targets[MATCHED].of(chosen)
        prompts.append(fit_plan(evaluation, wanted, plan._replace(seed=plan.seed + cluster)))
        done()
    kl = {group: np.stack([prompt.kl(group) for prompt in prompts]) for group in evaluation.queries}
    centroids = {NEAREST: means.cluster_centers_, SERVED: served(states[MATCHED], kl[MATCHED])}
    routes = {
        router: {group: nearest_centroid(some, places) for group, some in states.items()}
        for router, places in centroids.items()
    }
    return Library(tuple(prompt.text for prompt in prompts), kl, routes)


def served(
    states: Float[ndarray, "query d_model"], kl: Float[ndarray, "prompt query"]
) -> Float[ndarray, "prompt d_model"]:
    """Where the queries lie that every prompt serves best; nowhere for a prompt that serves none
    best, so that it is not picked."""
    best = kl.argmin(0)
    none = np.full(states.shape[1], np.inf)
    return np.stack(
        [states[best == i].mean(0) if (best == i).any() else none for i in range(len(kl))]
    )


def nearest_centroid(
    states: Float[ndarray, "query d_model"], centroids: Float[ndarray, "prompt d_model"]
) -> Int[ndarray, " query"]:
    """The centroid nearest to every state."""
    return np.linalg.norm(states[:, None] - centroids, axis=-1).argmin(1)


def states_of(evaluation: Evaluation, layer: int) -> _States:
    """Base's `resid_post` at the last token of all queries."""
    base = evaluation.subject.settings[BASE]
    found = {g: last_states(evaluation, base, g, [layer])[:, 0] for g in evaluation.queries}
    return {group: states.double().cpu().numpy() for group, states in found.items()}


# --- libraries that grow --------------------------------------------------------------------------


class Task(NamedTuple):
    """A target: its evaluation, the libraries by k, and the weights' strength on held-out
    queries."""

    name: str
    evaluation: Evaluation
    libraries: dict[int, Library]
    weights: Strength | None

    @property
    def chosen(self) -> tuple[int, str]:
        """The k and the router that do best on the queries that choose."""
        every = [(k, router) for k in self.libraries for router in ROUTERS]
        return min(every, key=lambda one: float(self.kl(one[0], one[1], CHOICE).mean()))

    def kl(self, k: int, router: str, group: str) -> Float[ndarray, " query"]:
        """`KL(target ‖ what the library says)`."""
        return self.libraries[k].picked(router, group)

    def strength(self, k: int, router: str, group: str = HELDOUT) -> Strength:
        """What share of the target's effect the library gives."""
        return self.evaluation.strength(self.kl(k, router, group), group)


def library_rows(tasks: list[Task]) -> Iterator[dict[str, Any]]:
    """The strength of every library under every router."""
    for task in tasks:
        for k in task.libraries:
            for router in (*ROUTERS, ORACLE_ROUTER, RANDOM_ROUTER, BEST_SINGLE):
                for group in (MATCHED, HELDOUT):
                    found = task.strength(k, router, group)
                    yield found.point(task.name, router, k) | {"queries": group}
            if task.weights is not None:
                yield task.weights.point(task.name, _WEIGHTS, k) | {"queries": HELDOUT}
