"""Can a prompt add an ability that the model lacks?

The claim is that no prompt can. An ability is one of two things here, and they are kept apart.
*Facts*: to answer questions whose answers the model never saw paired with them. A text spells them
out, virtual tokens and a LoRA of as many parameters are trained on them, and asked are these facts
and others that were not given, on which nothing should beat a guess. (The bundled model was never
taught to look something up in its context.) *A computation*: to apply a function that training
never asked for to inputs never seen: the separating toy of Petrov et al. (2310.19698), a small
transformer of four tasks, and a prefix and a LoRA of as many parameters trained on a fifth.

The computation decides, since facts can be written down: if the claim holds, the LoRA is right on
more than `threshold` more of the inputs than the prefix; if a prompt does what weights do, there is
no difference.

    interp experiment architectural_limits                    # the bundled models
    interp experiment architectural_limits --counts 1 4 16 64 128 --ranks 1 4 --steps 1000
    interp experiment architectural_limits --model M --facts F.jsonl
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field

from interp import organism, toy
from interp.capture import chunks
from interp.conditions import Base, Condition, Lora, Prefix
from interp.errors import ConfigError
from interp.experiments import storing
from interp.experiments.recall import answered_right
from interp.experiments.trial import Measurement, Trial, estimate_row
from interp.finding import DecidingEstimate
from interp.plots.curves import Curves, curves
from interp.progress import Progress
from interp.queries import Encoded, Query, read_queries
from interp.statistics import Estimate, pooled
from interp.subject import Batch, load
from interp.subject.loading import threads_for

_GIVEN, _OTHERS = "facts that were stored", "facts that were not"
_NOTHING, _GUESS = _GREY = ("nothing added", "a guess among the relation's answers")
_RECALL, _EXACT = "share of facts recalled", "share of outputs right in every digit"

_Right = Float[ndarray, " n"]
_Examined = dict[tuple[str, str], _Right]
"""(condition, task) of the toy -> 1 for every held-out input whose output is right, else 0."""


class ArchitecturalLimits(Trial):
    """Store facts that the model never learned, and examine the separating toy. The target, the
    queries and the pool of the other experiments play no part."""

    point = 4
    claim = "No prompt adds an ability that the model lacks."
    unit = "trainings"

    facts: Path = organism.QUERIES / "left_out.jsonl"
    """JSONL file of facts that the model never learned; the label is the relation."""
    counts: tuple[int, ...] = (4, 16, 64)
    """Numbers of facts that are stored."""
    ranks: tuple[int, ...] = (1,)
    """Ranks of the LoRA; virtual tokens have at most as many parameters."""
    steps: int = Field(default=200, ge=1)
    """Gradient steps for virtual tokens and LoRA alike."""
    rate: float = Field(default=0.3, gt=0)
    """Adam's learning rate for virtual tokens, relative to the size of the initial values."""
    learning_rate: float = Field(default=2e-2, gt=0)
    """AdamW's learning rate for the LoRA."""
    examples: int = Field(default=500, ge=0)
    """Held-out inputs of the separating toy (0: no toy; the facts decide)."""
    threshold: float = 0.5
    """Share of inputs (or facts) by which the LoRA must be ahead of the prompt."""

    def measure(self, progress: Progress) -> Measurement:
        """Facts stored in several storing.ways, the toy examined, and the verdict."""
        facts = storing.shuffled_facts(read_queries(self.facts, self.limit), self.seed)
        counts = tuple(sorted({min(count, len(facts)) for count in self.counts}))
        if not counts or not self.ranks or counts[0] < 1:
            raise ConfigError("give --counts of 1 fact or more, and --ranks")
        budget = storing.StorageBudget(
            counts, self.ranks, self.steps, self.rate, self.learning_rate
        )
        found = storing.store(
            self, facts, budget, partial(progress, "limits", 1, storing.ways(budget))
        )
        asked = self.examples if toy.LORA.is_dir() else 0  # without the toy the facts decide
        seen = examined(asked, self.seed) if asked else {}
        table = _by_count(found, storing.chance(facts), self)
        note = f"Model: {self.model_name}, which never learned these {len(facts)} facts"
        look = Curves(
            "Where can new facts be stored?", "facts stored", _RECALL, log_x=True, grey=_GREY
        )
        figures = {"architectural_limits": curves(table, look, _caption(note, self))}
        if seen:
            rows = _by_task(seen, self)
            note = f"The separating toy, {self.examples} held-out inputs for each task"
            look = Curves("Can a prefix add a computation?", "task", _EXACT, grey=_GREY)
            figures["separating_toy"] = curves(rows, look, _caption(note, self))
            table = pd.concat([table, rows])
        sentence, what, ahead = _compared(found, seen, facts, self.ranks[0])
        value, low, high, n = (float(number) for number in _share(ahead, self))
        contrast = DecidingEstimate(what, value, low, high, self.threshold)
        toy_name = {"figure": "separating_toy", "model": toy.MODEL.parent.name} if seen else {}
        return Measurement(sentence, contrast, int(n), table, figures, **toy_name)


