"""Steered samples: what base writes with a mean difference added to its residual stream.

    written = steered_answers(subject, queries, vector, layer=4, strength=2.0, n_tokens=12)

The vector is added at every token of a text and of what is written, greedily (Turner et al.
2308.10248). A random direction as long as the vector, and the controls' vectors, stand beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.conditions import Added
from interp.design import BASE, ConditionPair
from interp.generating import generate
from interp.queries import Encoded
from interp.reading.differences import GroupStates, ReadRow, WordPlan
from interp.registry import MEASURES
from interp.runs.readings import STEERED, STEERED_RANDOM, STEERED_WORDS
from interp.statistics import generator_of, pooled
from interp.subject import Subject

_RANDOM = "random direction"


def steered_answers(
    subject: Subject,
    queries: Sequence[Encoded],
    vector: Float[Tensor, " d_model"],
    layer: int,
    strength: float,
    n_tokens: int,
) -> list[tuple[int, ...]]:
    """What base writes greedily behind every query with `strength` times the vector added to
    `resid_post` of a layer at all its tokens: at most `n_tokens` ids each."""
    name = "a mean difference"
    kept = {**subject.insertions.vectors, name: vector.to(subject.device, subject.dtype)}
    with_it = replace(subject, insertions=replace(subject.insertions, vectors=kept))
    base = subject.settings[BASE]
    setting = replace(base, steering=(*base.steering, Added(name, layer, strength)))
    return generate(with_it, setting, queries, n_tokens)


def steering_rows(
    subject: Subject,
    queries: Sequence[Encoded],
    states: GroupStates,
    pairs: Sequence[ConditionPair],
    plan: WordPlan,
    place: tuple[int, str],
    strengths: Sequence[float],
    n_tokens: int,
    draws: tuple[int, int],
    progress: Any = lambda: None,
) -> tuple[list[ReadRow], list[ReadRow]]:
    """`steered_words`: share of the tokens written that are task words, by pair and strength, and
    of base without a vector; the texts written. `place`: layer and label of the mean differences;
    `draws`: bootstrap replicates and seed. Beside every pair a random direction of its length."""
    layer, label = place
    at, row = list(states.labels).index(label), list(states.layers).index(layer)
    rows: list[ReadRow] = []
    texts: list[ReadRow] = []
    for pair in [(BASE, BASE), *pairs]:
        vector = states.difference(pair, at, row, plan.noise)[plan.used].mean(0)
        if pair[0] != BASE and not vector.any():
            continue
        given = {"": vector} if pair[0] == BASE else {"": vector, _RANDOM: _as_long(vector, pair)}
        for name, own in given.items():
            for strength in [0.0] if pair[0] == BASE else strengths:
                written = steered_answers(
                    subject, queries, torch.from_numpy(own), layer, strength, n_tokens
                )
                where = {"condition": pair[0], "reference": pair[1], "queries": states.name,
                         "layer": layer, "site": "resid_post"}  # fmt: skip
                said = f"{strength:g} x {name or 'mean'}"
                keys = [query.key for query in queries]
                rows.append({**where, **_share(written, keys, plan.words, name, said, draws)})
                texts += [{**where, **one} for one in _written(subject, written, said)]
                progress()
    return rows, texts


def _as_long(vector: Float[ndarray, " d_model"], pair: ConditionPair) -> Float[ndarray, " d_model"]:
    drawn = generator_of(f"steering:{'|'.join(pair)}").standard_normal(len(vector))
    return drawn * (np.linalg.norm(vector) / np.linalg.norm(drawn))


def _share(
    written: Sequence[Sequence[int]],
    keys: Sequence[str],
    words: Mapping[str, int],
    name: str,
    said: str,
    draws: tuple[int, int],
) -> ReadRow:
    tokens = set(words.values())
    above = np.array([[sum(token in tokens for token in ids)] for ids in written], dtype=float)
    below = np.array([[len(ids)] for ids in written], dtype=float)
    value, low, high, n = (x[0] for x in pooled(above, below, keys, *draws))
    measure = STEERED_RANDOM if name else STEERED_WORDS
    return {"measure": measure, "position": said, "value": float(value), "ci_low": float(low),
            "ci_high": float(high), "n": int(n), "units": MEASURES[measure].units}  # fmt: skip


def _written(subject: Subject, written: Sequence[Sequence[int]], said: str) -> Iterator[ReadRow]:
    for number, ids in enumerate(written):
        text = subject.tokenizer.decode(list(ids), skip_special_tokens=True)
        shown = str(text).encode("utf-8", "replace").decode("utf-8")
        yield {"lens": STEERED, "position": said, "vector": f"text {number}", "rank": number + 1,
               "token": shown}  # fmt: skip
