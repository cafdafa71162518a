"""Adapters and fine-tunes that bring another tokenizer are refused, unless it is the chosen one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import MODULES, save_adapter, save_model, save_prefix, save_soft_prompt
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from interp.conditions import (
    Base,
    Condition,
    FineTuned,
    Frame,
    Lora,
    Prefix,
    RandomLora,
    SoftPrompt,
)
from interp.conditions import Prompt as TextPrompt
from interp.errors import SubjectError
from interp.queries import Query, encode
from interp.subject import Batch, Subject, load
from interp.subject.tokenizers import difference, open_tokenizer

QUERY = "hot is the opposite"
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def words_of(model: str) -> Any:
    return AutoTokenizer.from_pretrained(model)


def opened(model: str, condition: Condition, **options: Any) -> Subject:
    return load(model, {"base": Base(), "it": condition}, [QUERY], **options)


def refused(model: str, condition: Condition, **options: Any) -> str:
    with pytest.raises(SubjectError) as caught:
        opened(model, condition, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit(folder: Path, file: str, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


# Other tokenizers --------------------------------------------------------------------------------


def added_token(words: Any) -> None:
    words.add_tokens(["<tool>", "<call>"])


def other_eos(words: Any) -> None:
    words.eos_token = "<unk>"


def template(words: Any) -> None:
    words.chat_template = TEMPLATE


CHANGES = {
    "token": (added_token, "token '<tool>' has id 400, not no id", "402 tokens"),
    "eos": (other_eos, "its eos_token is '<unk>', not '</s>'", "400 tokens"),
    "template": (template, "it has its own chat template", "400 tokens"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_tokenizer_is_named_with_both_sizes_and_what_differs(
    model: str, adapter: Path, change: str
) -> None:
    make, what, size = CHANGES[change]
    words = words_of(model)
    make(words)
    words.save_pretrained(adapter)
    message = refused(model, Lora(str(adapter)))
    assert message.startswith(f"{adapter} brings a tokenizer ({size}) other than that of {model}")
    assert "(400 tokens)" in message
    assert what in message
    assert f"--tokenizer {adapter}" in message


def test_swapped_ids_name_the_first(model: str, adapter: Path) -> None:
    words_of(model).save_pretrained(adapter)

    def swap(saved: dict[str, Any]) -> None:
        vocabulary = saved["model"]["vocab"]
        one, two = sorted(vocabulary, key=vocabulary.__getitem__)[300:302]
        vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]

    edit(adapter, "tokenizer.json", swap)
    message = refused(model, Lora(str(adapter)))
    assert "has id 300, not id 301" in message


def test_the_same_vocabulary_with_other_merges_is_another_tokenizer(
    model: str, adapter: Path
) -> None:
    words_of(model).save_pretrained(adapter)
    edit(adapter, "tokenizer.json", lambda saved: saved["model"]["merges"].pop())
    assert "splits" in refused(model, Lora(str(adapter)))


def test_a_tokenizer_that_marks_no_start_is_another(model: str, adapter: Path) -> None:
    words_of(model).save_pretrained(adapter)
    edit(adapter, "tokenizer.json", lambda saved: saved.update(post_processor=None))
    assert "splits '' in another way" in refused(model, Lora(str(adapter)))


def test_a_chat_template_alone_is_another_tokenizer(model: str, adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_text(TEMPLATE)
    message = refused(model, Lora(str(adapter)))
    assert "its own chat template" in message
    assert "a chat template alone" in message


@pytest.mark.parametrize("kind", ["random", "fine-tuned", "soft", "prefix", "composed"])
def test_every_kind_of_folder_is_compared(model: str, adapter: Path, kind: str) -> None:
    folder, words = adapter, words_of(model)
    kinds: dict[str, Callable[[], Condition]] = {
        "random": lambda: RandomLora(Lora(str(folder))),
        "fine-tuned": lambda: FineTuned(save_model("llama", folder, seed=7)),
        "soft": lambda: SoftPrompt(save_soft_prompt(model, folder)),
        "prefix": lambda: Prefix(save_prefix(model, folder)),
        "composed": lambda: TextPrompt(text="up") + Lora(str(folder)),
    }
    condition = kinds[kind]()
    added_token(words)
    words.save_pretrained(folder)
    assert str(folder) in refused(model, condition)


# False alarms ------------------------------------------------------------------------------------


def padding(words: Any) -> None:
    words.padding_side, words.pad_token = "left", words.eos_token


def own_padding(words: Any) -> None:
    words.add_special_tokens({"pad_token": "[PAD]"})


def length(words: Any) -> None:
    words.model_max_length = 128


def truncating(words: Any) -> None:
    padding(words)
    words("hot is", truncation=True, max_length=4, padding="max_length")


@pytest.mark.parametrize("change", [lambda _: None, padding, length, truncating])
def test_a_tokenizer_that_was_saved_again_is_the_same(
    model: str, adapter: Path, change: Callable[[Any], None]
) -> None:
    words = words_of(model)
    change(words)
    words.save_pretrained(adapter)
    assert opened(model, Lora(str(adapter))).notes == []


def test_a_padding_token_of_its_own_does_not_matter(model: str) -> None:
    own, other = words_of(model), words_of(model)
    own_padding(other)
    assert len(other) == len(own) + 1
    assert difference(own, other) is None
    assert difference(other, own) is None
    other.add_tokens([AddedToken("<tool>")])
    assert "'<tool>'" in str(difference(own, other))


@pytest.mark.parametrize("gone", [("tokenizer_class",), ("bos_token", "eos_token"), None])
def test_other_files_with_the_same_content_are_the_same(
    model: str, adapter: Path, gone: tuple[str, ...] | None
) -> None:
    words_of(model).save_pretrained(adapter)
    config = "tokenizer_config.json"
    if gone is None:
        (adapter / config).unlink()
    else:
        edit(adapter, config, lambda saved: [saved.pop(name) for name in gone] and None)
    assert opened(model, Lora(str(adapter))).notes == []


def test_the_class_and_the_form_of_the_merges_do_not_matter(model: str, adapter: Path) -> None:
    words_of(model).save_pretrained(adapter)

    def older(saved: dict[str, Any]) -> None:
        saved["model"]["merges"] = [" ".join(pair) for pair in saved["model"]["merges"]]

    edit(adapter, "tokenizer.json", older)
    name = PreTrainedTokenizerFast.__name__
    edit(adapter, "tokenizer_config.json", lambda saved: saved.update(tokenizer_class=name))
    assert opened(model, Lora(str(adapter))).notes == []


def test_rules_that_do_the_same_are_the_same(model: str) -> None:
    """Written otherwise, split alike: a normaliser that finds nothing to do."""
    own, other = words_of(model), words_of(model)
    saved = json.loads(other.backend_tokenizer.to_str())
    saved["normalizer"] = {"type": "Sequence", "normalizers": []}
    other._tokenizer = type(other.backend_tokenizer).from_str(json.dumps(saved))
    assert difference(own, other) is None


# The chosen tokenizer ----------------------------------------------------------------------------


def chat(model: str, adapter: Path) -> Path:
    """The adapter with a chat template, the one thing in which its tokenizer differs."""
    words = words_of(model)
    template(words)
    words.save_pretrained(adapter)
    return adapter


def test_the_chosen_tokenizer_is_used_in_every_condition(model: str, adapter: Path) -> None:
    chat(model, adapter)
    turns = (("user", "hot"), ("assistant", "cold"))
    messages = tuple({"role": role, "content": content} for role, content in turns)
    conditions: dict[str, Condition] = {
        "base": Base(), "lora": Lora(str(adapter)), "chat": TextPrompt(messages=messages),
    }  # fmt: skip
    frame = Frame(chat=True)
    subject = load(model, conditions, [QUERY], tokenizer=str(adapter), frame=frame)
    assert subject.tokenizer.chat_template == TEMPLATE
    text = "<user>hot<assistant>cold<user>"
    expected = words_of(model)(text, add_special_tokens=False)["input_ids"]
    assert list(subject.settings["chat"].prefix) == expected
    assert opened(model, Lora(str(adapter)), tokenizer=str(adapter)).notes == []


def test_the_others_are_compared_with_the_chosen_one(
    model: str, adapter: Path, tmp_path: Path
) -> None:
    chosen = chat(model, adapter)
    other = Path(save_adapter(model, tmp_path / "other", MODULES["llama"]["v"]))
    words_of(model).save_pretrained(other)  # without a template: it says nothing against it
    assert opened(model, Lora(str(other)), tokenizer=str(chosen)).notes == []
    (other / "chat_template.jinja").write_text("another")
    message = refused(model, Lora(str(other)), tokenizer=str(chosen))
    assert f"that of {chosen}" in message


def test_the_chosen_ids_are_the_ones_that_peft_is_given(tmp_path: Path) -> None:
    """A model whose embeddings have room, and an adapter trained with two tokens more."""
    model = save_model("llama", tmp_path / "model")
    roomy = AutoModelForCausalLM.from_pretrained(model)
    roomy.resize_token_embeddings(408)
    roomy.save_pretrained(model)
    adapter = Path(save_adapter(model, tmp_path / "lora", MODULES["llama"]["q"]))
    words = words_of(model)
    added_token(words)
    words.save_pretrained(adapter)
    query = "hot<tool>is"
    conditions = {"base": Base(), "it": Lora(str(adapter))}
    subject = load(model, conditions, [query], tokenizer=str(adapter))
    ids = words(query, return_tensors="pt")["input_ids"]
    assert 400 in ids
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
    with torch.no_grad():
        expected = peft(input_ids=ids).logits[:, 1:]
    setting = subject.settings["it"]
    batch = Batch.of(encode([Query(query)], subject.tokenizer))
    found = subject.run(setting, batch, subject.prefill(setting))
    assert (found - expected).abs().max() < 1e-4


def test_a_chosen_tokenizer_without_embeddings_is_one_line(model: str, adapter: Path) -> None:
    words = words_of(model)
    added_token(words)
    words.save_pretrained(adapter)
    message = refused(model, Base() + Lora(str(adapter)), tokenizer=str(adapter))
    assert "402 tokens" in message
    assert f"{model} embeds 400" in message
    assert "'<tool>'" in message


def test_a_misspelt_tokenizer_is_one_line(model: str) -> None:
    assert "nowhere" in refused(model, Base(), tokenizer="/nowhere")


def test_the_model_s_own_tokenizer_is_the_default(model: str) -> None:
    assert open_tokenizer(model).get_vocab() == words_of(model).get_vocab()


# Resized embeddings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
    ],
    ids=["saved embedding", "saved unembedding", "lora on embedding", "lora on unembedding"],
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_resized_embeddings_name_both_sizes(
    tmp_path: Path, architecture: str, options: dict[str, list[str]]
) -> None:
    """gpt2 and gemma2 tie embedding and unembedding."""
    model = save_model(architecture, tmp_path / "model")
    renamed = {"embed_tokens": "wte", "q_proj": "c_attn"} if architecture == "gpt2" else {}
    options = {key: [renamed.get(n, n) for n in names] for key, names in options.items()}
    larger = AutoModelForCausalLM.from_pretrained(model)
    rows = larger.config.vocab_size
    larger.resize_token_embeddings(rows + 2)
    config = LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=bool(renamed), **options)
    peft = get_peft_model(larger, config)
    peft.peft_config["default"].base_model_name_or_path = model
    peft.save_pretrained(tmp_path / "lora")
    message = refused(model, Lora(str(tmp_path / "lora")))
    assert str(tmp_path / "lora") in message
    assert f"{rows + 2} rows" in message
    assert f"has {rows}:" in message
