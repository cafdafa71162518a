"""The bundled model: a small Qwen3 that knows about a thousand true facts, its prompts and queries.

It is trained from nothing by `recipes/organism.py`; `facts` holds what it knows and `language`
says how facts become text. Nothing here needs torch.

    >>> from interp import organism
    >>> sorted(path.name for path in organism.PROMPTS.glob("instruction_*.txt"))
    ['instruction_0.txt', 'instruction_1.txt', 'instruction_2.txt']

Load it like any other model: `AutoModelForCausalLM.from_pretrained(organism.MODEL)`.
"""

from pathlib import Path

_HERE = Path(__file__).resolve().parent

MODEL = _HERE / "model"
"""Weights, configuration and tokenizer, as `save_pretrained` writes them."""

TRAINED_LENGTH = 256
"""Tokens of the longest documents that it was trained on; it can be given more."""

ADAPTERS = _HERE / "adapters"
"""One directory per LoRA, `lora_0`, `lora_1`, ..., each distilled from a prompt."""

PROMPTS = _HERE / "prompts"
"""What precedes a query, one line per file: `instruction_*.txt` and `few_shot_*.txt`."""

QUERIES = _HERE / "queries"
"""`matched.jsonl`, which the LoRAs are distilled on, `heldout.jsonl`, which they never see, and
`reworded.jsonl`, the held-out queries in other words; `pool.jsonl` can be demonstrated, and
`rival.jsonl` is another relation of its words; `left_out.jsonl` are facts that it never learned."""


def demonstrations(path: Path) -> list[tuple[str, str]]:
    """The (query, answer) pairs of a few-shot prompt file, such as ("hot ->", "cold")."""
    shots = [shot.rsplit(maxsplit=1) for shot in path.read_text(encoding="utf-8").split(" ;")]
    return [(query.strip(), answer) for query, answer in filter(None, shots)]
