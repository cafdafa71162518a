"""Mean differences of states between conditions, in words: rows of a run's table and ranked tokens.

    pairs = {("lora", "base"): ("random_lora", "base"), ("random_lora", "base"): None}
    rows, tokens = read_differences({0: lens, 1: lens}, states, pairs, plan)

Every pair is read at every layer and segment, with the control that stands in its place beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from interp.design import BASE, ConditionPair
from interp.reading import scores
from interp.reading.scores import NamedWords
from interp.registry import MEASURES
from interp.runs.readings import LOGIT_LENS, WordLens
from interp.statistics import percentile_interval

ReadRow = dict[str, Any]
"""A row of the run's table, or of its ranked tokens, by column."""

MEAN = "mean"
"""The vector that is the mean of the queries' differences."""


LinearLens = Callable[[Tensor, Tensor], Tensor]
"""What vectors `[vector, d_model]` add to the logits of a state `[d_model]`."""

LayerLenses = Mapping[int, LinearLens]
"""Layer -> what reads it."""


@dataclass(frozen=True)
class GroupStates:
    """Mean states of a group of queries: condition -> `[query, label, layer, d_model]`, float64."""

    name: str
    keys: Sequence[str]
    labels: Sequence[str]
    layers: Sequence[int]
    means: Mapping[str, Float[ndarray, "query label layer d_model"]]

    def at(self, condition: str, label: int, layer: int) -> Float[ndarray, "query d_model"]:
        """A condition's states at one place; 0 of a query that has no such token."""
        return np.nan_to_num(self.means[condition][:, label, layer])

    def counted(self, label: int) -> Bool[ndarray, " query"]:
        """The queries that have a token of this label."""
        return ~np.isnan(self.means[BASE][:, label, 0, 0])

    def difference(
        self, pair: ConditionPair, label: int, layer: int, noise: float = 0.0
    ) -> Float[ndarray, "query d_model"]:
        """Condition less reference, query by query; 0 where it is no more than `noise` of the
        reference's norm, which rounding alone can make."""
        own, other = (self.at(name, label, layer) for name in pair)
        added = own - other
        size, limit = (np.linalg.norm(x, axis=1) for x in (added, other))
        return np.where((size > noise * limit)[:, None], added, 0.0)


@dataclass(frozen=True)
class WordPlan:
    """What is asked of every difference.

    `words`: text -> token; `names`: token -> text; `used`: the queries that words are scored on;
    `weights`: how all queries are resampled, column 0 the data; `top`: tokens listed of every
    vector; `directions`: leading directions read beside the mean; `noise`: relative size of what
    rounding makes.
    """

    words: Mapping[str, int]
    names: Sequence[str]
    used: Bool[ndarray, " query"]
    weights: Float[ndarray, "query replicate"]
    top: int = 10
    directions: int = 2
    noise: float = 0.0


class _ReadCell(NamedTuple):
    """One pair at one layer and label: the words in its queries' differences, their rank in the
    mean of these, and the tokens it says."""

    label: str
    layer: int
    named: NamedWords
    ranks: list[int]
    n: int
    tokens: list[ReadRow]


def difference_sizes(
    states: GroupStates, pairs: Iterable[ConditionPair], plan: WordPlan
) -> Iterator[ReadRow]:
    """Rows of `difference_norm`: size of every pair's mean difference over that of base's states,
    with its interval."""
    for pair in pairs:
        place = {"condition": pair[0], "reference": pair[1], "queries": states.name}
        for at, label in enumerate(states.labels):
            counted = states.counted(at)
            n, weights = int(counted.sum()), plan.weights[counted]
            for row, layer in enumerate(states.layers):
                added = states.difference(pair, at, row, plan.noise)[counted]
                norm = _norm(added, states.at(BASE, at, row)[counted], weights)
                yield {**place, **_row("difference_norm", label, layer, n, *norm)}


def read_differences(
    lenses: LayerLenses,
    states: GroupStates,
    pairs: Mapping[ConditionPair, ConditionPair | None],
    plan: WordPlan,
    progress: Any = lambda: None,
    by: WordLens = LOGIT_LENS,
) -> tuple[list[ReadRow], list[ReadRow]]:
    """Rows of the table, and ranked tokens, of every pair (with the pair that stands for its null).

    `by`: what the lenses are, with its measures: of the words' score, its excess over the null's,
    their median rank, and of base the scores of random differences; p is corrected over the layers
    and labels of a pair. Without words there are no rows.
    """
    read = {}
    for pair in pairs:
        read[pair] = list(_cells(lenses, states, pair, plan, by.name))
        progress()
    tokens = [
        {"condition": pair[0], "reference": pair[1], "queries": states.name, **row}
        for pair, cells in read.items()
        for cell in cells
        for row in cell.tokens
    ]
    if not plan.words:
        return [], tokens
    random = _random(lenses, states, plan)
    place = {"condition": BASE, "reference": BASE, "queries": states.name}
    first = next(iter(read.values()))
    rows = [{**place, **row} for row in _random_rows(first, random, by)]
    for pair, cells in read.items():
        null = pairs[pair]
        beside = read.get(null) if null else None
        place = {"condition": pair[0], "reference": pair[1], "queries": states.name}
        rows += [{**place, **row} for row in _rows(cells, beside, random, plan, by)]
    return rows, tokens


