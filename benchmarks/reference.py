"""The models that costs are measured on, with their adapters, prompts and queries.

    found = made(CACHE, Size())                         # random, the reference
    found.model, found.loras, found.experiment(Path("RUN"))
    bundled(), chatting(CACHE, smoke=False)             # the bundled model; SmolLM2 in a chat

What is random is drawn from one seed and saved once; the same numbers follow on every machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from interp import organism
from interp.config import Experiment
from interp.subject.loading import quiet

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache" / "bench"
SMOLLM2 = Path(os.environ.get("INTERP_SMOLLM2", ROOT / ".cache" / "smollm2"))


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
    tied: bool = True
    """Whether the unembedding is the embedding."""


TEMPLATE = (
    "{% for turn in messages %}w1 {{ turn.content }} w2 {% endfor %}"
    "{% if add_generation_prompt %}w3{% endif %}"
)
"""Of a chat with a random model."""

SMOKE = Size(layers=2, d_model=64, heads=4, vocabulary=128, queries=8, length=6, prompt=20)
"""For a test that everything runs."""


@dataclass(frozen=True)
class Reference:
    """A model in base, under a prompt, behind neutral text of its length, and with its adapters:
    everything by path. `fields`: further settings of its study."""

    model: str
    loras: Sequence[str]
    prompt_file: Path
    queries: Path
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The prompt's text."""
        return self.prompt_file.read_text()

    @property
    def texts(self) -> list[str]:
        """The queries."""
        lines = self.queries.read_text().splitlines()[: self.fields.get("limit")]
        return [json.loads(line)["text"] for line in lines]

    def experiment(self, out: Path) -> Experiment:
        """The study of its conditions."""
        given: dict[str, Any] = {
            "model": self.model,
            "adapter": tuple(self.loras),
            "queries": self.queries,
            "controls": ("neutral",),
            "out": out,
            "overwrite": True,
            "device": "cpu",
        }
        role = "system_file" if self.fields.get("chat") else "prompt_file"
        return Experiment(**given | {role: (self.prompt_file,)} | self.fields)


def made(folder: Path, size: Size, device: str = "cpu") -> Reference:
    """The random model of this size, made (on a device) where it is not there yet."""
    own = folder / "-".join(str(int(number)) for number in vars(size).values())
    found = Reference(
        str(own / "model"),
        [str(own / f"lora_{i}") for i in range(size.loras)],
        own / "prompt.txt",
        own / "queries.jsonl",
    )
    if not (own / "done").exists():
        with quiet():
            _make(found, size, device)
        (own / "done").touch()
    return found


def bundled() -> Reference:
    """The model that comes with the library."""
    return Reference(
        str(organism.MODEL),
        [str(organism.ADAPTERS / f"lora_{i}") for i in range(2)],
        organism.PROMPTS / "instruction_0.txt",
        organism.QUERIES / "matched.jsonl",
    )


def chatting(folder: Path, smoke: bool) -> Reference | None:
    """SmolLM2 under a system message and with two random adapters, on 64 questions with answers of
    16 tokens; None where the model was not made. `smoke`: a tiny random model with a template."""
    if smoke:
        tiny = made(folder, SMOKE)
        return replace(tiny, fields=_chat(queries=2, answer=2))
    if not SMOLLM2.exists():
        return None
    own, chat = folder / "smollm2", ROOT / "analyses" / "chat"
    loras = [str(own / f"lora_{i}") for i in range(2)]
    if not (own / "done").exists():
        with quiet():
            _adapt(str(SMOLLM2), loras, ["q_proj", "k_proj", "v_proj", "o_proj"])
        (own / "done").touch()
    prompt, questions = chat / "prompts" / "persona_0.txt", chat / "fit.jsonl"
    return Reference(str(SMOLLM2), loras, prompt, questions, _chat(queries=64, answer=16))


def _chat(queries: int, answer: int) -> dict[str, Any]:
    """Every condition writes an answer, and reads the prompt's."""
    asked = {"chat": True, "limit": queries}
    return asked | {"answer_tokens": answer, "answers_from": "prompt"}


def _make(found: Reference, size: Size, device: str) -> None:
    draw = torch.Generator().manual_seed(1)
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
        tie_word_embeddings=size.tied,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config)
    model.save_pretrained(found.model)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, chat_template=TEMPLATE)
    tokenizer.save_pretrained(found.model)
    _adapt(found.model, found.loras, "all-linear")

    def text(length: int) -> str:
        drawn = torch.randint(1, size.vocabulary, (length,), generator=draw)
        return " ".join(f"w{i}" for i in drawn.tolist())

    found.prompt_file.write_text(text(size.prompt))
    lines = [json.dumps({"text": text(size.length)}) + "\n" for _ in range(size.queries)]
    found.queries.write_text("".join(lines))


def _adapt(model: str, loras: Sequence[str], targets: str | list[str]) -> None:
    """Save random adapters that change what the model says."""
    torch.manual_seed(2)
    for lora in loras:
        base = AutoModelForCausalLM.from_pretrained(model)
        peft = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        peft.save_pretrained(lora)
