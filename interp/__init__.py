"""Where inside a network do a prompt and a LoRA diverge, when they make it say the same thing?

    import interp
    run = interp.diverge(interp.Experiment(model=..., prompt_file=..., adapter=..., ...))
    interp.load_run(run).table

Names are imported when they are first used: `import interp` costs nothing.
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
    "Site": "names",
    "Head": "names",
    "Run": "results",
    "HeadView": "results",
    "load_run": "results",
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
    "diverge": "study",
    "Patching": "causal.settings",
    "patch": "causality",
    "Inversion": "matching.settings",
    "invert": "matching.invert",
    "Validating": "validation.settings",
    "validate": "validation.running",
    "Weighing": "weights.settings",
    "weigh": "weighing",
    "distil": "matching.distil",
    "head_view": "probe",
}
"""Public name -> the room it lives in."""

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from interp.causal.settings import Patching
    from interp.causality import patch
    from interp.conditions import (
        Base,
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
    from interp.errors import InterpError
    from interp.matching.distil import distil
    from interp.matching.invert import invert
    from interp.matching.settings import Inversion
    from interp.names import Head, Site
    from interp.probe import head_view
    from interp.queries import Query, read_queries
    from interp.results import HeadView, Run, load_run
    from interp.study import diverge
    from interp.subject import Batch, Subject
    from interp.validation.running import validate
    from interp.validation.settings import Validating
    from interp.weighing import weigh
    from interp.weights.settings import Weighing


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'interp' has no attribute {name!r}")
    return getattr(importlib.import_module(f"interp.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
