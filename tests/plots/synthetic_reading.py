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
            known = bool(layer) or n_layers == 1  # nothing is added below the first block
            rows += _rows(rng, {**place, "site": "resid_post", "n": 32}, null is not None, known)
            for vector in ("mean", "direction 0 +", "direction 0 −"):
                tokens += _tokens(rng, words, {**place, "vector": vector, "lens": "logit lens"})
            for lens in ("Jacobian lens", "patchscope"):
                tokens += _tokens(rng, words, {**place, "vector": "mean", "lens": lens})
        more, said = _steered(rng, {"condition": pair[0], "reference": pair[1]}, group, words)
        rows, tokens = rows + more, tokens + said
    for group in GROUPS:
        alone = _steered(rng, {"condition": "base", "reference": "base"}, group, words, (0,))
        rows, tokens = rows + alone[0][:1], tokens + alone[1]
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
        "carrier": "a <i>carrier</i> ?",
        "jacobian": {"under": "base", "texts": 30},
        "interval": {"replicates": 200},
        "notes": ["a note on <b>readings</b>"],
        "variables": {
            "lora": "lora",
            "random": "random_lora",
            "neutral": "neutral",
            "users": ["prompt", "neutral"],
            "strongest": [{"module": MODULE.format(0), "direction": 1, "size": 2.5}],
        },
    }
    more, driving = _variables(rng, n_layers, words)
    return rows + more, tokens + driving, findings


MODULE = "model.layers.{}.mlp.up_proj"


def _variables(
    rng: np.random.Generator, n_layers: int, words: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Energy shares of both prompts along both LoRAs' directions, AUROCs, and what drives one."""
    rows = []
    for side, user, owner in itertools.product(
        ("read", "written"), ("prompt", "neutral"), ("lora", "random_lora")
    ):
        place = {"condition": user, "reference": owner, "queries": "matched", "units": "share"}
        place |= {"position": "query", "n": 64}
        endings = ("", "_excess", "_over_random") if (user, owner) == ("prompt", "lora") else ("",)
        for ending, layer in itertools.product(endings, (*range(n_layers), None)):
            value = float(rng.uniform(0.05, 0.3))
            site = "every" if layer is None else "block"
            rows.append({**place, "measure": f"channel_{side}{ending}", "site": site,
                         "layer": layer, "value": value, "ci_low": value - 0.02,
                         "ci_high": value + 0.02})  # fmt: skip
    for side, owner, layer in itertools.product(
        ("read", "written"), ("lora", "random_lora"), range(n_layers)
    ):
        place = {"condition": "lora", "reference": owner, "queries": "matched", "units": "share"}
        place |= {"site": MODULE.format(layer), "layer": layer, "position": f"direction 1 {side}"}
        value = float(rng.uniform(0, 1))
        row = {**place, "value": value, "ci_low": 0.0, "ci_high": 1.0, "n": 96}
        rows.append({**row, "measure": "direction_auroc"})
        if not layer:
            rows.append({**row, "measure": "direction_auroc_best"})
        chance = {"measure": f"channel_{side}_chance", "queries": None, "position": None}
        rows.append({**row, **chance, "value": 0.04, "reference": None})
    driving = [
        {"lens": lens, "condition": "lora", "queries": group, "site": MODULE.format(0), "layer": 0,
         "position": f"direction 1 {side}", "vector": "", "rank": at + 1, "token_id": at,
         "token": word, "score": 1.0, "task": False}
        for lens, side, groups in (("drivers", "read", ("matched", "unrelated")),
                                   ("written", "written", (None,)))
        for group in groups
        for at, word in enumerate(words)
    ]  # fmt: skip
    return rows, driving


def _steered(
    rng: np.random.Generator,
    pair: dict[str, str],
    group: str,
    words: Sequence[str],
    strengths: Sequence[int] = (1, 4),
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Shares of task words at every strength, beside a random direction's, and a text of each."""
    place = {**pair, "queries": group, "site": "resid_post", "layer": 1, "n": 8, "units": "share"}
    rows, texts = [], []
    for strength, (name, ending) in itertools.product(
        strengths, (("mean", ""), ("random direction", "_random"))
    ):
        value = float(rng.uniform(0, 0.5)) if not ending and strength else 0.0
        where = {**place, "position": f"{strength} x {name}"}
        rows.append({**where, "measure": f"steered_words{ending}", "value": value,
                     "ci_low": value / 2, "ci_high": 1.2 * value})  # fmt: skip
        texts.append({**where, "lens": "steered", "vector": "text 0", "rank": 1,
                      "token": " ".join(words)})  # fmt: skip
    return rows, texts


def _rows(rng: np.random.Generator, place: Any, beside: bool, known: bool) -> list[dict[str, Any]]:
    value = float(rng.normal(1, 1)) if known else np.nan
    p = float(rng.choice([0.001, 0.4])) if known else np.nan
    of_base = {"condition": "base", "reference": "base", "units": "SD"}
    found = [
        {"measure": "patchscope_score", "value": value / 2, "p_adjusted": p, "units": "SD"},
        {"measure": "patchscope_random", "value": 0.1, "ci_low": -0.5, "ci_high": 0.7, **of_base},
        {"measure": "difference_norm", "value": 0.3, "ci_low": 0.2, "ci_high": 0.4,
         "units": "ratio"},
    ]  # fmt: skip
    for lens, more in (("word", 0.0), ("jacobian", 0.7)):
        around = {"ci_low": value + more - 0.5, "ci_high": value + more + 0.5, "units": "SD"}
        random = {"value": more, "ci_low": more - 1, "ci_high": more + 1, **of_base}
        found += [
            {"measure": f"{lens}_score", "value": value + more, "p_adjusted": p, **around},
            {"measure": f"{lens}_score_random", **random},
            {"measure": f"{lens}_rank", "value": float(rng.integers(1, 90)), "units": "count"},
        ]
        if beside:
            found.append({"measure": f"{lens}_score_excess", "value": value - 0.2, **around})
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
