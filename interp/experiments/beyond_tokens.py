"""When a prompt makes the model say what a LoRA makes it say, is it the same inside?

If choosing tokens were all there is, what says the same would also look the same inside. Here the
LoRA is emulated in several ways: by text that a gradient found, demonstrations, virtual tokens,
and by logit biases, which move the outputs and cannot move a state. Each has its match certificate
and its distance from the LoRA's residual stream and attention patterns. If the best-matched prompt
lies as near as other seeds of the LoRA do, token choice says all; if it is more than `threshold`
times as far, outputs that agree hide other attention and other states. Base is the ceiling.

    interp experiment beyond_tokens                           # the bundled model
    interp experiment beyond_tokens --virtual 64 --steps 300
    interp experiment beyond_tokens --model M --adapter A --queries Q.jsonl --floor A1 A2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from pydantic import Field

from interp.config import Experiment, from_yaml
from interp.design import BASE
from interp.experiments.internal_distance import (
    OTHER_SEEDS,
    InternalDistance,
    inside,
    internal_distance,
    internal_distance_rows,
    internal_distances,
    internal_summary,
    rewired,
)
from interp.experiments.trial import Measurement, Trial
from interp.finding import DecidingEstimate
from interp.matching.evaluation import TARGET, Evaluation
from interp.matching.examples import Examples, fit_answers
from interp.matching.invert import EXPERIMENT, invert
from interp.matching.settings import Emulation, Inversion
from interp.plots.curves import Curves, curves
from interp.progress import Progress
from interp.runs.view import Run, load_run
from interp.study import run_study

_PROMPTS = ("text", "few_shot", "soft_prompt", "prefix")
_ONE_BIAS, _OWN_BIASES = "logit_bias", "bias_per_query"
_NEUTRAL, _BIASED = "neutral", "text_and_bias"

_Found = dict[str, dict[str, InternalDistance]]
"""Condition -> group of queries -> how far it is from the target."""


class BeyondTokens(Trial):
    """Emulate a LoRA's outputs in several ways, and look inside."""

    point = 2
    claim = "What says the same as the LoRA differs from it in its states and its attention."
    unit = "steps"

    tokens: int = Field(default=1, ge=1)
    """Tokens of the text."""
    virtual: int = Field(default=8, ge=1)
    """Virtual tokens of the soft prompt and the prefix."""
    shots: int = Field(default=8, ge=1)
    """Largest number of demonstrations (without --pool: none)."""
    text_steps: int = Field(default=8, ge=1)
    """Steps of the text search."""
    steps: int = Field(default=80, ge=1)
    """Gradient steps for virtual tokens."""
    threshold: float = 2.0
    """A state is another one if its distance is this many times that of other seeds."""

    def measure(self, progress: Progress) -> Measurement:
        """Every emulation, how far inside it is from the target, and the verdict."""
        experiment = Experiment(**_conditions(self, progress))
        run = load_run(run_study(experiment))
        built = {
            name: c
            for name, c in experiment.build().items()
            if name in (*_PROMPTS, _BIASED, _NEUTRAL)
        }
        with self.evaluation(built) as evaluation:
            found = _apart_of_all(evaluation, list(built))
        table = pd.DataFrame(
            {"condition": name}
            | internal_summary(evaluation, group, one)
            | {"petrov_residual": rewired(run.table, "floor_0" if name == OTHER_SEEDS else name)}
            for name, groups in found.items()
            for group, one in groups.items()
        )
        figures = {
            "beyond_tokens": _drawn(
                found, evaluation, "relative_l2", "residual stream: relative L2"
            ),
            "patterns": _drawn(
                found, evaluation, "content_js", "attention: content JS [nats], mean of heads"
            ),
        }
        sentence, contrast, n = _verdict(found, table, evaluation, run, self.threshold)
        return Measurement(sentence, contrast, n, table, figures)


def _conditions(config: BeyondTokens, progress: Progress) -> dict[str, Any]:
    """The fields of a study of the target, its equals, and everything that emulates it."""
    known: dict[str, Any] = {
        f"floor_{i}": {"lora": {"adapter": adapter}} for i, adapter in enumerate(config.floor)
    }
    seeds = {"seeds": (TARGET, *known)} if known else {}
    for kind, spec, target in _emulations(config, lambda label, of: progress(label, 1, of)):
        known = {TARGET: target} | known | {kind: spec[0] if isinstance(spec, list) else spec}
        known |= {_BIASED: spec} if isinstance(spec, list) else {}
    known |= {_ONE_BIAS: {"fitted_bias": {"like": TARGET}}, _NEUTRAL: {"neutral": {"like": "text"}}}
    same = set(Experiment.model_fields) & set(Emulation.model_fields)
    asked = config.model_dump(include=same - {"adapter", "prompt_file", "out", "resume"})
    quick = {"controls": (), "permutations": 0, "sample": 0, "max_positions": 0}
    own = {"out": config.out / "run", "overwrite": True, "conditions": known, "families": seeds}
    return asked | quick | own


