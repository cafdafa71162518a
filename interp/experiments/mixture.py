"""A target that does different things on different queries, and LoRAs that are trained to do them.

    asked = {"matched": read_queries("mixture.jsonl")}      # label: the instruction
    evaluation = trained(settings, asked, seeds=2, epochs=60)
    evaluation.kl("floor_0", "matched")                          # of the first LoRA

Every query is answered as the model does after the instruction that is its label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from interp.conditions import Prompt
from interp.design import BASE
from interp.errors import ConfigError
from interp.matching.evaluation import Evaluation
from interp.matching.examples import Examples, examples
from interp.matching.lora import Example, Recipe, train, with_lora
from interp.matching.plain import open_plain_model
from interp.matching.settings import Emulation
from interp.queries import Query
from interp.subject.loading import quiet

RECIPE = Recipe(
    rank=8,
    alpha=16.0,
    targets=("all-linear",),
    learning_rate=2e-3,
    epochs=60,
    batch_size=16,
    target_kl=1e-3,
    patience=15,
    seed=0,
)


def trained(
    settings: Emulation, asked: Mapping[str, Sequence[Query]], seeds: int, epochs: int
) -> Evaluation:
    """An evaluation whose target is the mixture and whose equals are LoRAs trained on the matched
    queries, one per seed; they are written to `out`."""
    prompts = {x: Prompt(text=x, separator=settings.separator) for x in labels_of(asked)}
    folders = [settings.out / f"lora_{seed}" for seed in range(seeds)]
    evaluation = _mixed(Evaluation.open(settings.model_copy(update={"floor": ()}), prompts, asked))
    for seed, folder in enumerate(folders):
        _train_lora(evaluation, RECIPE._replace(epochs=epochs, seed=seed), folder)
    equals = settings.model_copy(update={"floor": tuple(map(str, folders))})
    return _mixed(Evaluation.open(equals, prompts, asked))


def _mixed(evaluation: Evaluation) -> Evaluation:
    """The same evaluation with another target: every query is answered as after its label, which
    is the name of a condition."""
    targets = {group: _answered(evaluation, group) for group in evaluation.queries}
    return replace(evaluation, targets=targets)


def _answered(evaluation: Evaluation, group: str) -> Examples:
    queries, size = evaluation.queries[group], evaluation.settings.batch_size
    labels = [str(query.label) for query in queries]
    first = evaluation.targets[group]
    logits = torch.empty_like(first.logits)
    for label in dict.fromkeys(labels):
        said = examples(
            evaluation.subject, evaluation.subject.settings[label], queries, size
        ).logits
        rows = torch.tensor([own == label for own in labels], device=said.device)[first.rows]
        logits[rows] = said[rows]
    return replace(first, logits=logits)


def labels_of(groups: Mapping[str, Sequence[Query]]) -> list[str]:
    """The instructions of a mixture's queries; all must have one."""
    queries = [query for some in groups.values() for query in some]
    if missing := [query.text for query in queries if not query.label]:
        raise ConfigError(f"the query {missing[0]!r} of the mixture has no label (its instruction)")
    return list(dict.fromkeys(str(query.label) for query in queries))


def _train_lora(evaluation: Evaluation, recipe: Recipe, out: Path) -> None:
    """One LoRA for all that the matched queries ask."""
    settings, wanted = evaluation.settings, evaluation.targets["matched"]
    with quiet():
        student = with_lora(open_plain_model(settings.model, settings), recipe)
    lines = [wanted.of([i]) for i in range(len(wanted))]
    some = [
        Example(
            tuple(line.batch.ids[0, : int(line.batch.lengths[0])].tolist()),
            int(line.columns[0]),
            line.logits.float().log_softmax(-1).cpu(),
        )
        for line in lines
    ]
    train(student, evaluation.subject.settings[BASE].prefix, lambda _: some, recipe, out)
