"""Made-up readings of differences, with hostile tokens.

rows, tokens, findings = readings(rng, n_layers=4, pairs=[("prompt", "base"), ...], words)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Two = tuple[str, str]
GROUPS = {"matched": ["last", "query"], "unrelated": ["last"]}


def readings(
    rng: np.random.Generator, n_layers: int, pairs: Mapping[Two, Two | None], words: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Rows, ranked tokens, and `manifest["reading"]`."""
    rows: list[dict[str, Any]] = []
    tokens: list[dict[str, Any]] = []
    for (pair, null), (group, labels) in itertools.product(pairs.items(), GROUPS.items()):
        for label, layer in itertools.product(labels, range(n_layers)):
            place = {"condition": pair[0], "reference": pair[1], "queries": group}
            place |= {"layer": layer, "position": label}
            rows += _rows(rng, {**place, "site": "resid_post", "n": 32}, null is not None)
            for vector in ("mean", "direction 0 +", "direction 0 −"):
                tokens += _tokens(rng, words, {**place, "vector": vector, "lens": "logit lens"})
    findings = {
        "sides": ["prompt", "lora"],
        "pairs": [
            {"condition": pair[0], "reference": pair[1], "null": null and list(null)}
            for pair, null in pairs.items()
        ],
        "n": {"matched": 64, "unrelated": 32},
        "scored": 32,
        "positions": GROUPS,
        "words": list(words),
        "chosen": True,
        "interval": {"replicates": 200},
        "notes": ["a note on <b>readings</b>"],
    }
    return rows, tokens, findings


def _rows(rng: np.random.Generator, place: Any, beside: bool) -> list[dict[str, Any]]:
    value = float(rng.normal(1, 1)) if place["layer"] else np.nan
    around = {"ci_low": value - 0.5, "ci_high": value + 0.5, "units": "SD"}
    p = float(rng.choice([0.001, 0.4])) if place["layer"] else np.nan
    found = [
        {"measure": "word_score", "value": value, "p_adjusted": p, **around},
        {
            "measure": "word_score_random",
            "value": 0.0,
            "units": "SD",
            "ci_low": -1,
            "ci_high": 1,
            "condition": "base",
            "reference": "base",
        },
        {"measure": "word_rank", "value": float(rng.integers(1, 90)), "units": "count"},
        {
            "measure": "difference_norm",
            "value": 0.3,
            "ci_low": 0.2,
            "ci_high": 0.4,
            "units": "ratio",
        },
    ]
    if beside:
        found.append({"measure": "word_score_excess", "value": value - 0.2, **around})
    return [{**place, **row} for row in found]


def _tokens(rng: np.random.Generator, words: Sequence[str], place: Any) -> list[dict[str, Any]]:
    if not place["layer"]:
        return []  # no more than rounding
    order = rng.permutation(len(words))
    return [
        {**place, "rank": rank + 1, "token_id": int(word), "token": words[word],
         "score": 5.0 - rank, "task": word < 2, "share": 0.4}
        for rank, word in enumerate(order)
    ]  # fmt: skip