def _emulations(
    config: BeyondTokens, tick: Callable[[str, int], None]
) -> Iterator[tuple[Any, Any, Any]]:
    """The kind, the emulation and the target of every inversion, as an experiment file has them;
    the text has a fitted bias beside it."""
    sizes = dict(zip(_PROMPTS, (config.tokens, config.shots, *[config.virtual] * 2), strict=True))
    common = config.model_dump(include=set(Emulation.model_fields)) | {"overwrite": True}
    for kind, tokens in sizes.items():
        if kind == "few_shot" and config.pool is None:
            continue
        steps = config.text_steps if kind == "text" else config.steps
        own = {"kind": kind, "tokens": tokens, "steps": steps, "bias": kind == "text"}
        out = config.out / kind

        def step(_: str, __: int, of: int, ___: float, kind: str = kind) -> None:
            tick(kind, of)

        invert(Inversion(**common | own | {"out": out}), step)
        said = from_yaml(out / EXPERIMENT)["conditions"]
        yield kind, said["emulation"], said["target"]


def _apart_of_all(evaluation: Evaluation, names: list[str]) -> _Found:
    """Every condition's distance from the target; the biases are fitted here."""
    subject, size = evaluation.subject, evaluation.settings.batch_size
    targets = {group: inside(evaluation, group) for group in evaluation.queries}
    base = subject.settings[BASE]
    bias = fit_answers(subject, targets["matched"], base, size)
    subject.settings[_ONE_BIAS] = replace(base, bias=bias)
    found = internal_distances(evaluation, (*names, _ONE_BIAS, BASE), targets)
    return found | {
        _OWN_BIASES: {g: _own_biases(evaluation, target) for g, target in targets.items()}
    }


def _own_biases(evaluation: Evaluation, target: Examples) -> InternalDistance:
    """Base with a logit bias of its own for every query."""
    subject, base, parts = evaluation.subject, evaluation.subject.settings[BASE], []
    for one in (target.of([i]) for i in range(len(target))):
        biased = replace(base, bias=fit_answers(subject, one, base, 1))
        parts.append(internal_distance(subject, biased, one, 1))
    return InternalDistance(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _drawn(found: _Found, evaluation: Evaluation, measure: str, what: str) -> go.Figure:
    """Distance from the target by layer; what has the states of another is not drawn twice."""
    shown = {name: found[name] for name in found if name not in (_BIASED, _OWN_BIASES, BASE)}
    note = (
        "Distance from the target at the query's last token. Grey: controls; a logit bias leaves "
        "the states of base. "
    )
    signed = [
        name
        for name in shown
        if internal_summary(evaluation, "matched", found[name]["matched"])["passed"]
    ]
    table = pd.DataFrame(internal_distance_rows(evaluation, shown, measure))
    grey = [name for name in (OTHER_SEEDS, _NEUTRAL, _ONE_BIAS) if name in shown]
    look = Curves("What says the same as the target: how far inside?", "layer", what, grey=grey)
    return curves(table, look, evaluation.caption(f"{note}Outputs matched: {', '.join(signed)}"))


def _verdict(
    found: _Found, table: pd.DataFrame, evaluation: Evaluation, run: Run, threshold: float
) -> tuple[str, DecidingEstimate, int]:
    """On the prompt that matches the outputs best: the sentence, the number that decides, n."""
    matched = table[table["queries"] == "matched"].set_index("condition")
    best = matched.loc[[name for name in _PROMPTS if name in found], "kl"].idxmin()
    prompt, far = matched.loc[best], matched["relative_l2"]
    value, low, high = float("nan"), None, None
    if OTHER_SEEDS in found and prompt["passed"]:
        streams = [found[name]["matched"].relative_l2.mean(1) for name in (best, OTHER_SEEDS)]
        value, low, high, _ = (x.item() for x in evaluation.mean("matched", *streams))
    biased = run.table[run.table["condition"].eq(_ONE_BIAS) & run.table["reference"].eq(BASE)]
    moved = biased.query("measure == 'relative_l2'")["value"].max()
    floor = (
        f"other seeds are {far[OTHER_SEEDS]:.2f}" if OTHER_SEEDS in found else "no --floor is given"
    )
    sentence = (
        f"The best-matched prompt ({best}: mean JS {prompt['mean_js']:.2g} nats, certificate "
        f"{'passed' if prompt['passed'] else 'FAILED, so there is no verdict'}) lies "
        f"{far[best]:.2f} of the norm from the LoRA's residual stream; {floor}, base is "
        f"{far[BASE]:.2f}. At pinned inputs it re-wires heads by at most "
        f"{prompt['petrov_residual']:.1g} nats, the LoRA by {rewired(run.table, TARGET):.2g}. A "
        f"logit bias moves states by {moved:g}; one for every query matches the outputs to "
        f"{matched['kl'][_OWN_BIASES]:.1g} nats and stays {far[_OWN_BIASES]:.2f} from the LoRA "
        "inside: outputs that agree say nothing of states."
    )
    what = f"distance of residual streams from the LoRA's, {best} over other seeds"
    return sentence, DecidingEstimate(what, value, low, high, threshold), int(prompt["n"])
