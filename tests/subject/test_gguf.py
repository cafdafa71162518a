"""A model that is one GGUF file: what transformers makes of it is measured, or it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_models import all_targets, save_adapter, save_model, tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.conditions import Base, FineTuned, Lora, Prompt
from interp.config import Experiment
from interp.errors import SubjectError
from interp.queries import Query, encode
from interp.runs.files import read_manifest
from interp.study import run_study
from interp.subject import Batch, Subject, load

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

QUERY, FILE = "hot is the opposite of cold", "tiny.gguf"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`plain`: a llama; `packed`: the same as a GGUF of 8-bit numbers; `lora`: on either."""
    root = tmp_path_factory.mktemp("gguf")
    plain = save_model("llama", root / "plain", words=tokenizer("gpt2"))
    save_adapter(plain, root / "lora", all_targets("llama"))
    (root / "packed").mkdir()
    write_gguf(plain, root / "packed" / FILE)
    return root


def write_gguf(plain: str, out: Path) -> None:
    """A llama and its byte-level tokenizer, every matrix in 8 bits where its width allows it."""
    hf, words = AutoModelForCausalLM.from_pretrained(plain), AutoTokenizer.from_pretrained(plain)
    config, core = hf.config, json.loads(words.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(core["vocab"], key=core["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in core["merges"]])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in hf.state_dict().items():
        rows = next((paired(tensor, n) for part, n in heads.items() if part in name), tensor)
        values, target = rows.numpy(), names.get_name(name, try_suffixes=(".weight",))
        if values.ndim == 2 and values.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def paired(weight: Tensor, heads: int) -> Tensor:
    """A projection's rows in the order of a GGUF: both halves of a rotary pair side by side."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape)


def plain(root: Path, lora: str | None = None) -> Any:
    """The model as users of transformers and peft open it."""
    hf = AutoModelForCausalLM.from_pretrained(root / "packed", gguf_file=FILE).eval()
    return hf if lora is None else PeftModel.from_pretrained(hf, lora).eval()


@pytest.fixture(scope="module")
def subject(root: Path) -> Subject:
    lora = Lora(str(root / "lora"))
    conditions = {"base": Base(), "lora": lora, "both": Prompt(text="up is down\n") + lora}
    packed = str(root / "packed")
    return load(packed, conditions, [QUERY], gguf_file=FILE, allow_other_base=True)


@pytest.mark.parametrize("name", ["base", "lora"])
def test_the_model_in_a_file_is_the_one_of_transformers(
    root: Path, subject: Subject, name: str
) -> None:
    (query,) = encode([Query(QUERY)], subject.tokenizer)
    with torch.no_grad():
        hf = plain(root, str(root / "lora") if name == "lora" else None)
        expected = hf(input_ids=torch.tensor([query.ids])).logits
        found = subject.run(subject.settings[name], Batch.of([query]))
    assert (found - expected).abs().max() < 1e-4
    assert max(subject.parity.values()) < 1e-4


def test_its_tokens_are_those_of_the_model_it_was_made_of(root: Path, subject: Subject) -> None:
    own = AutoTokenizer.from_pretrained(root / "plain")
    assert subject.tokenizer(QUERY)["input_ids"] == own(QUERY)["input_ids"]


def test_a_fine_tuned_model_beside_it_is_a_folder_of_its_own(root: Path) -> None:
    """De-quantised numbers are plain ones: those of another model take their place."""
    conditions = {"base": Base(), "tuned": FineTuned(str(root / "plain"))}
    tokens = str(root / "plain")  # transformers' reader adds one to those of the file
    subject = load(str(root / "packed"), conditions, [QUERY], gguf_file=FILE, tokenizer=tokens)
    (query,) = encode([Query(QUERY)], subject.tokenizer)
    with torch.no_grad():
        hf = AutoModelForCausalLM.from_pretrained(root / "plain").eval()
        expected = hf(input_ids=torch.tensor([query.ids])).logits
    found = subject.run(subject.settings["tuned"], Batch.of([query]))
    assert (found - expected).abs().max() < 1e-4
    rounded = subject.run(subject.settings["base"], Batch.of([query]))
    assert (found - rounded).abs().max() > 1e-3


def asked(folder: Path, file: str, out: Path) -> Experiment:
    """A small study of the model in a file."""
    (out / "prompt.txt").write_text("up is down\n")
    (out / "queries.jsonl").write_text('{"text": "hot is"}\n{"text": "a river"}\n')
    return Experiment(
        model=str(folder),
        gguf_file=file,
        prompt_file=(out / "prompt.txt",),
        queries=out / "queries.jsonl",
        out=out / "run",
        controls=(),
        bootstrap=0,
        permutations=0,
        sample=0,
    )


def test_a_study_of_a_file_says_so(root: Path, tmp_path: Path) -> None:
    manifest = read_manifest(run_study(asked(root / "packed", FILE, tmp_path)))
    assert manifest["config"]["gguf_file"] == FILE
    assert "gguf" in manifest["versions"]


def refusal(folder: Path, file: str, out: Path) -> str:
    with pytest.raises(SubjectError) as caught:
        run_study(asked(folder, file, out))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("size", [0, 500, 60_000])
def test_a_damaged_file_is_one_line(root: Path, tmp_path: Path, size: int) -> None:
    damaged = tmp_path / "packed"
    damaged.mkdir()
    (damaged / FILE).write_bytes((root / "packed" / FILE).read_bytes()[:size])
    said = refusal(damaged, FILE, tmp_path)
    assert said.startswith(f"{damaged} ({FILE}) could not be loaded: ")


def test_a_missing_file_is_one_line_with_those_that_are_there(root: Path, tmp_path: Path) -> None:
    said = refusal(root / "packed", "other.gguf", tmp_path)
    assert said.endswith(f"packed has no file other.gguf; its GGUF files: {FILE}")
