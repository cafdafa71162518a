"""Patchscope: a vector written into a neutral prompt, and what the model then says.

    said = patchscope(subject, carrier, vectors, layer=4)        # [vector, d_vocab]

The carrier repeats words (`river -> river ; stone -> stone ; ?`); the vector takes the place of its
last token's state at the same layer that it was read at, as long as that state, and the rest of the
model reads it (Ghandeharioun et al. 2401.06102). What is returned is the change of the next token's
logits from the carrier's own run, which takes away what the carrier says by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp import edits
from interp.capture import capture, keep
from interp.design import BASE, ConditionPair
from interp.edits import Edit
from interp.measures import wide
from interp.names import Site
from interp.patching.patched import patched_logits
from interp.queries import Encoded
from interp.reading.differences import GroupStates, ReadRow, WordPlan
from interp.reading.scores import ranks_of, word_score
from interp.registry import MEASURES
from interp.runs.readings import PATCHSCOPE
from interp.statistics import generator_of, percentile_interval
from interp.subject import Batch, Subject

_PLACEBOS = 39
"""Random differences of every layer and position: p is 0.025 at least."""


def patchscope(
    subject: Subject,
    carrier: Encoded,
    vectors: Float[Tensor, "vector d_model"],
    layer: int,
    rows: int = 64,
) -> Float[Tensor, "vector d_vocab"]:
    """The logits that base adds at the carrier's end when each vector, made as long as the state
    of the carrier's last own token at a layer, takes its place; float64."""
    setting, batch = subject.settings[BASE], Batch.of([carrier], subject.device)
    cache, place = subject.prefill(setting), (carrier.n_text or len(carrier.ids)) - 1
    pre = [Site("resid_pre", at) for at in range(subject.n_layers)]
    site = Site("resid_post", layer)
    got = capture(subject, setting, batch, cache, dict.fromkeys([*pre, site], keep))
    own = {one: got.values[one] for one in pre}
    size = got.values[site][0, place].norm()
    where = torch.arange(batch.ids.shape[1], device=subject.device)[None] == place
    unit = vectors.to(subject.device) / vectors.norm(dim=-1, keepdim=True).to(subject.device)
    patches = [[Edit(site, edits.replace(size * one), where=where)] for one in unit]
    found = torch.zeros(len(patches), subject.d_vocab, dtype=torch.float64)
    for numbers, logits in patched_logits(subject, setting, batch, cache, own, patches, rows):
        found[numbers] = wide(logits[:, 0] - batch.last.pick(got.logits)).cpu()
    return found


def patchscope_rows(
    subject: Subject,
    carrier: Encoded,
    states: GroupStates,
    pairs: Sequence[ConditionPair],
    plan: WordPlan,
    seed: int,
    progress: Any = lambda: None,
) -> tuple[list[ReadRow], list[ReadRow]]:
    """`patchscope_score` of the task words by pair, label and layer (mean differences of the scored
    queries), p corrected over these, and `patchscope_random` of base's states at two random
    queries; the tokens that are raised most."""
    said: dict[tuple[Any, ...], ndarray] = {}
    random: dict[tuple[str, int], ndarray] = {}
    drawn = _placebos(int(plan.used.sum()), seed)
    for at, label in enumerate(states.labels):
        for row, layer in enumerate(states.layers):
            means = {pair: states.difference(pair, at, row, plan.noise)[plan.used].mean(0)
                     for pair in pairs}  # fmt: skip
            known = {pair: mean for pair, mean in means.items() if mean.any()}
            base = states.at(BASE, at, row)[plan.used]
            vectors = np.stack([*known.values(), *(base[i] - base[j] for i, j in drawn)])
            kept = np.linalg.norm(vectors, axis=1) > 0
            logits = np.full((len(vectors), subject.d_vocab), np.nan)
            given = torch.from_numpy(vectors[kept]).to(subject.dtype)
            logits[kept] = patchscope(subject, carrier, given, layer).numpy()
            said |= {(pair, label, layer): x for pair, x in zip(known, logits, strict=False)}
            random[label, layer] = _scores(logits[len(known) :], plan)
            progress()
    return [*_rows(said, random, states, pairs, plan)], [*_tokens(said, states, plan)]


def _placebos(n: int, seed: int) -> list[tuple[int, int]]:
    """Two different queries each."""
    generator = generator_of(f"patchscope:{seed}:{n}")
    return [tuple(generator.permutation(n)[:2].tolist()) for _ in range(_PLACEBOS)]


def _scores(logits: Float[ndarray, "draw d_vocab"], plan: WordPlan) -> Float[ndarray, " draw"]:
    words = list(plan.words.values())
    return np.array([word_score(one, words) if words else np.nan for one in logits])


def _rows(
    said: Mapping[tuple[Any, ...], ndarray],
    random: Mapping[tuple[str, int], ndarray],
    states: GroupStates,
    pairs: Sequence[ConditionPair],
    plan: WordPlan,
) -> Iterator[ReadRow]:
    """Rows of scores; without words there are none."""
    if not plan.words:
        return
    draws = np.nan_to_num(np.stack([*random.values()], axis=1), nan=-np.inf)
    n = int(plan.used.sum())
    for (label, layer), values in random.items():
        low, high = percentile_interval(values)
        row = _row(PATCHSCOPE.random, (BASE, BASE), label, layer, states.name, n)
        yield row | {"value": float(np.nanmedian(values)), "ci_low": float(low),
                     "ci_high": float(high)}  # fmt: skip
    for pair in pairs:
        own = {place: _scores(said[pair, *place][None], plan)[0] if (pair, *place) in said
               else np.nan for place in random}  # fmt: skip
        largest = np.append(draws.max(1), np.nanmax([*own.values(), -np.inf]))
        for (label, layer), value in own.items():
            p = float((largest >= value).mean()) if value == value else np.nan
            row = _row(PATCHSCOPE.score, pair, label, layer, states.name, n)
            yield row | {"value": float(value), "p_adjusted": p}


def _row(measure: str, pair: ConditionPair, label: str, layer: int, group: str, n: int) -> ReadRow:
    return {
        "measure": measure,
        "condition": pair[0],
        "reference": pair[1],
        "queries": group,
        "site": "resid_post",
        "layer": layer,
        "position": label,
        "n": n,
        "units": MEASURES[measure].units,
    }


def _tokens(
    said: Mapping[tuple[Any, ...], ndarray], states: GroupStates, plan: WordPlan
) -> Iterator[ReadRow]:
    words = set(plan.words.values())
    for (pair, label, layer), logits in said.items():
        first = np.argsort(-logits, kind="stable")[: plan.top].tolist()
        for token, rank in zip(first, ranks_of(logits, first), strict=True):
            yield {
                "lens": PATCHSCOPE.name,
                "condition": pair[0],
                "reference": pair[1],
                "queries": states.name,
                "layer": layer,
                "position": label,
                "vector": "mean",
                "rank": rank,
                "token_id": token,
                "token": plan.names[token],
                "score": float((logits[token] - logits.mean()) / (logits.std() or np.nan)),
                "task": token in words,
            }
