"""Is a prompt an update of the weights, and is it one that does not depend on the query?

To every query a prompt does what a rank-1 update of every MLP would do (Dherin et al. 2507.16003):
an identity, true of any change of activations. What it leaves open is measured here. Are the
queries' updates one update, or as many as there are queries? Do they write and read where the
LoRA's does, more than a neutral text's do? And if all of them are fitted by one low-rank adapter,
how much of the prompt's behaviour does that carry on queries that it has never seen, beside the
LoRA that gradient descent distilled from the prompt?

    interp experiment prompt_as_weights                       # the bundled model
    interp experiment prompt_as_weights --ranks 1 4 16
    interp experiment prompt_as_weights --model M --adapter A --prompt-file P \\
        --queries Q.jsonl --heldout H.jsonl
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import pandas as pd

from interp import organism
from interp.conditions import Lora
from interp.config import Experiment
from interp.design import BASE
from interp.errors import ConfigError
from interp.experiments.trial import Measurement, Trial
from interp.finding import DecidingEstimate
from interp.matching.evaluation import TARGET, Evaluation
from interp.matching.settings import Emulation
from interp.plots.curves import Curves, curves
from interp.plots.implicit import implicit, implicit_by_layer, prompts
from interp.progress import Progress
from interp.runs.view import Run, load_run
from interp.study import run_study
from interp.subject.loading import threads_for
from interp.weights.implicit import patched_projections
from interp.weights.run import weigh
from interp.weights.settings import Weighing
from interp.weights.static import fit_update, save_update

_FITTED, _UNSEEN = "matched", "heldout"
_SHARED = set(Emulation.model_fields) & set(Experiment.model_fields)
_SHARED -= {"adapter", "prompt_file", "heldout", "out", "overwrite", "resume"}
_STATIC, _DISTILLED = "fitted to the implicit updates", "distilled LoRA"


class PromptAsWeights(Trial):
    """Turn a prompt into updates of the weights; compare them with the LoRA distilled from it."""

    point = 0
    claim = (
        "A prompt has an update of the weights that does not depend on the query: one low-rank "
        "adapter fitted to its implicit updates gives its output on unseen queries."
    )
    bundled: ClassVar = {"prompt_file": organism.PROMPTS / "instruction_0.txt"}

    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Ranks of the adapters that are fitted to the updates."""
    ridges: tuple[float, ...] = (0.01, 0.1, 1.0)
    """Ridge penalties to choose from, fitted on one half of the queries and scored on the other."""
    threshold: float = 0.95
    """Strength above which an adapter counts as equal to the prompt."""

    def measure(self, progress: Progress) -> Measurement:
        """The prompt weighed, adapters fitted to its updates and scored, and the verdict."""
        if self.heldout is None or self.prompt_file is None or self.adapter is None:
            raise ConfigError(
                "give --prompt-file, the LoRA that it is compared with, and --heldout"
            )
        run = _weighed(self)
        table, ridge = _strengths(self)
        look = Curves(
            "How much of the prompt does one adapter carry that does not look at the query?",
            "rank",
            "share of the prompt's effect",
            log_x=True,
            grey=[_DISTILLED],
            levels={f"threshold {self.threshold:g}": self.threshold},
        )
        caption = (
            f"Model: {self.model_name}. Adapters of every MLP, block by block, ridge {ridge:g}. "
            f"95 % interval, Poisson bootstrap over queries, {self.bootstrap} replicates."
        )
        figures = {"implicit": implicit(run), "prompt_as_weights": curves(table, look, caption)}
        unseen = table[table["panel"] == "unseen queries"].set_index(["series", "x"])
        best, values = unseen.loc[(_STATIC, max(self.ranks))], unseen["value"]
        by_rank = "; ".join(f"{rank}: {values[_STATIC, rank]:.3g}" for rank in self.ranks)
        sentence = (
            f"{_alike(run)} One adapter fitted to them carries on unseen queries, by rank, "
            f"{by_rank} of the prompt's effect; the distilled LoRA "
            f"{values[_DISTILLED, self.ranks[0]]:.3g}."
        )
        ends = (float(best["value"]), float(best["ci_low"]), float(best["ci_high"]))
        what = "strength on unseen queries of the largest one"
        contrast = DecidingEstimate(what, *ends, self.threshold)
        return Measurement(sentence, contrast, int(best["n"]), table, figures)


