"""Made-up findings of `interp patch` beside a synthetic run: numbers to lay out, not to believe."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from manifests import interchange, named

from interp.runs.files import add_interchange

BASE = "base"
MEASURES = ("damage", "damage_random_difference", "recovery", "relative_damage")
MODULES = ("q_proj", "o_proj")


def patch(
    path: Path,
    pair: tuple[str, str] = ("prompt", "lora"),
    n_layers: int = 4,
    n_heads: int = 3,
    scale: float = 1.0,
    minimal: bool = False,
) -> None:
    """Write rows and findings into the run folder `path`. `scale` multiplies every number;
    `minimal`: only what every `interp patch` has."""
    rng = np.random.default_rng(n_layers)
    rows = [*_whole(rng, pair, n_layers, scale), *_depths(pair)]
    found = _findings(pair, n_layers)
    if not minimal:
        rows += [*_heads(rng, pair, n_layers, n_heads, scale), *_vectors(rng, pair, n_layers)]
        rows += _parts(pair[1], n_layers, scale)
        found |= _more(pair, n_heads)
    add_interchange(path, rows, found)


def _row(measure: str, source: str, target: str | None, value: float, **place: Any) -> dict:
    known = np.isfinite(value)
    ends = {"ci_low": value * 0.9, "ci_high": value * 1.1, "n": 54} if known else {"n": 0}
    names = {"measure": measure, "condition": source, "reference": target, "value": value}
    return {"site": "resid_post", "position": "all", "queries": "matched", **names, **ends, **place}


def moves(pair: tuple[str, str]) -> list[tuple[str, str]]:
    """Every direction between the two and base."""
    a, b = pair
    return [(a, b), (b, a), (a, BASE), (b, BASE), (BASE, a), (BASE, b)]


def _whole(
    rng: np.random.Generator, pair: tuple[str, str], n_layers: int, scale: float
) -> Iterator[dict]:
    for move, measure, layer in product(moves(pair), MEASURES, range(n_layers)):
        matched = measure == "recovery" and BASE not in move
        value = np.nan if matched else scale * float(rng.lognormal(-3, 1))
        yield _row(measure, *move, value, layer=layer)
        yield _row(measure, *move, -7.7, layer=layer, position="last")  # not to be shown


def _depths(pair: tuple[str, str]) -> Iterator[dict]:
    a, b = pair
    yield _row("interchange_depth", a, b, 1.0)
    yield _row("interchange_depth", b, a, np.nan)
    yield _row("state_equivalence_depth", a, b, np.nan)


def _heads(
    rng: np.random.Generator, pair: tuple[str, str], n_layers: int, n_heads: int, scale: float
) -> Iterator[dict]:
    for move, measure in product(moves(pair), ("damage", "recovery")):
        for layer, head in product(range(n_layers), range(n_heads)):
            value = scale * float(rng.lognormal(-4, 1))
            yield _row(measure, *move, value, site="z", layer=layer, head=head)


def _vectors(rng: np.random.Generator, pair: tuple[str, str], n_layers: int) -> Iterator[dict]:
    for condition, name in product(pair, ("recovery", "null", "random")):
        for layer in range(n_layers):
            value = 0.6 if (name, layer) == ("recovery", 1) else float(rng.uniform(-0.1, 0.1))
            place = {"layer": layer, "position": "last"}
            yield _row(f"function_vector_{name}", condition, BASE, value, **place)


def _parts(condition: str, n_layers: int, scale: float) -> Iterator[dict]:
    """Layer 1 is what counts; layer 2 is a by-product; kept alone, layer 1 is worst of all."""
    for layer in range(n_layers):
        damage = scale * (0.9 if layer == 1 else 0.001)
        change = 0.8 if layer in (1, 2) else 0.01
        sites = ["block", *(f"model.layers.{layer}.self_attn.{m}" for m in MODULES)]
        for number, site in enumerate(sites):
            place = {"site": site, "layer": layer}
            kinds = ["off"] if site == "block" else ["off", "direction 0", "direction 1"]
            for position in kinds:
                share = 0.5**number * (1 if position == "off" else 0.4)
                at = {**place, "position": position}
                yield _row("ablation_damage", condition, None, share * damage, **at)
                yield _row("ablation_kept", condition, None, 1 - share * damage, **at)
                yield _row("ablation_change", condition, None, share * change, **at)
        alone = {"site": "block", "layer": layer, "position": "alone"}
        yield _row("ablation_damage", condition, None, 50.0, **alone)
    for k in range(3):
        at = {"site": "every", "layer": None, "position": f"first {k}"}
        yield _row("ablation_kept", condition, None, 0.45 * k, **at)


def _findings(pair: tuple[str, str], n_layers: int) -> dict[str, Any]:
    a, b = pair
    best = {"site": "resid_post", "layer": n_layers - 2, "value": 0.0123, "n": 27}
    layers = [
        {**best, **named((a, b)), "measure": "damage", "ci_low": 0.01, "ci_high": 0.015},
        {**best, **named((a, BASE)), "measure": "recovery", "value": None}
        | {"ci_low": None, "ci_high": None},
    ]
    words = f"{a}'s state works in {b}'s run from layer 1 on."
    return interchange(pair, n=54, verdict=words, no_op=0.0, best_layers=layers)


def _segments(pair: tuple[str, str]) -> Iterator[dict]:
    values = {"query": 0.25, "answer": 0.75}
    for condition, (position, value) in product(pair, values.items()):
        best = {"site": "resid_post", "layer": 1, "measure": "recovery", "n": 27}
        best |= {"condition": condition, "reference": BASE, "position": position}
        known = condition == pair[0]
        ends = {"ci_low": value - 0.05, "ci_high": value + 0.05} if known else {}
        yield {**best, "value": value if known else None, "ci_low": None, "ci_high": None, **ends}


def _more(pair: tuple[str, str], n_heads: int) -> dict[str, Any]:
    a, b = pair
    names = {a: ["L1H0", "L2H1", "L0H0"], b: ["L1H0", "L0H2", "L3H1"]}
    agreed = {"k": 3, "share": 1 / 3, "p": 0.25, "rank_correlation": 0.5, "rank_p": 0.03}
    nothing = dict.fromkeys(("share", "p", "rank_correlation", "rank_p"))
    step = {"target": BASE, "goal": 0.9, "all_heads": 0.97, "n": 27}
    return {
        "heads": [
            {"by": "lost", **agreed, "under": names, "selected": names},
            {"by": "won", **agreed, **nothing, "under": names, "selected": names},
        ],
        "greedy": [
            {**step, "source": a, "heads": ["L1H0", "L2H1"], "recovery": [0.61, 0.93]}
            | {"ci_low": [0.5, 0.9], "ci_high": [0.7, 0.95], "enough": 2},
            {**step, "source": b, "heads": ["L1H0"], "recovery": [0.31], "enough": None}
            | {"ci_low": [0.2], "ci_high": [0.4]},
        ],
        "segments": list(_segments(pair)),
        "function_vectors": [{"condition": c, "heads": names[c], "n": 54} for c in pair],
        "attribution": [
            {"source": a, "target": b, "site": "z", "by": "head", "cells": 12, "spearman": 0.87},
            {"source": b, "target": a, "site": "z", "by": "head", "cells": 12, "spearman": 0.83},
            {"source": a, "target": BASE, "site": "resid_post", "by": "layer", "cells": 4}
            | {"spearman": None},
        ],
        "notes": ["directions of <b>DoRA</b> are not taken apart"],
    }
