"""The studies of the bundled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from interp import organism


def bundled(out: Path) -> dict[str, Any]:
    """The fields of the bundled model's study: an instruction and the LoRA distilled from it."""
    return {
        "model": str(organism.MODEL),
        "prompt_file": (organism.PROMPTS / "instruction_0.txt",),
        "adapter": (str(organism.ADAPTERS / "lora_0"),),
        "queries": organism.QUERIES / "matched.jsonl",
        "out": out,
        "overwrite": True,
    }


def bundled_families(out: Path) -> dict[str, Any]:
    """The fields of the bundled model's demonstration: three instructions, five draws of few-shot
    demonstrations, and five LoRAs distilled from the first instruction."""
    instructions, few_shots = (
        sorted(organism.PROMPTS.glob(f"{kind}_*.txt")) for kind in ("instruction", "few_shot")
    )
    shots = {"template": "{query} {answer} ; "}
    conditions: dict[str, Any] = {p.stem: {"prompt": {"file": str(p)}} for p in instructions}
    conditions |= {
        path.stem: {"prompt": {"pairs": organism.demonstrations(path), **shots}}
        for path in few_shots
    }
    adapters = sorted(organism.ADAPTERS.iterdir())
    conditions |= {path.name: {"lora": {"adapter": str(path)}} for path in adapters}
    queries = {group: organism.QUERIES / f"{group}.jsonl" for group in ("matched", "heldout")}
    return {
        "model": str(organism.MODEL),
        "conditions": conditions,
        "queries": queries["matched"],
        "heldout": queries["heldout"],
        "out": out,
        "overwrite": True,
    }
