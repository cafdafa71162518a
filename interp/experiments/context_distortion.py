"""Does a huge prompt blur the query?

The claim is that it does: the more stands around an instruction, the less of its effect is left.
Here the instruction is kept and filler is put after, around or before it, up to what the model can
read: demonstrations of the same task (relevant), ordinary text (neutral), demonstrations with the
wrong answers or of another task (distracting); and the same filler without the instruction, which
is as long. If the claim holds, the instruction loses more than `threshold` of its strength to the
longest neutral filler, wherever it stands; if length alone does no harm, it loses nothing, and what
distracting filler takes away is what it says and not its length. The bundled model was trained
on texts of at most 256 tokens: what it loses beyond is a model at the end of its context.

    interp experiment context_distortion                      # the bundled model
    interp experiment context_distortion --lengths 16 64 256
    interp experiment context_distortion --model M --adapter A --queries Q.jsonl \\
        --instruction PROMPT.txt --pool P.jsonl --rival R.jsonl
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from pydantic import Field
from torch import Tensor

from interp import organism
from interp.capture import Reader, capture, chunks
from interp.conditions import Prompt, Setting, prefix_body
from interp.conditions.placing import TokenIds
from interp.config import read_prompt
from interp.design import BASE
from interp.experiments.filler import NEUTRAL_FILLER, PLACES, fillers, lengths_that_fit, placed
from interp.experiments.fits import FitPlan, fit_plan
from interp.experiments.recall import answered_right
from interp.experiments.trial import Measurement, Trial, estimate_row
from interp.finding import DecidingEstimate
from interp.matching.evaluation import Evaluation
from interp.matching.examples import Examples, examples
from interp.measures import wide
from interp.measures.attention import entropy, read_rows
from interp.names import Site
from interp.plots.curves import Curves, curves
from interp.progress import Progress

_AXES = {
    "strength": "strength: share of the target's effect",
    "query_mass": "attention left on the query's own tokens",
    "moved": "KL (short prompt ‖ prompt), nats",
    "entropy": "entropy of the next token, nats",
    "accuracy": "accuracy",
}
_GROUP = "matched"
ALONE = "no instruction"
_SERIES = {"after": "instruction first", "around": "in the middle", "before": "instruction last"}

_Lost = dict[tuple[str, int], tuple[float, float, float, int]]
"""(kind of filler, tokens of it) -> strength lost: value, interval, queries."""


class ContextDistortion(Trial):
    """Make a prompt long and see what becomes of its effect."""

    point = 3
    claim = "A huge prompt blurs the query."
    unit = "prompts"
    bundled: ClassVar = {"rival": organism.QUERIES / "rival.jsonl"}

    instruction: Path | None = None
    """Text file of the instruction (none: the target if it is a prompt, the bundled model's
    `opposite :`, or a text found by search for another model)."""
    rival: Path | None = None
    """JSONL file of demonstrations of another task."""
    lengths: tuple[int, ...] = (8, 32, 128, 240, 480)
    """Lengths of the filler in tokens, cut to the context that the model can read."""
    tokens: int = Field(default=4, ge=1)
    """Length of a searched instruction in tokens."""
    threshold: float = 0.1
    """A long prompt blurs the query if it loses at least this strength."""

    def measure(self, progress: Progress) -> Measurement:
        """Every filler at every place and length, what it takes away, and the verdict."""
        with self.evaluation() as evaluation:
            instruction = _instruction(evaluation, self)
            kinds = fillers(evaluation, self.rival)
            lengths = lengths_that_fit(evaluation, instruction, self.lengths)
            done = partial(progress, "distortion", 1, len(kinds) * len(lengths) * (len(PLACES) + 1))
            found = sweep_fillers(evaluation, instruction, kinds, lengths, done)
            loss = {
                (kind, length): strength_lost_to_filler(found, evaluation, kind, length)
                for kind, length in product(kinds, lengths)
            }
            table = distortion_table(found, evaluation)
        text = str(evaluation.subject.tokenizer.decode(list(instruction))).strip()
        caption = evaluation.caption(f"Instruction: “{text}”. Grey: as much filler without it")
        figures = {}
        for measure, rows in table.groupby("measure", sort=False):
            look = Curves(
                "Does filler blur the query?", "tokens of filler", _AXES[str(measure)], grey=[ALONE]
            )
            name = "context_distortion" if measure == "strength" else str(measure)
            figures[name] = curves(rows, look, caption)
        most = max(lengths)
        value, low, high, n = loss[NEUTRAL_FILLER, most]
        what = f"strength lost to {most} tokens of neutral filler"
        contrast = DecidingEstimate(what, value, low, high, self.threshold)
        main_table = table[table["measure"] == "strength"]  # the others lie beside their figures
        return Measurement(_sentence(table, loss, most, self), contrast, n, main_table, figures)


def _instruction(evaluation: Evaluation, config: ContextDistortion) -> TokenIds:
    """The instruction's tokens, from its file or by search."""
    file = config.instruction or config.prompt_file
    if file is None and Path(config.model) == organism.MODEL:
        file = organism.PROMPTS / "instruction_0.txt"
    if file is None:
        found = fit_plan(
            evaluation,
            evaluation.targets["matched"],
            FitPlan("text", config.tokens, seed=config.seed),
        )
        return found.setting.prefix[len(evaluation.subject.settings[BASE].prefix) :]
    prompt = Prompt(text=read_prompt(file), separator=config.separator)
    return tuple(prefix_body(prompt, evaluation.subject.tokenizer))