def _random(
    lenses: LayerLenses, states: GroupStates, plan: WordPlan
) -> Float[ndarray, "draw cell"]:
    """Scores of the words in the differences of base's states at every two scored queries, the
    same two in all cells, which are in the order of `_cells`."""
    words, pairs = list(plan.words.values()), ~np.eye(int(plan.used.sum()), dtype=bool)
    columns = []
    for at in range(len(states.labels)):
        counted = states.counted(at)
        for row, layer in enumerate(states.layers):
            base = states.at(BASE, at, row)
            logits = _read(lenses[layer], base[plan.used], base[counted].mean(0))
            found = scores.placebo_scores(logits, words)
            known = counted[plan.used]
            found[~known] = found[:, ~known] = np.nan
            columns.append(found[pairs])
    return np.stack(columns, axis=1)


def _random_rows(
    cells: Sequence[_ReadCell], random: Float[ndarray, "draw cell"], by: WordLens
) -> Iterator[ReadRow]:
    low, high = percentile_interval(random)
    for cell, middle, *ends in zip(cells, np.nanmedian(random, axis=0), low, high, strict=True):
        yield _row(by.random, cell.label, cell.layer, cell.n, middle, *ends)


def _cells(
    lenses: LayerLenses, states: GroupStates, pair: ConditionPair, plan: WordPlan, name: str
) -> Iterator[_ReadCell]:
    for at, label in enumerate(states.labels):
        counted = states.counted(at)
        for row, layer in enumerate(states.layers):
            base = states.at(BASE, at, row)
            added = states.difference(pair, at, row, plan.noise)
            read = partial(_read, lenses[layer], state=base[counted].mean(0))
            logits = read(added)
            words = list(plan.words.values())
            used = plan.used & counted
            named = NamedWords.of(logits[plan.used], words) if words else _NOTHING
            said = logits[used].mean(0)
            ranks = scores.ranks_of(said, words) if said.std() else []
            at_place = {"lens": name, "layer": layer, "position": label}
            listed = _listed(read, logits[counted], added[counted], plan)
            tokens = [{**at_place, **entry} for entry in listed]
            yield _ReadCell(label, layer, named, ranks, int(used.sum()), tokens)


_NOTHING = NamedWords(np.zeros(0), np.zeros(0))


def _read(lens: LinearLens, vectors: ndarray, state: ndarray) -> ndarray:
    given = torch.from_numpy(np.ascontiguousarray(vectors))
    return np.asarray(lens(given, torch.from_numpy(state)).cpu().numpy())


def _norm(
    added: Float[ndarray, "query d_model"],
    base: Float[ndarray, "query d_model"],
    weights: Float[ndarray, "query replicate"],
) -> tuple[float, float, float]:
    """Size of the mean difference over the mean size of base's states, with its interval."""
    gram = added @ added.T
    above = np.sqrt(np.einsum("qr,qp,pr->r", weights, gram, weights, optimize=True).clip(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = above / (weights.T @ np.linalg.norm(base, axis=1))
    low, high = percentile_interval(drawn[1:])
    return float(drawn[0]), float(low), float(high)


def _listed(read: Any, logits: ndarray, added: ndarray, plan: WordPlan) -> Iterator[ReadRow]:
    """What the mean says, and both ends of every leading direction."""
    yield from _ranked(MEAN, logits.mean(0), plan, known=True)
    if len(added) < 2 or not plan.directions:
        return
    directions, shares = scores.leading_directions(added, plan.directions)
    for number, (said, share) in enumerate(zip(read(directions), shares, strict=True)):
        for sign, turned in (("+", said), ("−", -said)):
            for row in _ranked(f"direction {number} {sign}", turned, plan, known=False):
                yield {**row, "share": float(share)}


def _ranked(vector: str, logits: ndarray, plan: WordPlan, *, known: bool) -> Iterator[ReadRow]:
    """The tokens that a vector says most, then (`known`) the task words that are not among them."""
    spread = float(logits.std())
    if not spread:
        return
    first = np.argsort(-logits, kind="stable")[: plan.top].tolist()
    words = set(plan.words.values())
    rest = [token for token in list(plan.words.values())[:_WORDS] if token not in first]
    listed = [*first, *rest] if known else first
    for token, rank in zip(listed, scores.ranks_of(logits, listed), strict=True):
        yield {
            "vector": vector,
            "rank": rank,
            "token_id": token,
            "token": plan.names[token],
            "score": float((logits[token] - logits.mean()) / spread),
            "task": token in words,
        }


_WORDS = 16
"""Task words whose ranks are listed one by one."""


def _rows(
    cells: Sequence[_ReadCell],
    beside: Sequence[_ReadCell] | None,
    random: Float[ndarray, "draw cell"],
    plan: WordPlan,
    by: WordLens,
) -> Iterator[ReadRow]:
    weights, own = plan.weights[plan.used], [cell.named for cell in cells]
    found = scores.score_words(own, weights, random)
    for cell, value, low, high, p in zip(cells, *found, strict=True):
        place = (cell.label, cell.layer, cell.n)
        yield _row(by.score, *place, value, low, high) | {"p_adjusted": float(p)}
        middle = float(np.median(cell.ranks)) if cell.ranks else np.nan
        yield _row(by.rank, *place, middle)
    if beside is not None:
        more = scores.excess(own, [cell.named for cell in beside], weights)
        for cell, *numbers in zip(cells, *more, strict=True):
            yield _row(by.excess, cell.label, cell.layer, cell.n, *numbers)


def _row(
    measure: str,
    label: str,
    layer: int,
    n: int,
    value: float,
    low: float = np.nan,
    high: float = np.nan,
) -> ReadRow:
    return {
        "measure": measure,
        "site": "resid_post",
        "layer": layer,
        "position": label,
        "value": float(value),
        "ci_low": float(low),
        "ci_high": float(high),
        "n": n,
        "units": MEASURES[measure].units,
    }