def _weighed(config: PromptAsWeights) -> Run:
    """A run of the prompt and the LoRA, beside a neutral text and a random LoRA, weighed."""
    shared = config.model_dump(include=_SHARED)
    out = run_study(
        Experiment(
            **shared,
            adapter=(str(config.adapter),),
            prompt_file=(config.prompt_file,) if config.prompt_file else (),
            controls=("neutral", "random_lora"),
            permutations=0,
            out=config.out / "run",
            overwrite=True,
        )
    )
    return load_run(weigh(Weighing(run=out, heads=False, intruders=False, seed=config.seed)))


def _strengths(config: PromptAsWeights) -> tuple[pd.DataFrame, float]:
    """The adapters' strength by rank, fitted and unseen queries apart; the ridge chosen."""
    settings = Emulation(
        **config.model_dump(include=set(Emulation.model_fields) - {"adapter", "floor"})
    )
    evaluation = Evaluation.open(settings)
    adapters: dict[str, Lora] = {_DISTILLED: Lora(str(config.adapter))}
    with threads_for(evaluation.subject.n_parameters):
        fitted: Any = partial(fit_update, evaluation.subject, BASE, TARGET, size=config.batch_size)
        ridge = _chosen(evaluation, fitted, config)
        for rank in config.ranks:
            found = fitted(evaluation.queries[_FITTED], rank, ridge=ridge)
            folder = save_update(
                found, config.out / "adapters" / f"rank_{rank}", evaluation.subject
            )
            adapters[str(rank)] = Lora(folder)
        evaluation = Evaluation.open(settings, adapters)  # mounts them, and checks parity
        rows = []
        for group, panel in ((_FITTED, "fitted queries"), (_UNSEEN, "unseen queries")):
            found = {
                name: evaluation.strength(evaluation.kl(name, group), group) for name in adapters
            }
            rows += [found[str(rank)].point(panel, _STATIC, rank) for rank in config.ranks]
            rows += [found[_DISTILLED].point(panel, _DISTILLED, rank) for rank in config.ranks]
    return pd.DataFrame(rows), ridge


def _chosen(evaluation: Evaluation, fitted: Any, config: PromptAsWeights) -> float:
    """The ridge whose adapter, fitted to every other query, is nearest the prompt on the rest."""

    def left(ridge: float) -> float:
        deltas = fitted(evaluation.queries[_FITTED][::2], max(config.ranks), ridge=ridge)
        with patched_projections(evaluation.subject, deltas):
            return float(evaluation.kl(BASE, _FITTED)[1::2].mean())

    return min(config.ridges, key=left)


def _alike(run: Run) -> str:
    """How alike the queries' updates are, and how like the LoRA's, in words."""
    of = prompts(run)
    neutral = next((n for n in of.names if n == "neutral"), of.names[-1])

    def mean(measure: str, prompt: str = of.names[0]) -> float:
        return float(implicit_by_layer(run, measure, prompt, of.adapter)["value"].mean())

    n = int(run.table.loc[run.table["measure"] == "implicit_rank", "n"].iloc[0])
    return (
        f"The updates of {n} queries have effective rank {mean('implicit_rank'):.3g} (random "
        f"directions: {mean('implicit_rank_chance'):.3g}) and mean cosine "
        f"{mean('implicit_cosine'):.2g}. They write where the LoRA writes by "
        f"{mean('implicit_overlap_left'):.2g}; a {neutral} text's by "
        f"{mean('implicit_overlap_left', neutral):.2g}, random directions through the same "
        f"weights by {mean('implicit_overlap_left_random'):.2g}, random spaces by "
        f"{mean('implicit_overlap_left_chance'):.2g}."
    )
