"""Manifests of made-up runs, as `interp` writes them: one builder for all tests that need one.

run_manifest(conditions={"base": condition_entry("base")}, headline=("prompt", "lora"))
interchange(("prompt", "lora"), n=54)           # the entry that `interp patch` adds
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOLERANCE = 0.02


def named(pair: tuple[str, str]) -> dict[str, str]:
    """A pair of conditions as a manifest has it."""
    return {"condition": pair[0], "reference": pair[1]}


def condition_entry(kind: str, description: str = "made up", n_prefix: int = 0, **more: Any) -> Any:
    """What a manifest says of a condition."""
    return {"kind": kind, "description": description, "n_prefix": n_prefix, **more}


def certificate(
    pair: tuple[str, str], queries: str, n: int, mean_js: float, passed: bool, text: str
) -> dict[str, Any]:
    """A match certificate with one query outside the tolerance."""
    return {
        **named(pair),
        "queries": queries,
        "n": n,
        "mean_js": mean_js,
        "p95_js": mean_js * 2.4,
        "top1_agreement": 0.97 if passed else 0.5,
        "tolerance_js": 0.02,
        "tolerance_top1": 0.95,
        "passed": passed,
        "outside": [{"query": 5, "text": text, "js": 0.04}],
    }


def run_manifest(
    conditions: Mapping[str, Any],
    headline: tuple[str, str] | None,
    null: tuple[str, str] | None = None,
    n_layers: int = 4,
    n_heads: int = 3,
    **more: Any,
) -> dict[str, Any]:
    """The manifest of a run of a tiny model; `more` are entries that come on top."""
    return {
        "config": {"model": "tiny", "prompt_file": "prompt.txt", "batch_size": 8, "seed": 3},
        "versions": {"interp": "0.1.0", "torch": "2.13.0"},
        "hashes": {"model": "a" * 64, "adapter": "b" * 64},
        "seed": 3,
        "notes": [],
        "model": {
            "name": "tiny-llama",
            "architecture": "LlamaForCausalLM",
            "n_layers": n_layers,
            "n_heads": n_heads,
            "d_model": 16,
            "dtype": "float32",
        },
        "conditions": dict(conditions),
        "headline": headline and named(headline),
        "null_pair": null and named(null),
        "queries": {"matched": 64, "heldout": 32},
        "certificates": [],
        "interval": {
            "level": 0.95,
            "replicates": 200,
            "method": "Poisson bootstrap over queries",
        },
        **more,
    }


def interchange(
    pair: tuple[str, str], n: int, replicates: int = 200, verdict: str = "made up", **more: Any
) -> dict[str, Any]:
    """What `interp patch` adds to a manifest; `more` are entries that come on top."""
    return {
        **named(pair),
        "n": n,
        "tolerance": TOLERANCE,
        "interval": {"replicates": replicates},
        "pattern": "content",
        "verdict": verdict,
        "best_layers": [],
        **more,
    }
