"""What the names on a page stand for where its commands run in a test, what these leave behind, and
which commands do not run there, and why.

A page takes models, adapters, prompts, queries and runs for granted. `build` makes small ones:
random models of the same architecture, LoRAs that peft saves for them, a few queries in the page's
own format, and a run of each model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chatting import BEGIN, CHATML, END
from documentation.pages import ROOT
from studies import quick_study
from tiny_models import (
    CONFIGS,
    save_adapter,
    save_prefix,
    save_random_model,
    save_soft_prompt,
    save_steering,
    tokenizer,
)
from transformers import AutoTokenizer

from interp.matching.invert import invert
from interp.matching.settings import Inversion
from interp.organism import MODEL, QUERIES
from interp.study import run_study

CHAT = ROOT / "analyses" / "chat"
MEASURES = ("js_divergence", "kl_divergence", "top1_agreement", "relative_l2")
"""What the prepared runs have: few figures, which are most of the time of a command."""
LORAS = ("persona", "format")
MESSAGES = ("hot is", "big is the", "up is", "lily said: yes")

NAMES = {
    **dict.fromkeys(["MODEL", "M"], "model"),
    **dict.fromkeys(["ADAPTER", "A"], "lora"),
    **dict.fromkeys(["PROMPT.txt", "P"], "prompt.txt"),
    "Q.jsonl": "queries.jsonl",
    "PROMPT": "found",
    **dict.fromkeys(["RUN", "RUN_A", "RUN_B", "runs/demo"], "run"),
    **dict.fromkeys(["runs/rank_4", "runs/rank_8", "runs/rank_16"], "run"),
    "OTHER_MODEL": "other_model",
    "PROMPT_TUNING": "soft_prompt",
    "PREFIX_TUNING": "prefix",
    "vector.safetensors": "vector.safetensors",
    ".cache/smollm2": "chat_model",
    "analyses/chat/adapters": "chat_loras",
    **dict.fromkeys(["analyses/chat/fit.jsonl", "analyses/chat/heldout.jsonl"], "messages.jsonl"),
    "analyses/chat/prompts": "chat_prompts",
    "runs/persona": "chat_run",
    "runs/ladder/lora_1/format": "chat_loras/format",
}
"""A name on a page, and what `build` made in its stead."""

SMALLER = {
    "L5H3": "L1H1",
    "L2H6": "L1H1",
    "layer: 3": "layer: 1",
    "--layers 20": "--layers 1",
    "--seeds 4": "--seeds 2 --epochs 2",
    "--answer-tokens 16": "--answer-tokens 2",
    "--kind text --tokens 4": "--kind text --tokens 1 --steps 4",
    "patch RUN": "patch RUN --head-sites z --positions 1 --ablate layers --greedy 2",
    "--dimensions 1 4 --steps 5": "--dimensions 1 --steps 1",
    "--said 24": "--said 2",
    "experiment.yaml": "experiment.yaml --measures relative_l2",
    "subspace RUN": "subspace RUN --steps 2 --layers 1 --draws 1 --dimensions 1",
    "--words cold small": "--words cold small --limit 4 --steer 1 --steer-texts 2 --steer-tokens 2",
}
"""Places that the small models lack, numbers of what takes long, and what stands for them."""

WRITES = {
    "diverge": ("report.html", "results.parquet", "arrays.safetensors", "manifest.json"),
    "patch": ("report.html", "interchange.parquet"),
    "subspace": ("report.html", "subspaces.parquet"),
    "edges": ("report.html", "edges.parquet"),
    "weights": ("report.html", "weights.parquet"),
    "read": ("report.html", "reading.parquet", "reading_tokens.parquet"),
    "ladder": ("report.html", "ladder.parquet"),
    "report": ("report.html", "figures/layers.csv"),
    "head": ("figures/head_*.csv",),
    "match distil": ("**/adapter_model.safetensors", "**/adapter_config.json"),
    "match invert": ("experiment.yaml",),
    "compare": (),
    "analyses/ladder.py": ("ladder.parquet", "figures/*.csv"),
}
"""What a command leaves in the folder that it names."""

SETS_UP = "sets this machine up"
SCRIPTS = "minutes; small in tests/analyses/test_scripts.py"
RAY = "workers of Ray take long to start; tests/engines/test_ray.py"
NOT_HERE = {
    "make demo": f"{SETS_UP}, and a minute; tests/report/test_phone.py",
    "make test": "the tests themselves",
    ". .venv/bin/activate": SETS_UP,
    "make smollm2": f"{SETS_UP}; tests/test_smollm2.py",
    "make chat-study": "takes long; small in tests/analyses/test_chat_study.py",
    "pip install 'interp[ray]'": SETS_UP,
    "interp demo": "a minute; tests/report/test_phone.py",
    "interp experiment all": "takes long; tests/cli/test_experiment.py",
    "interp experiment internal_state --model M --adapter A --prompts P --queries Q.jsonl": SCRIPTS,
    "interp experiment prompt_as_weights": (
        "minutes; small in tests/analyses/test_prompt_as_weights.py"
    ),
    "interp experiment exact_chain": "minutes; small in tests/experiments/test_exact_chain.py",
    "interp experiment claims": "half an hour; small in tests/experiments/test_claims.py",
    "python analyses/interchange.py": SCRIPTS,
    "python analyses/head_probe.py --heads L1H7": SCRIPTS,
    "python analyses/equation_of_influence.py --against cold": SCRIPTS,
    "python analyses/ladder.py": "minutes; its longer command runs here",
    "OMP_NUM_THREADS=2 interp diverge ... --engine ray --workers 4": RAY,
    "interp patch RUN --engine ray --workers 4 --address HOST:6379": RAY,
    "interp match distil ... --seeds 4 --engine ray --workers 4": RAY,
    "interp experiment all --engine ray --workers 4": RAY,
}
"""Commands that do not run here: why, and where their like is tested."""


def build(place: Path) -> None:
    """Make all of it in a folder."""
    asked = (QUERIES / "matched.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    (place / "queries.jsonl").write_text("\n".join(asked), encoding="utf-8")
    (place / "prompt.txt").write_text("opposite :\n", encoding="utf-8")
    model = save_small("qwen3", place / "model", AutoTokenizer.from_pretrained(MODEL))
    save_small("qwen3", place / "other_model", AutoTokenizer.from_pretrained(MODEL), seed=1)
    save_soft_prompt(model, place / "soft_prompt")
    save_prefix(model, place / "prefix")
    save_steering(model, place / "vector.safetensors")
    given = {
        "model": model,
        "adapter": (save_adapter(model, place / "lora", ["q_proj"]),),
        "prompt_file": (place / "prompt.txt",),
        "queries": place / "queries.jsonl",
        "separator": "\n",
        "measures": MEASURES,
    }
    run_study(quick_study(place / "run", **given))
    invert(
        Inversion(
            model=model,
            adapter=str(place / "lora"),
            queries=place / "queries.jsonl",
            kind="text",
            tokens=1,
            steps=2,
            bootstrap=0,
            out=place / "found",
        )
    )
    build_chat(place)


def build_chat(place: Path) -> None:
    """What stands for SmolLM2: a small Llama that chats, LoRAs, a few messages, and a run."""
    (place / "chat_prompts").symlink_to(CHAT / "prompts")
    (place / "messages.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in MESSAGES), encoding="utf-8"
    )
    words = tokenizer("gpt2")
    words.add_special_tokens({"additional_special_tokens": [BEGIN, END]})
    words.eos_token, words.chat_template = END, CHATML
    model = save_small("llama", place / "chat_model", words)
    loras = [save_adapter(model, place / "chat_loras" / n, ["q_proj"]) for n in LORAS]
    given = {
        "model": model,
        "adapter": (loras[0],),
        "prompt_file": (),
        "system_file": (CHAT / "prompts" / "persona_0.txt",),
        "queries": place / "messages.jsonl",
        "separator": "\n",
        "chat": True,
        "answer_tokens": 2,
        "answers_from": "prompt",
        "controls": ("neutral", "random_lora"),
        "measures": MEASURES,
    }
    run_study(quick_study(place / "chat_run", **given))


def save_small(architecture: str, folder: Path, words: Any, seed: int = 0) -> str:
    """A random model of two layers of two heads with room for a long system message."""
    family, settings = CONFIGS[architecture]
    small = {"hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 1024}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return save_random_model(family, settings | small | heads, folder, seed, words)
