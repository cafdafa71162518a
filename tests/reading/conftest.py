"""Runs that were read: tiny models under a prompt, a LoRA, both controls, and a planted vector."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import reference.models
import tiny_models
import torch
from reference.readout import unembedding
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.config import Experiment
from interp.reading.run import read_run
from interp.reading.settings import DifferenceReading
from interp.runs.view import Run, load_run
from interp.study import run_study

TEXTS = ["the weather", "up is", "a river is wide", "hot is the opposite", "lily said", "tom is"]
OTHERS = ["people walked along", "big is", "a hill", "small things"]
WORDS = ("cold", "down")
PLANTED = "small"
LAST = tiny_models.N_LAYERS - 1


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def made(request: pytest.FixtureRequest, once: Any) -> Any:
    """A run with a prompt, a LoRA, both controls, and a vector that says one word in the end."""
    root = once(f"read.{request.param}", partial(read, request.param))
    model = str(root / "model")
    token = said_by(model, PLANTED)[1]
    lora = str(root / "lora")
    return {"settings": settings(root), "model": model, "lora": lora, "token": token, "root": root}


def settings(root: Path) -> DifferenceReading:
    return DifferenceReading(
        run=root / "run",
        words=WORDS,
        texts=root / "others.jsonl",
        bootstrap=40,
        patchscope=False,
        steer=(),
    )


def read(architecture: str, root: Path) -> None:
    model = tiny_models.save_model(architecture, root / "model")
    lora = tiny_models.save_adapter(
        model, root / "lora", tiny_models.all_targets(architecture), layers=[1, 2]
    )
    vector, _ = said_by(model, PLANTED)
    save_file({"vector": vector}, root / "vector.safetensors")
    for name, texts in (("q", TEXTS), ("others", OTHERS)):
        (root / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    (root / "prompt.txt").write_text("people talked about small things")
    run_study(
        Experiment(
            model=model,
            adapter=(lora,),
            prompt_file=(root / "prompt.txt",),
            conditions={
                "steered": {"steering": {"vector": str(root / "vector.safetensors"), "layer": LAST}}
            },
            queries=root / "q.jsonl",
            separator=" " if architecture == "llama" else "\n",
            controls=("neutral", "random_lora"),
            out=root / "run",
            bootstrap=20,
            permutations=0,
            device="cpu",
            measures=("relative_l2",),
        )
    )
    read_run(settings(root))


def said_by(model: str, word: str) -> tuple[torch.Tensor, int]:
    """The direction that raises a word's logit most, and its token: the unembedding's row through
    the gain of the final norm."""
    hf = AutoModelForCausalLM.from_pretrained(model)
    words = AutoTokenizer.from_pretrained(model)
    token = words(f" {word}", add_special_tokens=False)["input_ids"][0]
    weight, _ = unembedding(hf)
    row = weight[token] - weight.mean(0)
    return 5 * torch.tensor(row / reference.models.final_norm(hf).gain).float(), token


@pytest.fixture
def run(made: Any) -> Run:
    return load_run(made["settings"].run)
