"""Runs with made-up numbers and hostile names, to test drawing only."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from manifests import certificate, condition_entry, run_manifest
from plots.synthetic_families import study
from plots.synthetic_interchange import exchange
from plots.synthetic_parts import parts
from plots.synthetic_reading import readings
from plots.synthetic_weights import weights

from interp.names import Head
from interp.runs.files import add_interchange, add_reading, add_weights, write_run
from interp.runs.heads import HeadView
from interp.runs.samples import ENTRY, SampledContext, SampledQuery, Samples

HOSTILE = [
    "</script><script>window.x=1</script>",
    "<img src=x onerror=window.x=1>",
    "javascript:alert(1)",
    "$x$",
    "%{z}",
    "&lt;",
    "<b>",
    " the",
    " the",
    "שלום",
    "🦜",
    "\x00",
]

CONDITIONS = {
    "base": ("base", "nothing precedes the query", 0),
    "prompt": ("prompt", "Answer with the capital of the country", 9),
    "lora": ("lora", "rank-8 adapter distilled from the prompt", 0),
    "neutral": ("control", "a neutral text of the prompt's length", 9),
}
"""What a run without families compares; `measures.CONDITIONS` come on top."""

PAIRS = [
    ("prompt", "base"),
    ("lora", "base"),
    ("neutral", "base"),
    ("prompt", "lora"),
    ("neutral", "lora"),
]


def write(
    path: Path,
    n_layers: int = 4,
    n_heads: int = 3,
    tokens: list[str] | None = None,
    passed: bool = True,
    head_view: bool = True,
    families: bool = True,
    patched: bool = True,
    weighed: bool = True,
    read: bool = True,
    seed: int = 0,
) -> Path:
    """Write a run folder and return its path."""
    rng = np.random.default_rng(seed)
    tokens = HOSTILE if tokens is None else tokens
    arrays, kept = {}, {}
    if head_view:
        view = _head_view(rng, tokens, n_layers, n_heads)
        arrays, kept = view.arrays(), {"head_view": view.manifest()}
    few = samples(tokens, n_layers, n_heads)
    arrays, kept = arrays | few.arrays(), kept | {ENTRY: few.manifest()}
    rows = [*_output(rng), *_state(rng, n_layers, len(tokens)), *_heads(rng, n_layers, n_heads)]
    manifest = {**_manifest(n_layers, n_heads, tokens, passed), **kept}
    if families:
        more, grams, entries = study(rng, n_layers, n_heads)
        rows, arrays, manifest = [*rows, *more], {**arrays, **grams}, {**manifest, **entries}
        _test_against_controls(rows)
    write_run(path, rows, arrays, manifest)
    if patched:
        exchanged, findings = exchange(rng, n_layers, n_heads, len(tokens))
        more, entries = parts(rng, n_layers, n_heads, exchanged)
        add_interchange(path, pd.DataFrame([*exchanged, *more]), {**entries, **findings})
    if weighed:
        adapters = ["lora", "lora_1", "lora_2", "random_lora", "untrained"]
        names = [name for name in adapters if name in manifest["conditions"]]
        found, findings = weights(rng, n_layers, n_heads, names)
        add_weights(path, pd.DataFrame(found), findings)
    if read:
        controls = [(name, "base") for name in ("neutral", "random_lora")]
        found = {p: None for p in controls if p[0] in manifest["conditions"]}
        beside = {("prompt", "base"): controls[0], ("lora", "base"): next(reversed(found))}
        said, words, notes = readings(rng, n_layers, {**beside, **found}, HOSTILE)
        add_reading(path, pd.DataFrame(said), pd.DataFrame(words), notes)
    return path


def _test_against_controls(rows: list[dict[str, Any]]) -> None:
    """Every second layer of the headline is told apart from its control."""
    for row in rows:
        tested = (row["condition"], row["reference"]) == ("prompt", "lora")
        if tested and row["n"] and row.get("layer") is not None and "p_adjusted" not in row:
            row["p_adjusted"] = 0.3 if row["layer"] % 2 else 0.01


def _row(value: float, spread: float, **keys: Any) -> dict[str, Any]:
    known = np.isfinite(value)
    return {
        "queries": "matched",
        "position": "last",
        "units": "",
        "value": value,
        "ci_low": value - spread if known else None,
        "ci_high": value + spread if known else None,
        "n": 64 if known else 0,
        **keys,
    }


def _output(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for (condition, reference), queries in itertools.product(PAIRS, ("matched", "heldout")):
        near = (condition, reference) == ("prompt", "lora")
        js = float(rng.uniform(0.008, 0.015) if near else rng.uniform(0.1, 0.5))
        top = float(rng.uniform(0.96, 1) if near else rng.uniform(0.1, 0.6))
        keys = {"condition": condition, "reference": reference, "site": "output"}
        keys["queries"] = queries
        rows.append(_row(js, js / 5, measure="js_divergence", **{**keys, "units": "nats"}))
        rows.append(_row(top, 0.02, measure="top1_agreement", **keys))
        rows.append(_row(2.2 * js, js / 3, measure="kl_divergence", **{**keys, "units": "nats"}))
    return rows


def _state(rng: np.random.Generator, n_layers: int, length: int) -> list[dict[str, Any]]:
    rows = []
    positions = ["last", "mean", *map(str, range(length))]
    for (condition, reference), site in itertools.product(
        PAIRS, ("resid_post", "attn_out", "mlp_out")
    ):
        height = {"resid_post": 0.5, "attn_out": 0.8, "mlp_out": 0.6}[site]
        height *= 1.6 if condition == "neutral" else 1
        for layer, position in itertools.product(range(n_layers), positions):
            rise = np.exp(-(((layer + 1) / n_layers - 0.5) ** 2) * 8)
            keys = {"condition": condition, "reference": reference, "site": site}
            keys |= {"layer": layer, "position": position}
            distance = float(height * rise * rng.uniform(0.85, 1.15))
            rows.append(_row(distance, distance / 8, measure="relative_l2", **keys))
            cosine = 1 - distance / 2
            rows.append(_row(cosine, 0.03, measure="cosine", **keys))
            aligned = np.nan if reference == "base" else float(np.clip(1 - distance, -1, 1))
            rows.append(_row(aligned, 0.08, measure="delta_alignment", **keys))
    return rows


def _heads(rng: np.random.Generator, n_layers: int, n_heads: int) -> list[dict[str, Any]]:
    rows = []
    for layer, head in itertools.product(range(n_layers), range(n_heads)):
        place = {"layer": layer, "head": head}
        for condition, reference in PAIRS:
            keys = {"condition": condition, "reference": reference, **place}
            js = float(rng.gamma(1.2, 0.02 if condition == "prompt" else 0.04))
            js = np.nan if (layer, head) == (1, 0) else js
            rows.append(_row(js, js / 5, measure="content_js", site="pattern", **keys))
            rows[-1]["units"] = "nats"
            rows.append(_row(js * 8, js, measure="relative_l2", site="z", **keys))
            delta = np.nan if reference == "base" else float(rng.uniform(-0.6, 0.9))
            rows.append(_row(delta, 0.1, measure="sim_am_delta", site="attn_scores", **keys))
            if reference == "base":
                share = float(rng.uniform(0, 1)) if condition == "lora" else 0.0
                rows.append(_row(share, 0.02, measure="rewiring_share", site="pattern", **keys))
        for condition in CONDITIONS:
            mass = float(rng.uniform(0.2, 0.8)) if CONDITIONS[condition][2] else 0.0
            keys = {"condition": condition, "reference": None, "site": "pattern", **place}
            rows.append(_row(mass, 0.05 * mass, measure="prefix_mass", **keys))
    return rows


def _head_view(rng: np.random.Generator, tokens: list[str], layers: int, heads: int) -> HeadView:
    queries = [tokens, tokens[: max(1, len(tokens) // 2)]]
    length = len(tokens)
    patterns = np.full((len(CONDITIONS), 2, length, 1 + length), np.nan, dtype=np.float32)
    for c, (_, _, prefix) in enumerate(CONDITIONS.values()):
        for q, query in enumerate(queries):
            for i in range(len(query)):
                weight = rng.gamma(0.7, size=2 + i) * np.array(
                    [3.0 * bool(prefix), *[1.0] * (1 + i)]
                )
                patterns[c, q, i, : len(query) + 1] = 0
                patterns[c, q, i, : 2 + i] = weight / weight.sum()
    attended = [
        {"condition": c, "token": t, "where": w, "position": p, "mass": float(rng.uniform(0, 0.3))}
        for c in CONDITIONS
        for p, (t, w) in enumerate([(tokens[0], "query"), ("<b>capital", "prefix")])
    ]
    js = rng.gamma(1.2, 0.03, size=(len(PAIRS), 64)).astype(np.float32)
    head = Head(min(1, layers - 1), heads - 1)
    return HeadView(head, list(CONDITIONS), PAIRS, queries, patterns, js, attended)


def samples(tokens: list[str], n_layers: int, n_heads: int) -> Samples:
    """Two kept queries; a context of as many other tokens as its condition has before the query."""
    rng = np.random.default_rng(1)
    queries = [tokens, tokens[: max(1, len(tokens) // 2)]]
    contexts = {
        name: SampledContext([f"{tokens[i % len(tokens)]}" for i in range(min(prefix, 5))], 4)
        if prefix
        else SampledContext(["<bos>"])
        for name, (_, _, prefix) in CONDITIONS.items()
    }
    blocks = []
    for query, context in itertools.product(queries, contexts.values()):
        before, length = len(context.columns), len(query)
        weight = rng.gamma(0.7, size=(n_layers, n_heads, length, before + length))
        weight *= np.tri(length, before + length, before)
        weight /= weight.sum(-1, keepdims=True)
        blocks.append(np.round(255 * np.sqrt(weight)).astype(np.uint8).ravel())
    says = [[(token, 0.9 - 0.4 * i) for i, token in enumerate(tokens[:3])] for _ in queries]
    return Samples(
        [
            SampledQuery(i, "".join(own), own, {"query": [0, len(own) - 1]}, len(own), own[0])
            for i, own in enumerate(queries)
        ],
        list(range(n_layers)),
        n_heads,
        contexts,
        dict.fromkeys(CONDITIONS, says),
        np.concatenate(blocks),
    )


def _manifest(n_layers: int, n_heads: int, tokens: list[str], passed: bool) -> dict[str, Any]:
    js, pair, text = 0.012 if passed else 0.31, ("prompt", "lora"), "".join(tokens)
    return run_manifest(
        {name: condition_entry(*entry) for name, entry in CONDITIONS.items()},
        pair,
        ("neutral", "lora"),
        n_layers,
        n_heads,
        notes=["synthetic numbers <b>for drawing</b>"],
        certificates=[
            certificate(pair, "matched", 64, js, passed, text),
            certificate(pair, "heldout", 32, js * 1.2, passed, text),
        ],
    )
