"""Made-up rows of what adapters add to the weights.

    rows, findings = weights(rng, n_layers=4, n_heads=3, conditions=["lora", "lora_1"])

The numbers follow what the real ones obey: stable rank lies between 1 and the rank, chance is the
rank over the width, and only fused modules have parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from interp.runs.weights import PROMPT_NULLS
from interp.weights.measured import alike

MODULES = ("attn.c_attn", "attn.c_proj", "mlp.up_proj")
PROMPTS = ("prompt", "neutral")
PARTS = ("q", "k", "v")
RANK, WIDTH, TOP = 4, 32, 10
CHANCE = RANK / WIDTH

Row = dict[str, Any]


def weights(
    rng: np.random.Generator, n_layers: int, n_heads: int, conditions: Sequence[str]
) -> tuple[list[Row], dict[str, Any]]:
    """Rows, and `manifest["weights"]`."""
    rows: list[Row] = []
    for layer in range(n_layers):
        for module in MODULES:
            path = f"model.layers.{layer}.{module}"
            fused = [f"{path}:{part}" for part in PARTS] if module.endswith("c_attn") else []
            for site in (path, *fused):
                place = {"site": site, "layer": layer}
                for condition in conditions:
                    rows += _matrix(rng, condition, **place)
                for pair in itertools.combinations(conditions, 2):
                    rows += _overlap(rng, pair, **place)
            for site, head in itertools.product(fused, range(n_heads)):
                for condition in conditions:
                    rows += _sized(rng, condition, site=site, layer=layer, head=head)
    rows.append(_row("relative_norm", conditions[0], 0.1, site="lm_head.bias"))
    entries = {"conditions": list(conditions), "top": TOP, "epsilon": 0.5, "overlap": 16}
    entries |= {"alike": alike_of(rows), "notes": ["made up <b>too</b>"]}
    rows += _prompts(rng, n_layers, conditions[0])
    return rows, entries | {"prompts": list(PROMPTS), "identity": dict.fromkeys(PROMPTS, 1e-7)}


def _prompts(rng: np.random.Generator, n_layers: int, adapter: str) -> Iterator[Row]:
    """Rows of prompts as updates of the MLPs."""
    for name, (measure, nulls) in itertools.product(PROMPTS, PROMPT_NULLS.items()):
        reference = adapter if "overlap" in measure else "base"
        for layer, end in itertools.product(range(n_layers), ("", *(f"_{n}" for n in nulls))):
            value = float(rng.uniform(0.1, 0.9))
            ends = {"ci_low": value - 0.05, "ci_high": value + 0.05, "n": 9, "queries": "matched"}
            site = {"site": f"model.layers.{layer}.mlp.up_proj", "layer": layer, "position": "last"}
            yield _row(f"{measure}{end}", name, value, reference=reference, **site, **ends)


def alike_of(rows: list[Row]) -> list[dict[str, Any]]:
    """As the run itself would sum them up."""
    from interp.runs.files import as_table

    return alike(as_table(rows))


def _row(measure: str, condition: str, value: float, **place: Any) -> Row:
    return {"measure": measure, "condition": condition, "value": value, "units": "", **place}


def _sized(rng: np.random.Generator, condition: str, **place: Any) -> Iterator[Row]:
    yield _row("relative_norm", condition, float(rng.gamma(2, 0.05)), **place)
    yield _row("stable_rank", condition, float(rng.uniform(1, RANK)), **place)


def _matrix(rng: np.random.Generator, condition: str, **place: Any) -> Iterator[Row]:
    yield from _sized(rng, condition, **place)
    yield _row("intruder_dimensions", condition, float(rng.integers(0, 4)), **place)
    for number, value in enumerate(np.sort(rng.gamma(1, 1, RANK))[::-1]):
        yield _row("singular_value", condition, float(value), position=str(number), **place)


def _overlap(rng: np.random.Generator, pair: tuple[str, str], **place: Any) -> Iterator[Row]:
    for side in ("left", "right"):
        names = {"reference": pair[1], **place}
        measure = f"subspace_overlap_{side}"
        yield _row(measure, pair[0], float(rng.uniform(CHANCE, 0.6)), **names)
        ends = {"ci_low": 0.08, "ci_high": 0.2}
        yield _row(f"{measure}_chance", pair[0], CHANCE, **names, **ends)
