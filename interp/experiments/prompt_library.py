"""Could a library of good prompts, with a mechanism that picks one, stand in for training?

For k = 1, 2, 4, 8: the matched queries are clustered by base's state at their last token, a prompt
is fitted to every cluster, and an unseen query gets the prompt of the nearest centroid. Two thirds
of the matched queries fit the prompts; the last third chooses k and how the centroids are placed
(where the clusters lie, or where the queries lie that each prompt serves best). If the library
gives more than `threshold` of the target's effect on held-out queries it could stand in for the
weights; the LoRA's other seeds say whether it is as near as weights are. A random router and the
best single prompt show what picking is worth, an oracle router what a better mechanism would add.

A LoRA that does one thing needs one prompt. So there is a second target, a mixture: words of
several classes, each asked for another relation, answered as base does after the instruction that
is the query's `label`. LoRAs trained on the same queries are its weights. The verdict is on the
target on which the library does worse.

    interp experiment prompt_library                          # the bundled model
    interp experiment prompt_library --kind soft_prompt --tokens 1 --steps 100
    interp experiment prompt_library --model M --adapter A --queries Q.jsonl --heldout H.jsonl \\
        --mixture X.jsonl --mixture-heldout Y.jsonl
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import pandas as pd
from pydantic import Field

from interp import organism
from interp.experiments import library
from interp.experiments.draws import HELDOUT
from interp.experiments.fits import FitPlan
from interp.experiments.mixture import RECIPE, labels_of, trained
from interp.experiments.trial import Measurement, Trial
from interp.matching.evaluation import Evaluation
from interp.plots.curves import Curves, curves
from interp.progress import Progress
from interp.subject.loading import threads_for


class PromptLibrary(Trial):
    """Fit prompts to clusters of queries, and pick one for every unseen query."""

    point = 6
    claim = "A library of prompts with a router gives the target's output on unseen queries."
    unit = "prompts"
    bundled: ClassVar = {
        "mixture": organism.QUERIES / "mixture.jsonl",
        "mixture_heldout": organism.QUERIES / "mixture_heldout.jsonl",
    }

    mixture: Path | None = None
    """JSONL file of a second target: queries whose `label` is the instruction to base."""
    mixture_heldout: Path | None = None
    """JSONL file of held-out queries of the second target."""
    sizes: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of prompts in a library."""
    kind: Literal["text", "soft_prompt", "prefix"] = "text"
    """Kind of prompt in a library."""
    tokens: int = Field(default=2, ge=1)
    """Length of a prompt in tokens."""
    steps: int = Field(default=8, ge=1)
    """Steps of the search for each prompt."""
    layer: int | None = Field(default=None, ge=0)
    """Layer whose states are clustered (none: a middle one)."""
    loras: int = Field(default=2, ge=0)
    """Number of LoRAs that are trained on the mixture."""
    epochs: int = Field(default=RECIPE.epochs, ge=1)
    """Largest number of epochs that a LoRA is trained."""
    threshold: float = 0.95
    """Strength above which a library counts as equal to the weights."""

    def measure(self, progress: Progress) -> Measurement:
        """Libraries of every size for both targets, and the verdict on the worse one."""
        tasks = [_task(name, evaluation, self, progress) for name, evaluation in _targets(self)]
        table = pd.DataFrame(library.library_rows(tasks))
        shown = table[table["queries"] == HELDOUT]
        ends = {"value": "value", "ci_low": "ci_high", "ci_high": "ci_low"}
        look = Curves(
            "What is left between a library of prompts and the weights",
            "prompts in the library",
            "distance left, as a share of base's",
            log_x=True,
            log_y=True,
            grey=[library.RANDOM_ROUTER, library.BEST_SINGLE],
            levels={f"strength {self.threshold:g}": 1 - self.threshold},
        )
        left = shown.assign(**{a: 1 - shown[b] for a, b in ends.items()})
        figures = {"prompt_library": curves(left, look, _caption(*tasks))}
        worst = min(tasks, key=lambda task: task.strength(*task.chosen).strength)
        there = worst.strength(*worst.chosen)
        what = f"strength of the library on held-out queries, {worst.name}"
        contrast = there.against(self.threshold, what)
        return Measurement(_sentence(tasks), contrast, there.n, table, figures)


def _task(
    name: str, evaluation: Evaluation, config: PromptLibrary, progress: Progress
) -> library.Task:
    """A target with its libraries."""
    layer = evaluation.subject.n_layers // 2 if config.layer is None else config.layer
    sizes = [k for k in sorted(set(config.sizes)) if k <= len(evaluation.queries[library.MATCHED])]
    plan = FitPlan(config.kind, config.tokens, config.steps, config.seed)
    done = partial(progress, name, 1, sum(sizes))
    with threads_for(evaluation.subject.n_parameters):
        states = library.states_of(evaluation, layer)
        found = {k: library.build(evaluation, states, k, plan, done) for k in sizes}
    return library.Task(name, evaluation, found, evaluation.equals(HELDOUT))


def _targets(config: PromptLibrary) -> Iterator[tuple[str, Evaluation]]:
    """The LoRA; and the mixture with LoRAs trained on it."""
    asked = library.read_split(config.queries, config.unseen, config.limit)
    yield "one task", Evaluation.open(config, asked=asked)
    if config.mixture is not None and config.mixture_heldout is not None:
        asked = library.read_split(config.mixture, config.mixture_heldout, config.limit)
        evaluation = trained(config, asked, config.loras, config.epochs)
        yield f"a mixture of {len(labels_of(asked))} tasks", evaluation


def _caption(task: library.Task, *others: library.Task) -> str:
    """The first target and its queries, and how many queries the others have."""
    parts = ["Scored on the held-out queries"]
    for other in others:
        counts = (f"{len(some)} {group}" for group, some in other.evaluation.queries.items())
        parts.append(
            f"{other.name.capitalize()}: {' and '.join(counts)} queries, answered as after the "
            "instruction of each; LoRAs trained on the matched"
        )
    return task.evaluation.caption(". ".join(parts))


def _sentence(tasks: list[library.Task]) -> str:
    """Every target in words."""
    missing = (
        " This target does one thing, for which one prompt is a library: give --mixture and "
        "--mixture-heldout for one that does several."
    )
    return " ".join(map(_in_words, tasks)) + (missing if len(tasks) == 1 else "")


def _in_words(task: library.Task) -> str:
    """One target in words."""
    k, router = task.chosen
    bounds = ", ".join(
        f"{name} {task.strength(k, name).strength:.3g}"
        for name in (library.ORACLE_ROUTER, library.RANDOM_ROUTER, library.BEST_SINGLE)
    )
    growth = ", ".join(
        f"{task.strength(n, library.NEAREST).strength:.3g} (k = {n})" for n in task.libraries
    )
    sentence = (
        f"On {task.name} the nearest centroid gives {growth}; chosen is k = {k} by {router}: "
        f"{task.strength(k, router).strength:.3g} ({bounds})."
    )
    if task.weights is None:
        return sentence
    near = [
        f"k = {n}"
        for n in task.libraries
        if task.strength(n, router).strength >= task.weights.ci_low
    ]
    return (
        f"{sentence} LoRAs reach {task.weights.strength:.4g} [{task.weights.ci_low:.4g}, "
        f"{task.weights.ci_high:.4g}]; so does the library at {', '.join(near) or 'no k'}."
    )