class _Reading(NamedTuple):
    """What a condition makes of every query, `[query]`.

    `kl`: `KL(target ‖ condition)`, nats. `moved`: `KL(short prompt ‖ condition)`, nats. `entropy`
    of the next token, nats. `query_mass`: what the query's last token leaves of its attention to
    the query's own tokens, `[0, 1]`, mean over layers and heads. `accuracy`: whether every token of
    the answer ranks first after those before it; NaN without an answer.
    """

    kl: Float[ndarray, " query"]
    moved: Float[ndarray, " query"]
    entropy: Float[ndarray, " query"]
    query_mass: Float[ndarray, " query"]
    accuracy: Float[ndarray, " query"]


_Found = dict[tuple[str, str, int], _Reading]
"""(kind of filler, place or ALONE, tokens of it) -> what becomes of the queries."""


def sweep_fillers(
    evaluation: Evaluation,
    instruction: TokenIds,
    kinds: Mapping[str, TokenIds],
    lengths: Sequence[int],
    done: Callable[[], None] = lambda: None,
) -> _Found:
    """Every kind of filler at every place and length, and as much of it without the instruction;
    `done` is called after each."""
    setting = _prompted(evaluation, instruction)
    short = examples(
        evaluation.subject, setting, evaluation.queries[_GROUP], evaluation.settings.batch_size
    )
    start, nothing = (_reading(evaluation, s, short) for s in (setting, _prompted(evaluation, ())))
    found: _Found = {}
    for kind, filler in kinds.items():
        for series in (*PLACES, ALONE):
            found[kind, series, 0] = nothing if series == ALONE else start
        for length in lengths:
            prompts = {ALONE: placed((), filler, length, "before")}
            prompts |= {place: placed(instruction, filler, length, place) for place in PLACES}
            for place, ids in prompts.items():
                found[kind, place, length] = _reading(evaluation, _prompted(evaluation, ids), short)
                done()
    return found


def _prompted(evaluation: Evaluation, ids: TokenIds) -> Setting:
    """Base with these tokens between its own first ones and the query."""
    base = evaluation.subject.settings[BASE]
    return replace(base, prefix=(*base.prefix, *ids))


