"""Which tensors of a file are the adapter's and which are base's: experts, ties, vocabularies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import save_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from tuner_models import EXPERTS, from_peft, greedy, plain_peft, save_experts, save_tuner

from interp.conditions import Base, Condition, Lora
from interp.errors import SubjectError
from interp.generating import generate
from interp.queries import Query, encode
from interp.subject import Batch, Subject, load
from interp.subject.adapter_files import WEIGHTS_FILE

QUERY = "hot is the opposite of cold"


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_experts("mixtral", tmp_path_factory.mktemp("models") / "mixtral")


def opened(model: str, **conditions: Condition) -> Subject:
    return load(model, {"base": Base(), **conditions}, [QUERY])


def asked(subject: Subject) -> Any:
    return encode([Query(QUERY)], subject.tokenizer)


def ids_of(subject: Subject) -> Tensor:
    return torch.tensor([[*subject.settings["base"].prefix, *asked(subject)[0].ids]])


def measured(subject: Subject, name: str) -> Tensor:
    setting = subject.settings[name]
    return subject.run(setting, Batch.of(asked(subject)), subject.prefill(setting))


def same(subject: Subject, name: str, expected: Tensor) -> bool:
    found = measured(subject, name)
    return bool((found - expected[:, -found.shape[1] :]).abs().max() < 1e-4)


def check(model: str, folder: str) -> Subject:
    """An adapter is plain peft's in logits and greedy tokens, and base is base to the bit."""
    subject, peft = opened(model, it=Lora(folder)), plain_peft(model, folder)
    ids, off = ids_of(subject), measured(subject, "base")
    expected = from_peft(model, ids, folder)
    assert same(subject, "it", expected)
    assert not same(subject, "base", expected)
    assert torch.equal(measured(subject, "base"), off)
    assert torch.equal(off, measured(opened(model), "base"))
    (written,) = generate(subject, subject.settings["it"], asked(subject), 5)
    assert written == greedy(peft, ids)
    return subject


# Experts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", EXPERTS)
def test_a_lora_on_all_that_a_mixture_has_is_measured(tmp_path: Path, architecture: str) -> None:
    """`all-linear` puts two wrappers on the experts of a block, the one below the other."""
    model = save_experts(architecture, tmp_path / "model")
    folder = save_tuner(model, tmp_path / "lora", "LORA", target_modules="all-linear")
    assert any(
        ".experts.base_layer.lora_A.weight" in k for k in load_file(f"{folder}/{WEIGHTS_FILE}")
    )
    check(model, folder)


PARAMETERS = {"target_modules": [], "target_parameters": ["experts.gate_up_proj", "down_proj"]}


