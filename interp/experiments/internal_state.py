"""Does a prompt reach the internal state of a LoRA that says the same?

If the hypothesis holds all the way down (a prompt is a LoRA by other means), the residual streams
of the two runs lie as close as their outputs do, at every layer. If internal state differs although
outputs agree, the distance stays well above zero in some layers; `delta_alignment` then says
whether both at least push the same way from base (1), or reach the same output by unrelated changes
(0). The distance of a neutral prompt's run to the LoRA's is the null: no relation but the model.
Families of prompts and of LoRA seeds say whether that is a difference of kind, an interchange of
the two states whether the rest of the network minds.

That one prompt's state differs does not mean that none reaches it. So virtual tokens, more and
more of them, are tuned to the LoRA's outputs, or also to its states or its attention patterns at
every layer. If the largest budget comes as near on unseen queries as `threshold` times the distance
between LoRA seeds, the state is reached; if it stays farther, it is not.

    interp experiment internal_state                          # the bundled model
    interp experiment internal_state --budgets 16 64 256 --longest 1000
    interp experiment internal_state --model M --adapter A --prompts P --queries Q.jsonl --floor A1
"""

from __future__ import annotations

from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from pydantic import Field

from interp import organism
from interp.conditions import Condition, Prompt
from interp.config import Experiment, read_prompt
from interp.design import BASE
from interp.errors import ConfigError
from interp.experiments.internal_distance import (
    OTHER_SEEDS,
    InternalDistance,
    inside,
    internal_distances,
    internal_summary,
    rewired,
)
from interp.experiments.reachability import (
    Reach,
    Reached,
    by_budget,
    layer_by_layer,
    nearest_kind,
    reach,
)
from interp.experiments.trial import Measurement, Trial
from interp.finding import DecidingEstimate
from interp.matching.evaluation import Evaluation
from interp.matching.settings import Emulation
from interp.matching.virtual import save_virtual_tokens
from interp.patching.run import patch
from interp.patching.settings import Patching
from interp.plots import layers
from interp.plots.curves import Curves, curves
from interp.progress import Progress
from interp.runs import sentences
from interp.runs.view import Run, load_run
from interp.study import run_study

_PROMPT, _VIRTUAL = "prompt", "virtual"

_Levels = dict[str, dict[str, InternalDistance]]
"""Seeds, prompt and base: how far they are from the LoRA, by group of queries."""


class InternalState(Trial):
    """Compare a LoRA with prompts that say the same, and try to reach its state by prompts."""

    point = 5
    claim = "No prompt of this size reaches the LoRA's internal state on unseen queries."
    unit = "steps"

    prompts: tuple[Path, ...] = ()
    """Text files of prompts with the LoRA's outputs; the LoRA was distilled from the first (none:
    those of the bundled model; for another model the best virtual tokens take its place)."""
    budgets: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of virtual tokens."""
    steps: int = Field(default=Reach.steps, ge=1)
    """Gradient steps of every search except the deciding one."""
    longest: int = Field(default=Reach.longest, ge=1)
    """Gradient steps of the deciding search (states, largest budget)."""
    rate: float = Field(default=Reach.rate, gt=0)
    """Adam's learning rate, relative to the root mean square of the initial values."""
    weight: float = Field(default=Reach.inside, gt=0)
    """Weight of the loss on states and patterns, relative to the output divergence in nats."""
    threshold: float = 2.0
    """A state is not reached if its distance is this many times that of other seeds."""

    @property
    def texts(self) -> tuple[Path, ...]:
        """The prompts' files."""
        own = self.model == str(organism.MODEL) and self.adapter is not None
        return self.prompts or (
            tuple(sorted(organism.PROMPTS.glob("instruction_*"))) if own else ()
        )

    def measure(self, progress: Progress) -> Measurement:
        """Virtual tokens tuned to the state, the study with its interchange, and the verdict."""
        plan = Reach(
            self.budgets,
            steps=self.steps,
            longest=self.longest,
            rate=self.rate,
            inside=self.weight,
            seed=self.seed,
        )
        with self.evaluation(_prompts(self)) as evaluation:
            targets = {group: inside(evaluation, group) for group in evaluation.queries}
            names = [name for name in (_PROMPT, BASE) if name in evaluation.subject.settings]
            known = internal_distances(evaluation, names, targets)
            total = sum(steps for *_, steps in plan.searches())
            found = list(
                reach(evaluation, plan, targets, partial(progress, "virtual tokens", 1, total))
            )
        save_virtual_tokens(nearest_kind(found).tuned, self.out / _VIRTUAL, evaluation.subject)
        run = _compared(self, nearest_kind(found).kind)
        notes = (
            sentences.distances_by_layer(run).to_string(float_format="{:.3f}".format),
            sentences.verdict_words(run),
            run.manifest["interchange"]["verdict"],
        )
        every: list[tuple[dict[str, Any], dict[str, InternalDistance]]] = [
            ({"what": o.kind, "to": o.goal, "tokens": o.tuned.tokens}, o.apart) for o in found
        ]
        every += [({"what": name}, groups) for name, groups in known.items()]
        table = pd.DataFrame(
            about | internal_summary(evaluation, group, one)
            for about, groups in every
            for group, one in groups.items()
        )
        figures = {**_drawn(evaluation, found, known), "layers": layers(run)}
        sentence, contrast = _verdict(evaluation, found, known, run, self.threshold)
        n = len(evaluation.queries[_unseen(evaluation)])
        return Measurement(sentence, contrast, n, table, figures, "reachability", notes=notes)


