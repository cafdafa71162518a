"""What a run's manifest says: configuration, conditions, design, versions, and sha256 of inputs.

manifest = describe_run(experiment, subject, built, design, groups)
manifest["hashes"] = fingerprints(experiment, built)
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import math
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from interp.conditions import Condition, Setting
from interp.config import Experiment
from interp.design import Design
from interp.names import short_name
from interp.queries import Encoded
from interp.runs.files import sha256, token_hash
from interp.statistics import LEVEL
from interp.subject import Subject
from interp.subject.quantization import PACKAGES, saved_method
from interp.untrusted import is_there

_THIS_TIME = {"resume", "overwrite"}
"""Fields that say how a run was started, not what it is."""


def describe_run(
    experiment: Experiment,
    subject: Subject,
    built: Mapping[str, Condition],
    design: Design,
    groups: Mapping[str, Sequence[Encoded]],
) -> dict[str, Any]:
    """What the manifest says of a run, but for what was measured."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": experiment.model_dump(mode="json", exclude_none=True, exclude=_THIS_TIME),
        "seed": experiment.seed,
        "versions": versions(experiment),
        "model": {
            "name": short_name(experiment.model),
            "revision": getattr(subject.hf_model.config, "_commit_hash", None),
            "architecture": type(subject.hf_model).__name__,
            "n_layers": subject.n_layers,
            "n_heads": subject.n_heads,
            "d_model": subject.d_model,
            "dtype": experiment.dtype,
            "quantization": experiment.quantization
            or saved_method(experiment.model, **experiment.hub)
            or "",
        },
        "conditions": {
            name: _described(condition, subject.settings[name], design.family(name))
            for name, condition in built.items()
        },
        "families": {family: list(members) for family, members in design.families.items()},
        "headline": _pair(design.headline),
        "null_pair": _pair(design.null_pair),
        "nulls": [
            {"control": name, "condition": a, "reference": b}
            for name, (a, b) in design.nulls.items()
        ],
        "floors": [list(pair) for pair in design.floors],
        "queries": {name: len(queries) for name, queries in groups.items()},
        "answers": {
            "from": experiment.answers_from,
            "longest": max(len(q.answer_ids) for queries in groups.values() for q in queries),
            "written": experiment.answer_tokens,
            "temperature": experiment.temperature,
        },
        "chat": experiment.framed.chat,
        "interval": {
            "level": LEVEL,
            "replicates": experiment.bootstrap,
            "method": "Poisson bootstrap over queries",
        },
        "tests": {
            "permutations": experiment.permutations,
            "against": [[list(pair), list(other)] for pair, other in design.controls.items()],
        },
        "notes": subject.notes,
    }


def without_nan(entry: Any) -> Any:
    """The entry with None for every number that is none, as JSON has no such number."""
    if isinstance(entry, dict):
        return {name: without_nan(own) for name, own in entry.items()}
    if isinstance(entry, list | tuple):
        return [without_nan(own) for own in entry]
    return None if isinstance(entry, float) and not math.isfinite(entry) else entry


def _described(condition: Condition, setting: Setting, family: str | None) -> dict[str, Any]:
    return {
        "description": condition.describe(),
        "kind": condition.role,
        "family": family,
        "n_prefix": setting.n_prefix,
        "token_ids": token_hash(setting.prefix),
    }


def _pair(pair: tuple[str, str] | None) -> dict[str, str] | None:
    return dict(zip(("condition", "reference"), pair, strict=True)) if pair else None


def fingerprints(experiment: Experiment, built: Mapping[str, Condition]) -> dict[str, str]:
    """sha256 of everything an experiment reads from disk, by role (a hub id stands for itself)."""
    files: dict[str, str | Path] = {"model": experiment.model, "queries": experiment.queries}
    if experiment.heldout is not None:
        files["heldout"] = experiment.heldout
    if experiment.tokenizer is not None:
        files["tokenizer"] = experiment.tokenizer
    for name, condition in built.items():
        for what, file in condition.files():
            role = f"{what} of {name}"
            earlier = sum(known == role or known.startswith(f"{role}, ") for known in files)
            files[f"{role}, {earlier + 1}" if earlier else role] = file
    hashes = {role: sha256(f) if is_there(Path(f)) else str(f) for role, f in files.items()}
    for name, condition in built.items():
        hashes[f"condition {name}"] = hashlib.sha256(repr(condition).encode()).hexdigest()
    return hashes


def versions(experiment: Experiment) -> dict[str, str]:
    """The libraries that the numbers depend on."""
    names = ["interp", "torch", "transformers", "transformer-lens", "peft", "numpy"]
    if experiment.gguf_file is not None:
        names.append("gguf")
    if experiment.quantization is not None:
        names += sorted({name for name in PACKAGES.values() if find_spec(name)})
    return {name: importlib.metadata.version(name) for name in names}
