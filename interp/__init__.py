"""Where inside a network do a prompt and a LoRA diverge, when they make it say the same thing?

    import interp
    lab = interp.load(model, tokenizer, prompt="Answer in French.", lora="adapter", chat=True)
    acts = lab.run(["What is the capital of Peru?"], sites=["resid_post", "pattern"])
    acts.pattern.sel(condition="lora", layer=3, head=2)
    interp.plots.attention(acts, "L3H2")

In a notebook: load -> Lab (run, patch), plots.
A whole study: Experiment, diverge -> a folder, load_run -> Run; head_view -> HeadView; Query,
    read_queries; Certificate.
On a finished run: Patching, patch; Subspaces, find_subspaces; EdgeTracing, trace_edges;
    Weighing, weigh; DifferenceReading, read_run; Ladder, ladder.
To match outputs: Distillation, distil; Inversion, invert.
Conditions: Base, Prompt, Lora, FineTuned, SoftPrompt, Prefix, Steering, LogitBias.
Controls: Neutral, EmptySystem, ShuffledTokens, ShuffledLabels, Shifted, RandomLora, FittedBias,
    Untrained.
To build on: Subject, Batch, Site, Head; Validating, validate. Errors: InterpError.

`help(interp.load)` explains one name. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

for _talkative in ("torchao", "torch.utils._pytree"):
    # peft imports torchao where it is installed, which then tells of kernels that no run here uses.
    logging.getLogger(_talkative).setLevel(logging.ERROR)

_HOMES = {
    "load": "lab",
    "Lab": "lab",
    "Certificate": "certificates",
    "Site": "names",
    "Head": "names",
    "Run": "runs.view",
    "HeadView": "runs.heads",
    "load_run": "runs.view",
    "InterpError": "errors",
    "Base": "conditions",
    "Prompt": "conditions",
    "Lora": "conditions",
    "FineTuned": "conditions",
    "SoftPrompt": "conditions",
    "Prefix": "conditions",
    "Steering": "conditions",
    "LogitBias": "conditions",
    "FittedBias": "conditions",
    "Neutral": "conditions",
    "EmptySystem": "conditions",
    "ShuffledTokens": "conditions",
    "ShuffledLabels": "conditions",
    "Shifted": "conditions",
    "RandomLora": "conditions",
    "Untrained": "conditions",
    "Query": "queries",
    "read_queries": "queries",
    "Experiment": "config",
    "Distillation": "config",
    "Subject": "subject",
    "Batch": "subject",
    "diverge": "lab.experiments",
    "Patching": "patching.settings",
    "patch": "patching.run",
    "Inversion": "matching.settings",
    "invert": "matching.invert",
    "Validating": "validation.settings",
    "validate": "validation.running",
    "Subspaces": "subspace.settings",
    "find_subspaces": "subspace.run",
    "EdgeTracing": "edges.settings",
    "trace_edges": "edges.run",
    "Weighing": "weights.settings",
    "weigh": "weights.run",
    "DifferenceReading": "reading.settings",
    "read_run": "reading.run",
    "Ladder": "rungs.settings",
    "ladder": "rungs.run",
    "distil": "matching.distil",
    "head_view": "heads",
}
"""Public name -> the room it lives in."""

_ROOMS = ("plots", "organism")
"""Rooms that are public as they are."""

if TYPE_CHECKING:
    from interp import organism, plots
    from interp.certificates import Certificate
    from interp.conditions import (
        Base,
        EmptySystem,
        FineTuned,
        FittedBias,
        LogitBias,
        Lora,
        Neutral,
        Prefix,
        Prompt,
        RandomLora,
        Shifted,
        ShuffledLabels,
        ShuffledTokens,
        SoftPrompt,
        Steering,
        Untrained,
    )
    from interp.config import Distillation, Experiment
    from interp.edges.run import trace_edges
    from interp.edges.settings import EdgeTracing
    from interp.errors import InterpError
    from interp.heads import head_view
    from interp.lab import Lab, load
    from interp.lab.experiments import diverge
    from interp.matching.distil import distil
    from interp.matching.invert import invert
    from interp.matching.settings import Inversion
    from interp.names import Head, Site
    from interp.patching.run import patch
    from interp.patching.settings import Patching
    from interp.queries import Query, read_queries
    from interp.reading.run import read_run
    from interp.reading.settings import DifferenceReading
    from interp.rungs.run import ladder
    from interp.rungs.settings import Ladder
    from interp.runs.heads import HeadView
    from interp.runs.view import Run, load_run
    from interp.subject import Batch, Subject
    from interp.subspace.run import find_subspaces
    from interp.subspace.settings import Subspaces
    from interp.validation.running import validate
    from interp.validation.settings import Validating
    from interp.weights.run import weigh
    from interp.weights.settings import Weighing


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"interp.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"interp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(["__version__", *_HOMES, *_ROOMS])
