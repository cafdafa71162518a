"""A small finished run: a prompt against a LoRA of a tiny model, with held-out queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import all_targets, save_adapter, save_model

from interp.config import Experiment
from interp.study import run_study

TEXTS = (
    "hot is the opposite",
    "a river",
    "big",
    "people walked along the road",
    "lily said",
    "tom",
)
HELDOUT = ("a hill is high", "yes", "cold is the")


@pytest.fixture(scope="session")
def finished(once: Any) -> Path:
    """Its folder, which nobody changes."""
    return once("subspace", finish) / "RUN"


def finish(root: Path) -> None:
    model = save_model("qwen3", root / "model")
    save_adapter(model, root / "lora", all_targets("qwen3"))
    (root / "prompt.txt").write_text("up is the opposite of down")
    for name, texts in (("queries", TEXTS), ("heldout", HELDOUT)):
        lines = [json.dumps({"text": text}) for text in texts]
        (root / f"{name}.jsonl").write_text("\n".join(lines))
    fields = {
        "model": model,
        "adapter": (str(root / "lora"),),
        "prompt_file": (str(root / "prompt.txt"),),
        "queries": root / "queries.jsonl",
        "heldout": root / "heldout.jsonl",
        "out": root / "RUN",
        "controls": ("neutral",),
        "measures": ("output",),
        "bootstrap": 20,
        "permutations": 0,
        "sample": 0,
        "max_positions": 1,
    }
    run_study(Experiment.model_validate(fields))
