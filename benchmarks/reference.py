"""The random model that costs are measured on, with its adapters, prompts and queries.

    found = made(Path(".cache/bench"), Size())
    found.model, found.loras, found.experiment(Path("RUN"))

Everything is drawn from one seed and saved once; the same numbers follow on every machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.config import Experiment
from interp.subject.loading import quiet


@dataclass(frozen=True)
class Size:
    """Of the model, the queries and the prompt."""

    layers: int = 8
    d_model: int = 512
    heads: int = 8
    vocabulary: int = 8192
    queries: int = 64
    length: int = 16
    prompt: int = 200
    loras: int = 2


SMOKE = Size(layers=2, d_model=64, heads=4, vocabulary=128, queries=8, length=6, prompt=20)
"""For a test that everything runs."""


@dataclass(frozen=True)
class Reference:
    """What was made, by path."""

    size: Size
    folder: Path

    @property
    def model(self) -> str:
        """Folder of the model and its tokenizer."""
        return str(self.folder / "model")

    @property
    def loras(self) -> list[str]:
        """Folders of the adapters."""
        return [str(self.folder / f"lora_{i}") for i in range(self.size.loras)]

    @property
    def prompt(self) -> str:
        """The prompt's text."""
        return (self.folder / "prompt.txt").read_text()

    @property
    def texts(self) -> list[str]:
        """The queries."""
        lines = (self.folder / "queries.jsonl").read_text().splitlines()
        return [json.loads(line)["text"] for line in lines]

    def experiment(self, out: Path, **fields: Any) -> Experiment:
        """A study of base, the prompt, neutral text of its length and the adapters."""
        given: dict[str, Any] = {
            "model": self.model,
            "adapter": tuple(self.loras),
            "prompt_file": (str(self.folder / "prompt.txt"),),
            "queries": str(self.folder / "queries.jsonl"),
            "controls": ("neutral",),
            "out": out,
            "overwrite": True,
            "device": "cpu",
        }
        return Experiment(**given | fields)


def made(folder: Path, size: Size) -> Reference:
    """The reference of this size, made where it is not there yet."""
    name = "-".join(str(number) for number in vars(size).values())
    found = Reference(size, folder / name)
    if not (found.folder / "done").exists():
        with quiet():
            _make(found)
        (found.folder / "done").touch()
    return found


def _make(found: Reference) -> None:
    size, draw = found.size, torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(size.vocabulary)}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.d_model,
        intermediate_size=int(2.6875 * size.d_model),
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=8192 + 64,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(found.model)
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(found.model)
    for lora in found.loras:
        base = LlamaForCausalLM.from_pretrained(found.model)
        peft = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        peft.save_pretrained(lora)

    def text(length: int) -> str:
        drawn = torch.randint(1, size.vocabulary, (length,), generator=draw)
        return " ".join(f"w{i}" for i in drawn.tolist())

    (found.folder / "prompt.txt").write_text(text(size.prompt))
    lines = [json.dumps({"text": text(size.length)}) + "\n" for _ in range(size.queries)]
    (found.folder / "queries.jsonl").write_text("".join(lines))
