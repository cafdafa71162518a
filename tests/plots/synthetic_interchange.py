"""Made-up rows of an interchange between the prompt and the LoRA of a synthetic run.

    rows, findings = exchange(rng, n_layers=4, n_heads=3, length=12)

States become interchangeable with depth, base's never; the last layer's state is the output.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from manifests import interchange

A, B, BASE = "prompt", "lora", "base"
OWN = [(A, B), (B, A), (A, BASE), (B, BASE)]
MOVES = [*OWN, (BASE, A), (BASE, B)]
N = 60

Row = dict[str, Any]


def exchange(
    rng: np.random.Generator, n_layers: int, n_heads: int, length: int
) -> tuple[list[Row], dict[str, Any]]:
    """Rows, and the entries that come into `manifest["interchange"]`."""
    depth = n_layers // 2
    rows = [
        *_whole(rng, n_layers),
        *_single(rng, n_layers, length),
        *_heads(rng, n_layers, n_heads),
    ]
    rows += [_depth("interchange_depth", A, B, depth), _depth("interchange_depth", B, A, depth)]
    rows.append(_depth("state_equivalence_depth", A, B, depth))
    heads = [_ranking(rows, by) for by in ("lost", "won")]
    return rows, interchange((A, B), N, replicates=100, no_op=0.0, heads=heads)


def _row(measure: str, move: tuple[str, str], value: float, **keys: Any) -> Row:
    known = np.isfinite(value)
    spread = abs(value) / 6
    return {
        "measure": measure,
        "condition": move[0],
        "reference": move[1],
        "position": "all",
        "queries": "matched",
        "value": value,
        "ci_low": value - spread if known else None,
        "ci_high": value + spread if known else None,
        "n": N if known else 0,
        "units": "nats" if measure.startswith(("damage", "answer_change")) else "share",
        **keys,
    }


def _damage(rng: np.random.Generator, move: tuple[str, str], share: float) -> float:
    """At a share of the way up, in [0, 1]."""
    if BASE in move:
        return float(2.5 * (0.1 + share) * rng.uniform(0.8, 1.2))
    return float(0.2 * 10 ** (-2 * share) * rng.uniform(0.8, 1.2))


def _whole(rng: np.random.Generator, n_layers: int) -> Iterator[Row]:
    for site, layer in itertools.product(("resid_post", "attn_out", "mlp_out"), range(n_layers)):
        place = {"site": site, "layer": layer}
        share = layer / max(1, n_layers - 1)
        found = {move: _damage(rng, move, share) for move in MOVES}
        for move in MOVES:
            p = {"p_adjusted": 0.3 if layer % 3 == 1 else 0.004} if move in OWN else {}
            yield _row("damage", move, found[move], **place, **p)
            value = np.nan if BASE not in move else float(share**0.3)
            yield _row("recovery", move, value, **place)
            yield _row("answer_change", move, float(rng.normal(0, 1)), **place)
        for move in [(A, B), (B, A)]:
            value = found[move] / found[BASE, move[1]]
            yield _row("relative_damage", move, value, **{**place, "units": "ratio"})
        for move, control in itertools.product(OWN, ("random_direction", "random_difference")):
            yield _row(f"damage_{control}", move, found[move] * rng.uniform(1, 5), **place)
            value = np.nan if BASE not in move else float(rng.uniform(-2, 0.5))
            yield _row(f"recovery_{control}", move, value, **place)


def _single(rng: np.random.Generator, n_layers: int, length: int) -> Iterator[Row]:
    positions = ["last", *map(str, range(min(length, 8)))]
    for layer, position, move in itertools.product(range(n_layers), positions, MOVES):
        share = layer / max(1, n_layers - 1)
        weight = 1.0 if position == "last" else 0.05
        place = {"site": "resid_post", "layer": layer, "position": position}
        yield _row("damage", move, weight * _damage(rng, move, share), **place)
        value = np.nan if BASE not in move else weight * share + float(rng.normal(0, 0.02))
        yield _row("recovery", move, value, **place)


def _heads(rng: np.random.Generator, n_layers: int, n_heads: int) -> Iterator[Row]:
    for site, layer, head in itertools.product(("z", "pattern"), range(n_layers), range(n_heads)):
        place = {"site": site, "layer": layer, "head": head}
        common = rng.lognormal(-7, 1.5)
        for move in MOVES:
            damage = float(common * rng.lognormal(0, 0.8))
            yield _row("damage", move, damage, **place)
            value = np.nan if BASE not in move else 4 * damage + float(rng.normal(0, 0.01))
            yield _row("recovery", move, value, **place)


def _depth(measure: str, source: str, target: str, layer: int) -> Row:
    place = {"site": "resid_post", "units": "layer", "ci_low": layer, "ci_high": layer + 1}
    return {**_row(measure, (source, target), float(layer)), **place}


def _ranking(rows: Sequence[Row], by: str) -> dict[str, Any]:
    """What a run's findings say of its heads, with p-values made up."""
    measure = "damage" if by == "lost" else "recovery"
    names, under = [], {}
    for condition in (A, B):
        move = (BASE, condition) if by == "lost" else (condition, BASE)
        found = {
            f"L{r['layer']}H{r['head']}": r["value"]
            for r in rows
            if (r["measure"], r["site"]) == (measure, "z")
            and (r["condition"], r["reference"]) == move
        }
        names = list(found)
        k = min(len(names), max(3, round(len(names) / 10)))
        under[condition] = sorted(names, key=lambda h: -found[h])[:k]
    share = len(set(under[A]) & set(under[B])) / k
    numbers = {"share": share, "p": 0.04, "rank_correlation": 0.7, "rank_p": 0.001}
    return {"by": by, "k": k, **numbers, "under": under, "selected": under}
