"""Divergences from whole sequences, one query at a time, by transformers and peft alone.

    said = Plain.of(model, lora=folder)
    said.kl(wanted, question, before=(1, 5, 6))     # KL(wanted ‖ said) of one query, nats

No cache, no padding, no hooks: the reference of everything that `interp.matching` computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


@dataclass(frozen=True)
class Asked:
    """A query and its answer, as token ids: what is matched are the rows that predict the answer
    (the last row, without one)."""

    ids: tuple[int, ...]
    answer: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: str, text: str, answer: str | None = None) -> Asked:
        tokenizer = AutoTokenizer.from_pretrained(model)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if answer is None:
            return cls(tuple(ids))
        joint = tokenizer(f"{text} {answer}", add_special_tokens=False)["input_ids"]
        assert joint[: len(ids)] == ids
        return cls(tuple(ids), tuple(joint[len(ids) :]))

    @property
    def fed(self) -> tuple[int, ...]:
        """What the model reads: everything but the answer's last token."""
        return (*self.ids, *self.answer)[: len(self.ids) + max(0, len(self.answer) - 1)]

    @property
    def rows(self) -> int:
        return max(1, len(self.answer))


@dataclass(frozen=True)
class Plain:
    """A Hugging Face model, perhaps with a LoRA mounted by peft."""

    hf: Any
    embed: Any

    @classmethod
    def of(cls, model: str, lora: str | None = None) -> Plain:
        hf = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
        hf = PeftModel.from_pretrained(hf, lora).eval() if lora else hf
        return cls(hf.requires_grad_(False), hf.get_input_embeddings())

    def logits(
        self,
        asked: Asked,
        before: tuple[int, ...] = (),
        embeddings: Tensor | None = None,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Logits `[row, d_vocab]` (float64) of the matched rows; virtual tokens stand first."""
        ids = torch.tensor([[*before, *asked.fed]])
        if embeddings is not None:
            fed = torch.cat([embeddings[None], self.embed(ids)], 1)
            out = self.hf(inputs_embeds=fed, use_cache=False)
        elif prefix is not None:
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(prefix):
                cache.update(keys[None], values[None], layer)
            out = self.hf(input_ids=ids, past_key_values=cache)
        else:
            out = self.hf(input_ids=ids, use_cache=False)
        return out.logits[0, -asked.rows :].double()

    def kl(self, wanted: Tensor, asked: Asked, before: tuple[int, ...] = (), **virtual: Any) -> Any:
        """The mean over the matched rows of `KL(wanted ‖ said)`, by the definition."""
        p = wanted.softmax(-1)
        said = self.logits(asked, before, **virtual)
        return (p * (p.log() - said.softmax(-1).log())).sum(-1).mean()
