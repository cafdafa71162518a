"""Models of other kinds are refused by their configuration alone; of those that read images too,
the text part is measured."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tiny_models import GEMMA, GQA, tokenizer
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BartConfig,
    BertConfig,
    CLIPConfig,
    DiffusionGemmaConfig,
    DistilBertConfig,
    Gemma3Config,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    Qwen2AudioConfig,
    T5Config,
    ViTConfig,
    WhisperConfig,
    XLNetConfig,
)

from interp import cli
from interp.conditions import Base, Lora, Prompt, Steering
from interp.errors import SubjectError
from interp.queries import Query, encode
from interp.subject import Batch, Subject, load
from interp.subject.kinds import check_kind, other_kind

QUERY = "hot is the opposite of cold"

OTHERS = {
    "an encoder-decoder (t5)": T5Config(),
    "an encoder-decoder (BartForConditionalGeneration)": BartConfig(
        architectures=["BartForConditionalGeneration"]
    ),
    "an encoder-decoder (whisper)": WhisperConfig(),
    "a masked language model (BertForMaskedLM)": BertConfig(architectures=["BertForMaskedLM"]),
    "a masked language model (distilbert)": DistilBertConfig(),
    "a diffusion language model (diffusion_gemma)": DiffusionGemmaConfig(),
    "no text decoder (vit)": ViTConfig(),
    "no text decoder (clip)": CLIPConfig(),
    "no text decoder (qwen2_audio)": Qwen2AudioConfig(),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_model_is_one_line_before_any_file_but_its_configuration(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    OTHERS[kind].save_pretrained(tmp_path / "model")
    (tmp_path / "prompt.txt").write_text("up is down")
    (tmp_path / "queries.jsonl").write_text('{"text": "hot is"}\n')
    words = ["diverge", "--model", "model", "--prompt-file", "prompt.txt"]
    words += ["--queries", "queries.jsonl", "--out", "run"]
    files = {"model", "prompt.txt", "queries.jsonl", "run"}
    words = [str(tmp_path / word) if word in files else word for word in words]
    assert cli.main(words) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("interp: ")]
    assert line.startswith(f"interp: {tmp_path / 'model'} is {kind}; only models that predict")
    assert not (tmp_path / "run").exists()


REMOTE = {
    "LLaDA": {"model_type": "llada", "architectures": ["LLaDAModelLM"]},
    "Dream": {"model_type": "Dream", "architectures": ["DreamModel"]},
}


@pytest.mark.parametrize("name", REMOTE)
def test_diffusion_that_brings_its_own_code_is_refused_before_the_code_is(name: str) -> None:
    code = {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    assert other_kind(REMOTE[name] | code) == "a diffusion language model"


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "diffllama", "some_new_model"])
def test_a_decoder_is_no_other_kind(architecture: str) -> None:
    assert other_kind({"model_type": architecture}) == ""


def test_a_bert_made_a_decoder_is_no_other_kind() -> None:
    assert other_kind({"model_type": "bert", "is_decoder": True}) == ""


def refusal(config: Any, folder: Path) -> str:
    config.save_pretrained(folder)
    with pytest.raises(SubjectError) as caught:
        check_kind(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_architecture_that_cannot_be_hooked_is_a_short_line(tmp_path: Path) -> None:
    message = refusal(XLNetConfig(), tmp_path)
    assert message.endswith("(xlnet) cannot be hooked: TransformerBridge does not know it")


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_a_library_that_hooking_needs_is_named(tmp_path: Path) -> None:
    message = refusal(Qwen2_5_VLConfig(), tmp_path)
    assert message.endswith("cannot be hooked: TransformerBridge needs torchvision for it")


def test_a_model_above_one_device_is_one_line_before_its_weights_are_read(tmp_path: Path) -> None:
    """No file of weights is there at all."""
    huge = LlamaConfig(hidden_size=1 << 16, num_hidden_layers=20, num_attention_heads=64)
    huge.save_pretrained(tmp_path)
    tokenizer("llama").save_pretrained(tmp_path)
    with pytest.raises(SubjectError) as caught:
        load(str(tmp_path), {"base": Base()}, [QUERY], dtype="bfloat16", device="cpu")
    said = str(caught.value)
    assert re.match(rf"{tmp_path} takes \d+\.\d GB in bfloat16, cpu has \d+\.\d GB free, and", said)
    assert "\n" not in said


# Models that read images too --------------------------------------------------------------------

VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
"""As many blocks as the text part, which must not be taken for them."""


def wrapper(name: str, words: int) -> Any:
    text = {"vocab_size": words, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if name == "gemma3":
        return Gemma3Config(text_config=text | GEMMA, vision_config=VISION, mm_tokens_per_image=4)
    vision = {"model_type": "clip_vision_model", "projection_dim": 16, **VISION}
    llama = {"model_type": "llama", **text, **GQA}
    return LlavaConfig(text_config=llama, vision_config=vision, image_token_index=words - 1)


@pytest.fixture(scope="module", params=["gemma3", "llava"])
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, words = tmp_path_factory.mktemp("images") / "base", tokenizer("llama")
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(wrapper(request.param, len(words)))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return str(folder)


def opened(folder: str) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def lora(images: str) -> str:
    """Of every linear layer, those that read images among them."""
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    config.task_type = "CAUSAL_LM"
    folder = f"{images}-lora"
    get_peft_model(opened(images), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def seeing(images: str, lora: str, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    vector = tmp_path_factory.mktemp("vector") / "vector.safetensors"
    torch.manual_seed(0)
    size = AutoConfig.from_pretrained(images).get_text_config().hidden_size
    save_file({"vector": torch.randn(size)}, vector)
    conditions = {
        "base": Base(),
        "lora": Lora(lora),
        "both": Prompt(text="up is down ") + Lora(lora),
        "steered": Steering(str(vector), layer=1),
    }
    return load(images, conditions, [QUERY])


def test_the_text_part_is_that_of_the_plain_model(images: str, lora: str, seeing: Subject) -> None:
    (query,) = encode([Query(QUERY)], seeing.tokenizer)
    for name, model in {
        "base": opened(images),
        "lora": PeftModel.from_pretrained(opened(images), lora).eval(),
    }.items():
        setting = seeing.settings[name]
        ids = torch.tensor([[*setting.prefix, *query.ids]])
        with torch.no_grad():
            expected = model(input_ids=ids).logits[:, -len(query.ids) :]
        found = seeing.run(setting, Batch.of([query]), seeing.prefill(setting))
        assert (found - expected).abs().max() < 1e-4
    assert max(seeing.parity.values()) < 1e-4


def test_its_context_is_that_of_its_text_part(seeing: Subject) -> None:
    assert seeing.context == GQA["max_position_embeddings"]


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="torchvision is installed")
def test_nothing_is_installed_for_it(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installer on the path says when it is started."""
    installer, started = tmp_path / "uv", tmp_path / "started"
    installer.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    installer.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    load(images, {"base": Base()}, [QUERY])
    assert not started.exists()