def _prompts(config: InternalState) -> dict[str, Condition]:
    """The first prompt, if there is one."""
    if config.prompt_file is not None:
        raise ConfigError("weights have states of their own: give --adapter, and --prompts")
    if not config.texts:
        return {}
    return {_PROMPT: Prompt(text=read_prompt(config.texts[0]), separator=config.separator)}


def _compared(config: InternalState, kind: str) -> Run:
    """The study of all prompts and seeds and of the best virtual tokens, with the interchange of
    its first prompt's and first LoRA's states."""
    same = set(Experiment.model_fields) & set(Emulation.model_fields)
    asked = config.model_dump(include=same - {"adapter", "prompt_file", "resume", "out"})
    weights = [config.adapter] if config.adapter else []
    tuned = {"tuned": {"fine_tuned": {"model": config.fine_tuned}}} if config.fine_tuned else {}
    out = run_study(
        Experiment(
            **asked | {"overwrite": True},
            out=config.out / "run",
            adapter=(*weights, *config.floor),
            prompt_file=config.texts,
            conditions={**tuned, _VIRTUAL: {kind: {"adapter": str(config.out / _VIRTUAL)}}},
        )
    )
    none: dict[str, Any] = {"head_sites": (), "ablate": (), "greedy": 0, "positions": 0}
    patch(Patching(run=out, sites=("resid_post",), attribution=False, **none))
    return load_run(out)


def _drawn(evaluation: Evaluation, found: list[Reached], known: _Levels) -> dict[str, go.Figure]:
    """What is left apart, by budget and by layer."""
    group = _unseen(evaluation)
    tokens, stream, js = (
        "virtual tokens",
        "residual stream: relative L2",
        "attention: content JS [nats]",
    )
    streams, patterns = (
        by_budget(evaluation, found, known, m) for m in ("relative_l2", "content_js")
    )
    by_layer = layer_by_layer(evaluation, found, known, group)
    return {
        name: curves(
            pd.DataFrame(rows),
            Curves(
                "What virtual tokens leave apart of the LoRA's state",
                x,
                y,
                log_x=x == tokens,
                grey=list(known),
            ),
            evaluation.caption(
                f"At the query's last token, {which}. Grey: what the distances are read against"
            ),
        )
        for name, rows, x, y, which in (
            ("reachability", streams, tokens, stream, "mean over layers"),
            ("reachability_patterns", patterns, tokens, js, "mean over layers and heads"),
            ("reachability_layers", by_layer, "layer", stream, f"{group} queries"),
        )
    }


def _unseen(evaluation: Evaluation) -> str:
    """The queries that nothing was tuned on, if there are any."""
    return "heldout" if "heldout" in evaluation.queries else "matched"


def _left_apart(
    evaluation: Evaluation, group: str, best: Reached, known: _Levels, threshold: float
) -> DecidingEstimate:
    """What is left of the residual stream over what other seeds are apart; unknown without them."""
    what = f"{best.tuned.tokens} virtual tokens over other seeds"
    value, low, high = nan, None, None
    if OTHER_SEEDS in known:
        streams = [groups[group].relative_l2.mean(1) for groups in (best.apart, known[OTHER_SEEDS])]
        value, low, high, _ = (x.item() for x in evaluation.mean(group, *streams))
    return DecidingEstimate(
        f"distance of residual streams from the LoRA's, {what}", value, low, high, threshold
    )


def _verdict(
    evaluation: Evaluation, found: list[Reached], known: _Levels, run: Run, threshold: float
) -> tuple[str, DecidingEstimate]:
    """On the virtual tokens that come nearest; none where they do not even say what the LoRA says,
    as a search that failed proves nothing."""
    best, group = nearest_kind(found), _unseen(evaluation)
    passed = internal_summary(evaluation, "matched", best.apart["matched"])["passed"]
    size = best.tuned.tokens
    given = known if passed else {}
    contrast, tuned = (
        _left_apart(evaluation, g, best, given, threshold) for g in (group, "matched")
    )
    same = [one for one in found if one.kind == best.kind]
    outputs, patterns = (nearest_kind(same, goal).apart[group] for goal in ("outputs", "patterns"))
    far = {name: groups[group].relative_l2.mean() for name, groups in known.items()}
    lora = run.manifest["headline"]["reference"]
    missing = "" if OTHER_SEEDS in known else " (give --floor)"
    sentence = (
        f"{size} virtual tokens ({best.kind}) tuned to outputs (certificate "
        f"{'passed' if passed else 'FAILED: search longer'}) and states are "
        f"{best.apart[group].relative_l2.mean():.2f} of the norm from the LoRA's residual stream "
        f"on {group} queries, {contrast.estimate} times as far as other seeds are{missing}, and "
        f"{best.apart['matched'].relative_l2.mean():.2f} on those tuned on, {tuned.estimate} "
        f"times. Tuned to outputs alone {outputs.relative_l2.mean():.2f} "
        f"({', '.join(f'{name} {value:.2f}' for name, value in far.items())}). Tuned to patterns "
        f"they leave {patterns.content_js.mean():.2g} nats of content JS, of "
        f"{outputs.content_js.mean():.2g}. Re-wiring at pinned inputs no prefix reaches: these at "
        f"most {rewired(run.table, _VIRTUAL):.1g} nats, the LoRA {rewired(run.table, lora):.2g}."
    )
    words = [sentence, *sentences.family_words(run), run.interchange.depth_words]
    return " ".join(words), contrast
