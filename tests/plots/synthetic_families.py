"""Made-up rows of a run with families, controls and every measure of pairs, terms and geometry.

    rows, arrays, manifest = study(rng, n_layers=4, n_heads=3)

The numbers follow what the real ones obey: the terms of an influence sum to its total, those of a
change to one, and the Gram is that of vectors.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from manifests import condition_entry

ODD = "<b>instr</b> %{x}"
"""A family's name as a careless or hostile YAML file may give it."""

FAMILIES = {
    "prompt": ["prompt", "prompt_1", "prompt_2"],
    "lora": ["lora", "lora_1", "lora_2"],
    ODD: [f"{ODD}_0", f"{ODD}_1"],
}
CONTROLS = [
    "neutral",
    "shuffled_tokens",
    "shuffled_labels",
    "shifted",
    "random_lora",
    "logit_bias",
    "untrained",
]
KINDS = {"prompt": "prompt", "lora": "weights", ODD: "prompt"}
MEMBERS = {member: family for family, members in FAMILIES.items() for member in members}
CONDITIONS = ["base", *MEMBERS, *CONTROLS]
NULLS = [
    (c, "prompt", c) if c == "random_lora" else (c, c, "lora") for c in CONTROLS
]  # (control, condition, reference)
FLOORS = [
    pair for family in ("prompt", "lora") for pair in itertools.combinations(FAMILIES[family], 2)
]
SIDES = [(c, "base") for c in CONDITIONS if c != "base"]
ACROSS = [
    (p, w) for p, w in itertools.product([*FAMILIES["prompt"], *FAMILIES[ODD]], FAMILIES["lora"])
]
PAIRS = list(dict.fromkeys([*ACROSS, *[(c, r) for _, c, r in NULLS], *SIDES, *FLOORS]))
OLD = {("prompt", "base"), ("lora", "base"), ("neutral", "base"), ("prompt", "lora")}
OLD |= {("neutral", "lora")}

Row = dict[str, Any]


def study(
    rng: np.random.Generator, n_layers: int, n_heads: int
) -> tuple[list[Row], dict[str, xr.DataArray], dict[str, Any]]:
    """Rows, arrays and manifest entries that come on top of the plain synthetic run's."""
    rows = [
        *_outputs(rng),
        *_states(rng, n_layers),
        *_readout(rng, n_layers),
        *_influence(rng, n_layers, n_heads),
        *_geometry(rng, n_layers),
        *_changes(rng, n_layers, n_heads),
        *_divergence(rng, n_layers, n_heads),
    ]
    return rows, {"gram_resid_post": _gram(rng, n_layers)}, _manifest()


def _row(pair: tuple[str, str | None], measure: str, value: float, **keys: Any) -> Row:
    spread = abs(value) / 8
    given = {"queries": "matched", "position": "last", "n": 64, "units": ""}
    ends = {"ci_low": value - spread, "ci_high": value + spread}
    names = {"condition": pair[0], "reference": pair[1], "measure": measure, "value": value}
    return {**given, **names, **ends, **keys}


def distance_of(pair: tuple[str, str]) -> float:
    """How far apart two conditions are made: floors are near, the untrained copy is far."""
    if "untrained" in pair:
        return 1.3
    if pair in FLOORS:
        return 0.25
    return 0.9 if set(pair) & {*CONTROLS, "base"} else 0.5


def _outputs(rng: np.random.Generator) -> Iterator[Row]:
    for pair in PAIRS:
        if pair in OLD:
            continue
        js = float(rng.uniform(0.001, 0.3)) * distance_of(pair)
        js = 0.0 if pair == ("shifted", "base") else js
        yield _row(pair, "js_divergence", js, site="output", units="nats")
        yield _row(pair, "top1_agreement", 1 - 2 * js, site="output")


def _states(rng: np.random.Generator, n_layers: int) -> Iterator[Row]:
    sites, positions = ("resid_post", "attn_out", "mlp_out"), ("last", "mean")
    for pair, site, layer, position in itertools.product(PAIRS, sites, range(n_layers), positions):
        if pair in OLD:
            continue
        value = distance_of(pair) * float(rng.uniform(0.85, 1.15))
        place = {"site": site, "layer": layer, "position": position}
        yield _row(pair, "relative_l2", value, **place)
        if "base" not in pair:
            yield _row(pair, "delta_alignment", 1 - value, **place)


def _readout(rng: np.random.Generator, n_layers: int) -> Iterator[Row]:
    at = {"site": "resid_post", "units": "nats"}
    for condition in CONDITIONS:
        rise = np.sort(rng.uniform(0, 6, n_layers))
        for layer, value in enumerate(rise):
            one = (condition, None)
            yield _row(one, "answer_information", float(value), layer=layer, **at)
            yield _row(one, "lens_kl", float(rise[-1] - value), layer=layer, **at)
        depth = float(rng.uniform(0.4, 1) * (n_layers - 1))
        yield _row((condition, None), "decision_depth", depth, site="output", units="layer")
    for pair, layer in itertools.product(PAIRS, range(n_layers)):
        value = min(0.69, 0.3 * distance_of(pair) * float(rng.uniform(0.5, 1.5)))
        yield _row(pair, "lens_js", value, layer=layer, **at)


