"""The separating toy of Petrov, Torr & Bibi (2310.19698): a LoRA learns it, a prefix does not."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from interp import toy
from interp.subject.loading import quiet
from interp.validation.outcome import Reading

_EXAMINED = 500
"""Held-out inputs; the standard error of an accuracy is at most 0.022."""
_LEARNT, _NOT_LEARNT = 0.9, 0.1


def _accuracy(adapter: str, task: str, seed: int = 1) -> float:
    """Share of inputs whose whole output is right, in plain Hugging Face + peft.

    All digits at once: greedy decoding gets an output right if and only if every digit is the
    most probable one after the right ones before it.
    """
    ids = torch.from_numpy(toy.exam(seed, _EXAMINED, task, told=False))
    with quiet(), torch.no_grad():
        hf = AutoModelForCausalLM.from_pretrained(toy.MODEL)
        said = PeftModel.from_pretrained(hf, adapter).eval()(input_ids=ids).logits
    guess = said[:, -toy.LENGTH - 1 : -1].argmax(-1)
    return float((guess == ids[:, -toy.LENGTH :]).all(1).float().mean())


def _lora() -> Reading:
    """A rank-1 LoRA solves double histogram (published: 92.38 %)."""
    return Reading(_accuracy(str(toy.LORA), toy.NEW_TASK), _LEARNT, at_least=True)


def _prefix() -> Reading:
    """A prefix of as many numbers does not (published: 0.31 %)."""
    return Reading(_accuracy(str(toy.PREFIX), toy.NEW_TASK), _NOT_LEARNT)


SEPARATION_CHECKS = {"toy: LoRA accuracy": _lora, "toy: prefix accuracy": _prefix}


def available() -> bool:
    """Whether the toy's weights are here (`recipes/petrov_toy.py` makes them)."""
    weights = "adapter_model.safetensors"
    return all((folder / weights).is_file() for folder in (toy.LORA, toy.PREFIX))