def _by_count(
    found: list[storing.Stored], guess: _Right, config: ArchitecturalLimits
) -> pd.DataFrame:
    """Recall of the facts that were stored and of the others, by way and by how many."""
    base, *stored = found
    shown = [(one.way + one.budget, one, one.right) for one in stored]
    for one in {one.count: one for one in stored}.values():
        shown += [(_NOTHING, one, base.right), (_GUESS, one, guess)]
    return pd.DataFrame(
        estimate_row(panel, series, one.count, _share(part, config))
        | ({"parameters": one.parameters} if series not in _GREY else {})
        for panel, stored_ones in ((_GIVEN, True), (_OTHERS, False))
        for series, one, right in shown
        if len(part := right[: one.count] if stored_ones else right[one.count :])
    )


def _by_task(seen: _Examined, config: ArchitecturalLimits) -> pd.DataFrame:
    """Whole outputs right in the separating toy, by task and by what was added."""
    names = {
        "base": _NOTHING,
        "old_prefix": storing.PREFIX_LABEL,
        "prefix": storing.PREFIX_LABEL,
        "lora": storing.LORA_LABEL,
    }
    tasks = {toy.OLD_TASK: "one of its four (sorting)", toy.NEW_TASK: "new (double histogram)"}
    return pd.DataFrame(
        estimate_row("toy", names[name], words, _share(right, config))
        for task, words in tasks.items()
        for (name, asked), right in seen.items()
        if asked == task
    )


def _share(right: _Right, config: ArchitecturalLimits) -> Estimate:
    """The mean with its interval."""
    keys = [str(i) for i in range(len(right))]
    return pooled(right, 1.0, keys, config.bootstrap, config.seed)


def _compared(
    found: list[storing.Stored], seen: _Examined, facts: list[Query], rank: int
) -> tuple[str, str, _Right]:
    """The sentence; and by how much the LoRA is ahead, in words and of every input of the toy where
    it was examined, else of every fact."""
    base, *stored = found
    most = max(one.count for one in stored)
    last = [one for one in stored if one.count == most and one.rank in (0, rank)]
    lora = next(one for one in last if one.way == storing.LORA_LABEL)
    prompt = max(
        (one for one in last if one.way != storing.LORA_LABEL), key=lambda one: one.given.mean()
    )
    recall = ", ".join(f"{one.given.mean():.2f} ({one.way}{one.budget})" for one in last)
    others = max((one.others.mean() for one in stored if len(one.others)), default=float("nan"))
    sentence = (
        f"Facts (base knows {base.right.mean():.2f} of {len(facts)}): of {most} that were stored, "
        f"recalled are {recall}; of those that were not, at most {others:.2f} (a guess: "
        f"{storing.chance(facts).mean():.2f})."
    )
    ahead, what = lora.given - prompt.given, f"recall of {most} facts, LoRA minus best prompt"
    if seen:
        ahead = seen["lora", toy.NEW_TASK] - seen["prefix", toy.NEW_TASK]
        what = "new computation, LoRA minus prefix at equal parameters"
        right = {name: float(values.mean()) for name, values in seen.items()}
        sentence = (
            f"A computation that training never asked for: the prefix gives "
            f"{right['prefix', toy.NEW_TASK]:.1%} of the outputs, the LoRA "
            f"{right['lora', toy.NEW_TASK]:.1%}; on a task of its training a prefix gives "
            f"{right['old_prefix', toy.OLD_TASK]:.1%}. {sentence}"
        )
    return sentence, what, ahead


def _caption(note: str, config: ArchitecturalLimits) -> str:
    """What a figure must say."""
    return (
        f"{note}. Virtual tokens have no more parameters than the LoRA. Grey: controls. 95 % "
        f"interval, Poisson bootstrap, {config.bootstrap} replicates. Seed {config.seed}."
    )


# --- the separating toy ---------------------------------------------------------------------------


_ADAPTERS: dict[str, tuple[Path, type[Lora | Prefix]]] = {
    "prefix": (toy.PREFIX, Prefix),
    "lora": (toy.LORA, Lora),
    "old_prefix": (toy.OLD_PREFIX, Prefix),
}


def examined(size: int, seed: int) -> _Examined:
    """What the toy's committed prefix and LoRA can do: base and the adapters of the new task on it,
    and base and the old task's prefix on the old one."""
    conditions: dict[str, Condition] = {"base": Base()}
    conditions |= {name: kind(str(folder)) for name, (folder, kind) in _ADAPTERS.items()}
    subject = load(str(toy.MODEL), conditions, [" ".join("0" * toy.LENGTH)])
    found = {}
    with threads_for(subject.n_parameters):
        for name, setting in subject.settings.items():
            cache = subject.prefill(setting)
            for task in _tasks(name):
                parts = []
                for some in chunks(_queries(size, seed, task), 128):
                    whole = [Encoded(q.key, "", (*q.ids, *q.answer_ids[:-1])) for q in some]
                    logits = subject.run(setting, Batch.of(whole, subject.device), cache)
                    parts.append(answered_right(some, logits))
                found[name, task] = np.concatenate(parts)
    return found


def _tasks(name: str) -> tuple[str, ...]:
    if name == "base":
        return (toy.NEW_TASK, toy.OLD_TASK)
    return (toy.OLD_TASK,) if name == "old_prefix" else (toy.NEW_TASK,)


def _queries(size: int, seed: int, task: str) -> list[Encoded]:
    """Inputs without their first token, which a condition brings, and the outputs as answers."""
    end = 1 + toy.LENGTH
    return [
        Encoded(f"{task}:{i}", "", tuple(row[1:end]), tuple(row[end:]))
        for i, row in enumerate(toy.exam(seed, size, task, told=False).tolist())
    ]
