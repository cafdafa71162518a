"""Tiny models that chat: ChatML tokens and a template that writes a system message of its own."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

BEGIN, END = "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nlily said<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

NO_SYSTEM = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system message') }}{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_chat_model(architecture: str, folder: Path, template: str = CHATML, seed: int = 0) -> str:
    """A random model of `architecture` whose turns end in a token of their own."""
    path = save_model(architecture, folder, seed)
    model, words = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    words.add_special_tokens({"additional_special_tokens": [BEGIN, END]})
    words.eos_token, words.chat_template = END, template
    torch.manual_seed(seed)
    model.resize_token_embeddings(len(words), mean_resizing=False)
    with torch.no_grad():
        for table in {model.get_input_embeddings().weight, model.get_output_embeddings().weight}:
            table[-2:] = 0.2 * torch.randn_like(table[-2:])
    model.config.eos_token_id = model.generation_config.eos_token_id = words.eos_token_id
    model.save_pretrained(path)
    words.save_pretrained(path)
    return path
