"""Made-up rows of a LoRA without some of its parts, of heads patched together and of attribution.

    rows, findings = parts(rng, n_layers=4, n_heads=3, known=rows)

The numbers follow what the real ones obey: what is kept is 1 minus damage over the whole effect, no
direction kept is nothing kept, and an attribution is near the change it estimates.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from manifests import interchange

CONDITION, APART = "lora", 2.5
"""What is ablated, and its KL to base in nats."""

MODULES = [f"self_attn.{m}_proj" for m in "qkvo"] + [
    f"mlp.{m}_proj" for m in ("gate", "up", "down")
]
RANK = 4
MOVES = [
    ("prompt", "lora"),
    ("lora", "prompt"),
    ("prompt", "base"),
    ("lora", "base"),
    ("base", "prompt"),
    ("base", "lora"),
]

Row = dict[str, Any]


def parts(
    rng: np.random.Generator, n_layers: int, n_heads: int, known: Sequence[Row] = ()
) -> tuple[list[Row], dict[str, Any]]:
    """Rows, and the entries that come into `manifest["interchange"]`. `known`: rows whose
    `answer_change` the attributions estimate too; at other sites it is made up here."""
    exact = [row for row in known if row["measure"] == "answer_change"]
    sites = {row["site"] for row in exact}
    made = [row for row in _exact(rng, n_layers, n_heads) if row["site"] not in sites]
    rows = [
        *_ablations(rng, n_layers),
        *_vectors(rng, n_layers),
        *made,
        *_attributions(rng, [*exact, *made]),
    ]
    return rows, {**_greedy(rng, n_layers, n_heads), **interchange(("prompt", "lora"), n=64)}


def _row(measure: str, pair: tuple[str, str | None], value: float, **keys: Any) -> Row:
    spread = abs(value) / 8 if np.isfinite(value) else np.nan
    given = {"queries": "matched", "position": "all", "n": 64, "units": "share"}
    ends = {"ci_low": value - spread, "ci_high": value + spread}
    names = {"condition": pair[0], "reference": pair[1], "measure": measure, "value": value}
    return {**given, **names, **ends, **keys}


def _ablation(damage: float, change: float | None, **place: Any) -> Iterator[Row]:
    pair = (CONDITION, None)
    yield _row("ablation_damage", pair, damage, **{**place, "units": "nats"})
    yield _row("ablation_kept", pair, 1 - damage / APART, **place)
    if change is not None:
        yield _row("ablation_change", pair, change, **place)


def _ablations(rng: np.random.Generator, n_layers: int) -> Iterator[Row]:
    middle = n_layers / 2
    for layer in range(n_layers):
        need = float(np.exp(-(((layer - middle) / (0.2 * n_layers + 1)) ** 2)))
        off = 1.2 * need * float(rng.uniform(0.6, 1.4))
        yield from _ablation(off, 0.5 * need, site="block", layer=layer, position="off")
        yield from _ablation(
            APART * (1 - 0.3 * need), None, site="block", layer=layer, position="alone"
        )
        for kind, module in enumerate(MODULES):
            place = {"site": f"model.layers.{layer}.{module}", "layer": layer}
            damage = 0.4 * need * float(rng.lognormal(-3 if kind % 3 else -1, 1))
            change = float(rng.lognormal(-2.5, 0.8))
            yield from _ablation(damage, change, position="off", **place)
            for number in range(RANK):
                share = 2.0 ** -(number + 1)
                at = {**place, "position": f"direction {number}"}
                yield from _ablation(damage * share, change * share, **at)
    for k in range(RANK + 1):
        left = APART * (1 - k / RANK) ** 2
        yield from _ablation(left, None, site="every", layer=None, position=f"first {k}")


def _vectors(rng: np.random.Generator, n_layers: int) -> Iterator[Row]:
    heights = {"recovery": 0.6, "null": 0.05, "random": 0.0}
    for condition, (name, height), layer in itertools.product(
        ("prompt", "lora"), heights.items(), range(n_layers)
    ):
        value = height * np.exp(-((layer / n_layers - 0.4) ** 2) * 9) + float(rng.normal(0, 0.02))
        place = {"site": "resid_post", "layer": layer, "position": "last"}
        yield _row(f"function_vector_{name}", (condition, "base"), float(value), **place)


def _exact(rng: np.random.Generator, n_layers: int, n_heads: int) -> Iterator[Row]:
    for pair, layer in itertools.product(MOVES, range(n_layers)):
        size = 2.0 if "base" in pair else 0.4
        size *= -1 if pair[0] == "base" else 1
        for site in ("resid_post", "attn_out", "mlp_out"):
            value = size * float(rng.normal(layer / n_layers, 0.3))
            yield _row("answer_change", pair, value, site=site, layer=layer, units="nats")
        for site, head in itertools.product(("z", "pattern"), range(n_heads)):
            value = size * float(rng.laplace(0, 0.1))
            place = {"site": site, "layer": layer, "head": head, "units": "nats"}
            yield _row("answer_change", pair, value, **place)


def _attributions(rng: np.random.Generator, exact: Sequence[Row]) -> Iterator[Row]:
    for row in exact:
        value = row["value"]
        near = float(value * rng.uniform(0.5, 1.1) + rng.normal(0, 0.02))
        place = {k: row[k] for k in ("site", "layer", "head", "position") if k in row}
        pair = (row["condition"], row["reference"])
        yield _row("attribution", pair, near, units="nats", **place)
        if row["site"] == "z":
            shares = rng.dirichlet(np.array([0.3, 0.3, 0.3, 2.0]))
            for position, share in enumerate(shares):
                at = {**place, "position": str(position)}
                yield _row("attribution", pair, near * float(share), units="nats", **at)


def _greedy(rng: np.random.Generator, n_layers: int, n_heads: int) -> dict[str, Any]:
    found = []
    every = [f"L{layer}H{head}" for layer in range(n_layers) for head in range(n_heads)]
    for source, speed in (("prompt", 0.9), ("lora", 0.45)):
        heads = [str(h) for h in rng.permutation(every)[:8]]
        curve = [float(1 - np.exp(-speed * (k + 1))) for k in range(len(heads))]
        over = [k for k, value in enumerate(curve, 1) if value >= 0.9]
        found.append(
            {
                "source": source,
                "target": "base",
                "heads": heads,
                "recovery": curve,
                "ci_low": [v - 0.05 for v in curve],
                "ci_high": [v + 0.04 for v in curve],
                "all_heads": 0.96,
                "goal": 0.9,
                "enough": over[0] if over else None,
                "n": 32,
            }
        )
    moves = itertools.product(MOVES, (("resid_post", "layer"), ("z", "head"), ("pattern", "head")))
    agreement = [
        {"source": s, "target": t, "site": site, "by": by, "cells": 12, "spearman": 0.81}
        for (s, t), (site, by) in moves
    ]
    vectors = [{"condition": e["source"], "heads": e["heads"][:3], "n": 32} for e in found]
    return {"greedy": found, "function_vectors": vectors, "attribution": agreement}