def _influence(rng: np.random.Generator, n_layers: int, n_heads: int) -> Iterator[Row]:
    units = {"units": "logits"}
    for pair in [("prompt", "base"), ("lora", "base"), ("prompt", "lora"), ("neutral", "base")]:
        total = 0.0
        for layer in range(n_layers):
            heads = rng.normal(0, 0.5, n_heads)
            bias, mlp = float(rng.normal(0, 0.05)), float(rng.normal(0.5, 0.8))
            total += float(heads.sum()) + bias + mlp
            for head, value in enumerate(heads):
                place = {"site": "z", "layer": layer, "head": head}
                yield _row(pair, "influence", float(value), **place, **units)
            yield _row(pair, "influence", bias, site="attn_bias", layer=layer, **units)
            yield _row(pair, "influence", mlp, site="mlp_out", layer=layer, **units)
        for site, value in (("embed", 0.2), ("norm", -0.4), ("softcap", 0.1), ("logit_bias", 0.0)):
            total += value
            yield _row(pair, "influence", value, site=site, **units)
        yield _row(pair, "influence", total, site="output", **units)


def _geometry(rng: np.random.Generator, n_layers: int) -> Iterator[Row]:
    pairs = [("prompt", "lora"), *[(c, r) for _, c, r in NULLS]]
    chance = {"linear_cka": 0.02, "procrustes_distance": 1.2, "mutual_knn": 0.15}
    for (measure, level), pair, layer in itertools.product(chance.items(), pairs, range(n_layers)):
        near = 0.4 if pair == ("prompt", "lora") else 0.8
        value = level + (1 - near) * ((0 if level > 1 else 1) - level) * float(rng.uniform(0.8, 1))
        place = {"site": "resid_post", "layer": layer}
        yield _row(pair, measure, value, p_adjusted=0.01 if layer else 0.4, **place)
        yield _row(pair, f"{measure}_chance", level, **place)
        yield _row(pair, f"{measure}_calibrated", near, **place)
    for measure, condition, layer in itertools.product(
        ("intrinsic_dimension", "gride_2", "gride_4", "gride_8"), CONDITIONS, range(n_layers)
    ):
        place = {"site": "resid_post", "layer": layer, "units": "dimensions"}
        yield _row((condition, None), measure, float(rng.uniform(4, 9)), **place)
        yield _row((condition, None), f"{measure}_chance", 14.0, **place)


def _changes(rng: np.random.Generator, n_layers: int, n_heads: int) -> Iterator[Row]:
    names = ("change_pattern", "change_value", "change_prefix", "change_input")
    others = [c for c in CONDITIONS if c != "base"]
    for condition, layer, head in itertools.product(others, range(n_layers), range(n_heads)):
        shares = rng.normal(0.25, 0.3, 4)
        shares[3] = 1 - shares[:3].sum()
        place = {"layer": layer, "head": head}
        for name, share in zip(names, shares, strict=True):
            yield _row((condition, "base"), name, float(share), site="z", **place)
        own = float(rng.gamma(1, 0.02)) if MEMBERS.get(condition) == "lora" else 0.0
        for position in ("last", "mean"):
            at = {**place, "position": position, "site": "pattern", "units": "nats"}
            yield _row((condition, "base"), "petrov_residual", own, **at)


def _divergence(rng: np.random.Generator, n_layers: int, n_heads: int) -> Iterator[Row]:
    pairs = list(itertools.combinations(FAMILIES, 2))
    positions = ("last", "mean")
    for pair, position, layer in itertools.product(pairs, positions, range(n_layers)):
        for site in ("resid_post", "attn_out", "mlp_out"):
            place = {"site": site, "layer": layer, "position": position}
            value = float(rng.gamma(6, 0.3))
            p = float(rng.uniform(0, 0.12))
            yield _row(pair, "divergence_index", value, p_adjusted=p, **place)
            yield _row(pair, "permanova_f", 3 * value, **place)
            if pair == pairs[0]:
                yield _row(("families", None), "permanova_f", 4 * value, p_adjusted=p, **place)
        for site, head in itertools.product(("z", "pattern"), range(n_heads)):
            place = {"site": site, "layer": layer, "head": head, "position": position}
            value, p = float(rng.gamma(4, 0.4)), float(rng.uniform(0, 0.1))
            yield _row(pair, "divergence_index", value, p_adjusted=p, **place)


def _gram(rng: np.random.Generator, n_layers: int) -> xr.DataArray:
    """Grams of vectors: members near their family's centre, whose distance grows with depth."""
    found = np.empty((2, len(CONDITIONS), len(CONDITIONS), n_layers, 2))
    centres = dict(zip(FAMILIES, rng.normal(size=(len(FAMILIES), 16)), strict=True))
    own = {condition: rng.normal(size=16) for condition in CONDITIONS}
    for layer in range(n_layers):
        pull = (layer + 1) / n_layers
        states = np.stack(
            [
                pull * centres[MEMBERS[c]] + 0.3 * own[c] if c in MEMBERS else 0.6 * own[c]
                for c in CONDITIONS
            ]
        )
        states[CONDITIONS.index("untrained")] *= 8
        found[..., layer, :] = (states @ states.T)[None, :, :, None]
    return xr.DataArray(
        found,
        dims=("queries", "condition", "condition2", "layer", "position"),
        coords={
            "queries": ["matched", "heldout"],
            "condition": CONDITIONS,
            "condition2": CONDITIONS,
            "position": ["last", "mean"],
        },
    )


def _manifest() -> dict[str, Any]:
    kinds = {name: KINDS[family] for name, family in MEMBERS.items()}
    kinds |= dict.fromkeys(CONTROLS, "control") | {"base": "base"}
    return {
        "conditions": {
            name: condition_entry(
                kinds[name],
                f"made up: {name}",
                9 if kinds[name] == "prompt" else 0,
                family=MEMBERS.get(name),
            )
            for name in CONDITIONS
        },
        "families": FAMILIES,
        "nulls": [dict(zip(("control", "condition", "reference"), n, strict=True)) for n in NULLS],
        "floors": [list(pair) for pair in FLOORS],
        "checks": {"change_decomposition": 2e-6, "influence": 4e-7, "lens": 1e-7},
    }