def _reading(evaluation: Evaluation, setting: Setting, short: Examples) -> _Reading:
    """Run the matched queries under a setting; `short` is what the short prompt says of them."""
    cache, parts = evaluation.subject.prefill(setting), []
    sites: dict[Site, Reader] = dict.fromkeys(evaluation.subject.sites("pattern"), _left)
    for some in chunks(range(len(short)), evaluation.settings.batch_size):
        wanted, before = evaluation.targets[_GROUP].of(some), short.of(some)
        queries = [evaluation.queries[_GROUP][i] for i in some]
        got = capture(evaluation.subject, setting, wanted.batch, cache, sites)
        rows, last = torch.arange(len(some)), torch.tensor([len(q.ids) - 1 for q in queries])
        values = (
            wanted.kl(got.logits),
            before.kl(got.logits),
            entropy(wide(got.logits[rows, last]).softmax(-1)),
            torch.stack(list(got.values.values())).mean(0)[rows, last],
        )
        numbers = [value.cpu().numpy() for value in values]
        parts.append([*numbers, answered_right(queries, got.logits)])
    return _Reading(*map(np.concatenate, zip(*parts, strict=True)))


def _left(pattern: Tensor) -> Float[Tensor, "query query_pos"]:
    return 1 - read_rows(pattern).prefix_mass.mean(1)


def distortion_table(found: _Found, evaluation: Evaluation) -> pd.DataFrame:
    """One row per measure, kind of filler, place and length, with its interval over queries."""
    base, rows = evaluation.kl(BASE, _GROUP), []
    for name, ((kind, place, length), got) in product(_AXES, found.items()):
        strong = name == "strength"
        above = base - got.kl if strong else getattr(got, name)
        if np.isnan(above).all():
            continue
        estimate = evaluation.mean(_GROUP, above, base if strong else 1.0)
        rows.append(
            {
                "measure": name,
                **estimate_row(kind, _SERIES.get(place, place), str(length), estimate),
            }
        )
    return pd.DataFrame(rows)


def strength_lost_to_filler(
    found: _Found, evaluation: Evaluation, kind: str, length: int
) -> tuple[float, float, float, int]:
    """Strength lost to so much filler of a kind, the mean of the places where it may stand: value,
    interval, queries."""
    after = np.mean([found[kind, place, length].kl for place in PLACES], axis=0)
    lost = evaluation.mean(
        _GROUP, after - found[kind, PLACES[0], 0].kl, evaluation.kl(BASE, _GROUP)
    )
    value, low, high, n = (float(number) for number in lost)
    return value, low, high, int(n)


def _sentence(table: pd.DataFrame, loss: _Lost, most: int, config: ContextDistortion) -> str:
    """What every place and kind of filler leaves of the instruction, and of the attention."""
    values = table.set_index(["measure", "panel", "series", "x"])["value"]
    first, *_ = places = tuple(_SERIES.values())

    def at(measure: str, series: str, length: int, kind: str = NEUTRAL_FILLER) -> float:
        return float(values[measure, kind, series, str(length)])

    by_place = ", ".join(f"{at('strength', s, most):.2f} ({s})" for s in (*places, ALONE))
    others = [kind for kind, length in loss if length == most and kind != NEUTRAL_FILLER]
    taken = ", ".join(f"{_words(loss[kind, most])} ({kind})" for kind in others)
    rest = f"As much other filler takes away {taken}. " if others else ""
    mass = [at("query_mass", series, most) for series in (*places, ALONE)]
    return (
        f"The instruction alone has strength {at('strength', first, 0):.2f}; with {most} "
        f"tokens of neutral filler it is {by_place}. {_within(loss, config)}{rest}"
        f"Of the attention of the query's last token, "
        f"{at('query_mass', first, 0):.2f} stays on the query behind the short prompt, "
        f"{min(mass[:-1]):.2f} to {max(mass[:-1]):.2f} behind the longest neutral ones and "
        f"{mass[-1]:.2f} behind as much filler without the instruction."
    )


def _within(loss: _Lost, config: ContextDistortion) -> str:
    """What is lost where the model has been trained, as far as that is known."""
    known = organism.TRAINED_LENGTH if Path(config.model) == organism.MODEL else 0
    seen = [length for kind, length in loss if kind == NEUTRAL_FILLER and length < known]
    if not seen:
        return ""
    return (
        f"The model was trained on at most {known} tokens: {max(seen)} of neutral filler take "
        f"{_words(loss[NEUTRAL_FILLER, max(seen)])}. "
    )


def _words(loss: tuple[float, float, float, int]) -> str:
    """Value and interval."""
    return "{:.2f} [{:.2f}, {:.2f}]".format(*loss)
