"""A quick study of the bundled model, for tests of what a run does around its measures."""

from pathlib import Path
from typing import Any

from interp import Experiment
from interp.organism import ADAPTERS, MODEL, PROMPTS, QUERIES


def quick_study(out: Path, **fields: Any) -> Experiment:
    """A prompt and a LoRA on ten queries, few replicates; with other settings where given."""
    given: dict[str, Any] = {
        "model": str(MODEL),
        "adapter": (str(ADAPTERS / "lora_0"),),
        "prompt_file": (PROMPTS / "instruction_0.txt",),
        "queries": QUERIES / "matched.jsonl",
        "separator": " ",
        "limit": 10,
        "permutations": 19,
        "bootstrap": 20,
        "controls": ("neutral",),
        "out": out,
    }
    return Experiment(**given | fields)