@pytest.fixture(scope="module")
def experts(mixtral: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapters") / "experts"
    return save_tuner(mixtral, folder, "LORA", **PARAMETERS)


def test_a_lora_on_two_parameters_of_a_module_is_measured(mixtral: str, experts: str) -> None:
    subject = check(mixtral, experts)
    assert "model.layers.0.mlp.experts.base_layer" in subject.weights.layers


def test_loras_on_experts_are_told_apart(mixtral: str, experts: str, tmp_path: Path) -> None:
    other = save_tuner(mixtral, tmp_path / "other", "LORA", seed=1, **PARAMETERS)
    half, both = Lora(experts, scale=0.5), Lora(experts) + Lora(other)
    subject = opened(mixtral, one=Lora(experts), other=Lora(other), half=half, both=both)
    ids = ids_of(subject)
    assert same(subject, "one", from_peft(mixtral, ids, experts))
    assert same(subject, "other", from_peft(mixtral, ids, other))
    assert same(subject, "both", from_peft(mixtral, ids, experts, other))
    hf = AutoModelForCausalLM.from_pretrained(mixtral).eval()
    whole = dict(plain_peft(mixtral, experts).merge_and_unload().named_parameters())
    with torch.no_grad():
        for name, own in hf.named_parameters():
            own.add_(0.5 * (whole[name] - own))
        assert same(subject, "half", hf(ids).logits)
    assert torch.equal(measured(subject.without(subject.weights.layers), "one"),
                       measured(subject, "base"))  # fmt: skip


# Ties -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """GPT-2's embedding and unembedding are one parameter."""
    return save_model("gpt2", tmp_path_factory.mktemp("models") / "gpt2")


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["wte"]},
        {"target_modules": ["wte", "lm_head"]},
        {"target_modules": ["c_fc"], "modules_to_save": ["lm_head"], "fan_in_fan_out": True},
        {"target_modules": ["c_fc"], "trainable_token_indices": list(range(360)),
         "fan_in_fan_out": True},
    ],
    ids=["head", "embedding", "both", "saved whole", "tokens"],
)  # fmt: skip
def test_a_lora_on_tied_embeddings_is_measured(
    tied: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    check(tied, save_tuner(tied, tmp_path / "lora", "LORA", **options))


def test_a_lora_that_peft_does_not_load_whole_is_refused(tied: str, tmp_path: Path) -> None:
    """`ensure_weight_tying` saves the unembedding's LoRA too, and peft finds no place for it."""
    options = {"target_modules": ["lm_head"], "ensure_weight_tying": True}
    folder = save_tuner(tied, tmp_path / "lora", "LORA", **options)
    with pytest.raises(SubjectError, match=r"have no place .*lm_head\.lora_A"):
        opened(tied, it=Lora(folder))


def test_tensors_of_another_base_are_named(tied: str, tmp_path: Path) -> None:
    folder = save_tuner(tied, tmp_path / "lora", "LORA", target_modules=["lm_head"])
    key = "base_model.model.lm_head.base_layer.weight"
    tensors = load_file(f"{folder}/{WEIGHTS_FILE}")
    tensors[key][3, 4] += 1
    save_file(tensors, f"{folder}/{WEIGHTS_FILE}")
    with pytest.raises(SubjectError, match="was trained on another base") as caught:
        opened(tied, it=Lora(folder))
    assert key in str(caught.value)
    assert folder in str(caught.value)


# Resized vocabularies ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("llama", tmp_path_factory.mktemp("models") / "base")


def save_resized(model: str, folder: Path, **options: Any) -> str:
    """A LoRA whose model got eight tokens more before it was trained, as trainers do it."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_pretrained(model)
    hf.resize_token_embeddings(hf.config.vocab_size + 8)
    options = {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options
    peft = get_peft_model(hf, LoraConfig(r=4, init_lora_weights=False, **options))
    peft.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["saved along", "head", "both", "embedding", "saved whole"],
)
def test_a_resized_vocabulary_names_both_sizes_and_what_to_do(
    small: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = save_resized(small, tmp_path / "lora", **options)
    with pytest.raises(SubjectError, match=r"has 408 rows in .* has 400") as caught:
        opened(small, it=Lora(folder))
    assert "\n" not in str(caught.value)
    assert "save the model with its embeddings resized" in str(caught.value)
    assert folder in str(caught.value)


@pytest.mark.parametrize("tokens", [[5, 407], {"embed_tokens": [407]}])
def test_trained_tokens_that_the_model_has_not_are_named(
    small: str, tmp_path: Path, tokens: Any
) -> None:
    folder = save_resized(small, tmp_path / "lora", trainable_token_indices=tokens)
    with pytest.raises(SubjectError, match=r"trains token 407, .* has 400 rows"):
        opened(small, it=Lora(folder))


@pytest.mark.parametrize("same_rows", [True, False], ids=["the same rows", "rows of its own"])
def test_embeddings_saved_along_are_put_in_while_the_adapter_acts(
    small: str, tmp_path: Path, same_rows: bool
) -> None:
    """On a model of that size: peft writes them into base, which here stays base."""
    torch.manual_seed(0)
    larger = AutoModelForCausalLM.from_pretrained(small)
    larger.resize_token_embeddings(larger.config.vocab_size + 8)
    if not same_rows:
        larger.get_output_embeddings().weight.data.mul_(1.1)
    larger.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(small).save_pretrained(tmp_path / "base")
    folder, model = save_resized(small, tmp_path / "lora"), str(tmp_path / "base")
    subject = check(model, folder)
    assert bool(subject.weights.rewritten[folder]) != same_rows
