"""Soft prompts and prefixes do what peft does with them, on every architecture, and nothing else.

The reference is peft's own forward pass on the whole sequence; with a LoRA beside the virtual
tokens it is plain Hugging Face fed with what peft makes of the folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PeftModel, PromptEncoderConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_models import (
    CONFIGS,
    all_targets,
    save_adapter,
    save_model,
    save_prefix,
    save_soft_prompt,
    save_steering,
)
from torch import Tensor
from transformers import AutoModelForCausalLM
from tuner_models import save_cartridge

from interp.capture import chunk_size
from interp.conditions import (
    Base,
    Condition,
    FineTuned,
    Lora,
    Neutral,
    Prefix,
    Prompt,
    Setting,
    Shifted,
    SoftPrompt,
    Steering,
    Untrained,
    Virtual,
    simple_parts,
)
from interp.conditions.folders import CONFIG
from interp.errors import ConditionError, InterpError, SubjectError
from interp.heads import head_view
from interp.names import Head
from interp.queries import Encoded, Query, encode
from interp.subject import Batch, Subject, load, subject
from interp.subject.adapter_files import PICKLE_FILE, WEIGHTS_FILE
from interp.subject.insertions import Insertions
from interp.subject.loading import pretrained

CPU = torch.device("cpu")

QUERIES = ["hot is the opposite", "a river", "people walked along the road and talked"]
PROMPT = Prompt(text="up is the opposite of down")
LONG = 12
"""Virtual tokens beyond the sliding windows (8) of the tiny Mistral and Gemmas."""


class Case(NamedTuple):
    """One architecture under every condition that has virtual tokens."""

    model: str
    conditions: dict[str, Condition]
    subject: Subject
    queries: list[Encoded]

    def logits(self, name: str) -> Tensor:
        setting = self.subject.settings[name]
        batch = Batch.of(self.queries)
        return self.subject.run(setting, batch, self.subject.prefill(setting))


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp(request.param)
    model = save_model(request.param, root / "model")
    soft = SoftPrompt(save_soft_prompt(model, root / "soft"))
    prefix = Prefix(save_prefix(model, root / "prefix"))
    longer = Prefix(save_prefix(model, root / "longer", LONG, projection=True))
    lora = Lora(save_adapter(model, root / "lora", all_targets(request.param)))
    conditions: dict[str, Condition] = {
        "base": Base(),
        "prompt": PROMPT,
        "lora": lora,
        "soft": soft,
        "long_soft": SoftPrompt(save_soft_prompt(model, root / "long_soft", LONG)),
        "prefix": prefix,
        "long_prefix": longer,
        "prompt_soft": PROMPT + soft,
        "prompt_prefix": PROMPT + longer,
        "soft_lora": soft + lora,
        "prefix_lora": prefix + lora,
        "prompt_prefix_lora": PROMPT + prefix + lora,
        "soft_untrained": soft + Untrained(),
        "prefix_untrained": PROMPT + prefix + Untrained(),
    }
    subject = load(model, conditions, QUERIES[:2])
    return Case(model, conditions, subject, encode(map(Query, QUERIES), subject.tokenizer))


def folder_of(condition: Condition, kind: type) -> str | None:
    return next((part.adapter for part in simple_parts(condition) if isinstance(part, kind)), None)


def plain(case: Case, name: str) -> list[Tensor]:
    """Logits of every query row from whole sequences, by peft and transformers alone."""
    condition, hf = case.conditions[name], AutoModelForCausalLM.from_pretrained(case.model).eval()
    virtual = folder_of(condition, SoftPrompt | Prefix)  # type: ignore[arg-type]
    lora = folder_of(condition, Lora)
    text = case.subject.settings[name].prefix
    rows = []
    with torch.no_grad():
        peft = PeftModel.from_pretrained(hf, virtual)
        mounted = PeftModel.from_pretrained(hf, lora) if lora else None
        for query in case.queries:
            ids = torch.tensor([[*text, *query.ids]])
            if mounted is None:
                logits = peft(input_ids=ids).logits
            elif folder_of(condition, SoftPrompt):
                embedded = hf.get_input_embeddings()(ids)
                logits = mounted(inputs_embeds=torch.cat([peft.get_prompt(1), embedded], 1)).logits
            else:
                logits = mounted(input_ids=ids, past_key_values=peft.get_prompt(1)).logits
            rows.append(logits[0, -len(query.ids) :])
    return rows


def difference(case: Case, got: Tensor, rows: list[Tensor]) -> float:
    lengths = [len(query.ids) for query in case.queries]
    return max(float((a[:n] - b).abs().max()) for a, b, n in zip(got, rows, lengths, strict=True))


# What they compute ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["soft", "long_soft", "prefix", "long_prefix", "prompt_soft", "prompt_prefix",
     "soft_lora", "prefix_lora", "prompt_prefix_lora"],
)  # fmt: skip
def test_a_padded_batch_gives_peft_s_logits(case: Case, name: str) -> None:
    assert difference(case, case.logits(name), plain(case, name)) < 1e-4


@pytest.mark.parametrize("name", ["long_soft", "prompt_soft", "prompt_prefix", "prefix_lora"])
def test_pieces_of_what_precedes_give_them_too(
    case: Case, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Virtual embeddings are read in pieces with the prefix; virtual keys and values stand before
    the first piece."""
    monkeypatch.setattr(subject, "_SCORES", 1)
    monkeypatch.setattr(subject, "_PIECE", 3)
    assert difference(case, case.logits(name), plain(case, name)) < 1e-4


def test_every_condition_moves_the_outputs_and_none_those_of_another(case: Case) -> None:
    logits = {name: case.logits(name) for name in case.conditions}
    names = list(logits)
    for index, a in enumerate(names):
        for b in names[:index]:
            assert (logits[a] - logits[b]).abs().max() > 1e-2, (a, b)
    assert case.subject.notes == []


def test_the_base_is_what_it_is_alone(case: Case) -> None:
    alone = load(case.model, {"base": Base()}, QUERIES[:1])
    batch, base = Batch.of(case.queries), alone.settings["base"]
    assert torch.equal(alone.run(base, batch, alone.prefill(base)), case.logits("base"))


def test_a_cache_is_left_as_it_was(case: Case) -> None:
    for name in ("soft", "prefix", "prompt_prefix"):
        assert torch.equal(case.logits(name), case.logits(name))
        setting = case.subject.settings[name]
        cache = case.subject.prefill(setting)
        batch = Batch.of(case.queries)
        first = case.subject.run(setting, batch, cache)
        assert torch.equal(first, case.subject.run(setting, batch, cache))
        assert cache.get_seq_length() == setting.n_prefix


def test_virtual_tokens_count_as_positions(case: Case) -> None:
    settings = case.subject.settings
    start = len(settings["base"].prefix)
    assert settings["base"].n_prefix == start
    assert settings["soft"].n_prefix == settings["prefix"].n_prefix == start + 3
    assert settings["long_prefix"].n_prefix == start + LONG
    assert settings["prompt_soft"].n_prefix == settings["prompt"].n_prefix + 3


def test_reading_them_leaves_the_model_as_it_was(case: Case) -> None:
    hf = pretrained(case.model, "float32", {}, CPU)
    ids = torch.tensor([case.queries[0].ids])
    before = {name: p.clone() for name, p in hf.named_parameters()}
    config, modules = hf.config.to_dict(), [name for name, _ in hf.named_modules()]
    with torch.no_grad():
        expected = hf(ids).logits
    Insertions.read(case.subject.settings.values(), hf, case.model)
    with torch.no_grad():
        assert torch.equal(hf(ids).logits, expected)
    assert hf.config.to_dict() == config
    assert [name for name, _ in hf.named_modules()] == modules
    for name, parameter in hf.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad


# Other makes, number formats and compositions ---------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("llama", tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def soft(model: str, tmp_path: Path) -> Path:
    return Path(save_soft_prompt(model, tmp_path / "soft"))


@pytest.fixture
def prefix(model: str, tmp_path: Path) -> Path:
    return Path(save_prefix(model, tmp_path / "prefix"))


def logits_of(subject: Subject, name: str) -> Tensor:
    setting = subject.settings[name]
    batch = Batch.of(encode(map(Query, QUERIES), subject.tokenizer))
    return subject.run(setting, batch, subject.prefill(setting))


@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
def test_p_tuning_is_a_soft_prompt(model: str, tmp_path: Path, encoder: str) -> None:
    torch.manual_seed(0)
    config = PromptEncoderConfig(
        num_virtual_tokens=4,
        encoder_reparameterization_type=encoder,
        encoder_hidden_size=16,
        task_type="CAUSAL_LM",
    )
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).eval()
    peft.save_pretrained(tmp_path / "p")
    subject = load(model, {"base": Base(), "p": SoftPrompt(str(tmp_path / "p"))}, QUERIES[:1])
    (query,) = encode([Query(QUERIES[0])], subject.tokenizer)
    ids = torch.tensor([[*subject.settings["p"].prefix, *query.ids]])
    with torch.no_grad():
        expected = peft(input_ids=ids).logits[0, -len(query.ids) :]
    assert (logits_of(subject, "p")[0, : len(query.ids)] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_they_run_in_half_precision(model: str, soft: Path, prefix: Path, dtype: str) -> None:
    conditions = {"base": Base(), "soft": SoftPrompt(str(soft)), "prefix": Prefix(str(prefix))}
    assert load(model, conditions, QUERIES[:1], dtype=dtype).notes == []


def test_virtual_tokens_follow_the_fine_tuned_weights(
    model: str, soft: Path, prefix: Path, tmp_path: Path
) -> None:
    other = save_model("llama", tmp_path / "base", seed=5)
    tuned = FineTuned(other)
    conditions = {
        "base": Base(),
        "soft": SoftPrompt(str(soft)) + tuned,
        "prefix": PROMPT + Prefix(str(prefix)) + tuned,
    }
    there: dict[str, Condition] = {
        "soft": SoftPrompt(str(soft)),
        "prefix": PROMPT + Prefix(str(prefix)),
    }
    swapped, directly = load(model, conditions, QUERIES[:1]), load(other, there, QUERIES[:1])
    for name in there:
        assert torch.equal(logits_of(swapped, name), logits_of(directly, name))


def test_they_compose_with_shift_steering_and_a_lora_s_scale(
    model: str, soft: Path, prefix: Path, tmp_path: Path
) -> None:
    steering = Steering(save_steering(model, tmp_path / "v.safetensors"), layer=0)
    lora = Lora(save_adapter(model, tmp_path / "lora", ["q_proj", "embed_tokens"]), scale=0.5)
    rest = [Shifted(by=PROMPT), steering, lora]
    conditions: dict[str, Condition] = {"base": Base()}
    for name, virtual in {"soft": SoftPrompt(str(soft)), "prefix": Prefix(str(prefix))}.items():
        conditions |= {f"{name}_{i}": virtual + other for i, other in enumerate(rest)}
        conditions[f"{name}_all"] = PROMPT + virtual + rest[0] + rest[1] + rest[2]
    subject = load(model, conditions, QUERIES[:2])  # its parity test is the assertion
    assert subject.notes == []


def test_a_control_has_the_virtual_tokens_length(model: str, soft: Path) -> None:
    like = SoftPrompt(str(soft))
    conditions = {"base": Base(), "soft": like, "neutral": Neutral(like), "shifted": Shifted(like)}
    settings = load(model, conditions, QUERIES[:1]).settings
    assert settings["neutral"].n_prefix == settings["soft"].n_prefix
    shifted = settings["shifted"]
    assert shifted.n_prefix + shifted.shift == settings["soft"].n_prefix


# What else counts them --------------------------------------------------------------------------


def test_the_most_attended_virtual_tokens_are_named_by_number(model: str, prefix: Path) -> None:
    conditions = {"base": Base(), "prefix": PROMPT + Prefix(str(prefix))}
    subject = load(model, conditions, QUERIES[:1])
    queries = encode(map(Query, QUERIES), subject.tokenizer)
    view = head_view(subject, Head(0, 1), [("prefix", "base")], queries, batch_size=2)
    found = {row["position"]: row["token"] for row in view.attended
             if row["condition"] == "prefix" and row["where"] == "prefix"}  # fmt: skip
    text = [subject.tokenizer.decode([i]) for i in subject.settings["prefix"].prefix]
    names = ["<virtual 0>", "<virtual 1>", "<virtual 2>", *text]
    assert found
    assert found == {position: names[position] for position in found}
    assert any(position < 3 for position in found)


def test_memory_is_planned_for_virtual_tokens(model: str) -> None:
    subject = load(model, {"base": Base()}, QUERIES[:1])

    def size(setting: Setting) -> int:
        return chunk_size(replace(subject, settings={"it": setting}), 8, 1e8)

    virtual = Setting(virtual=Virtual("folder", 40, cached=True))
    assert size(virtual) == size(Setting(prefix=(3,) * 40)) < size(Setting())


# What is refused --------------------------------------------------------------------------------


def refused(model: str, condition: Condition, error: type[InterpError], **options: Any) -> str:
    with pytest.raises(error) as caught:
        load(model, {"base": Base(), "it": condition}, QUERIES[:1], **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def edit_config(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | fields))


def edit(folder: Path, change: Callable[[Tensor], Tensor]) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({k: change(t).contiguous() for k, t in tensors.items()}, folder / WEIGHTS_FILE)


@pytest.mark.parametrize("kind", [SoftPrompt, Prefix])
def test_a_missing_folder_is_named(model: str, tmp_path: Path, kind: Any) -> None:
    nowhere = str(tmp_path / "nowhere")
    assert f"{nowhere} is not a peft adapter" in refused(model, kind(nowhere), ConditionError)


def test_the_wrong_kind_of_adapter_is_named(model: str, soft: Path, prefix: Path) -> None:
    wrong = refused(model, SoftPrompt(str(prefix)), ConditionError)
    assert "is of type PREFIX_TUNING, not PROMPT_TUNING or P_TUNING" in wrong
    wrong = refused(model, Prefix(str(soft)), ConditionError)
    assert "is of type PROMPT_TUNING, not PREFIX_TUNING" in wrong


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_configuration_is_refused(model: str, soft: Path, content: bytes) -> None:
    (soft / CONFIG).write_bytes(content)
    assert "is damaged" in refused(model, SoftPrompt(str(soft)), ConditionError)


@pytest.mark.parametrize("length", [None, 0, -1, 2.5, "3", True])
def test_a_number_of_tokens_that_is_none_is_refused(model: str, soft: Path, length: Any) -> None:
    edit_config(soft, num_virtual_tokens=length)
    message = refused(model, SoftPrompt(str(soft)), ConditionError)
    assert f"num_virtual_tokens is {length!r}" in message


def test_two_at_a_time_are_refused_by_name(model: str, soft: Path, prefix: Path) -> None:
    message = refused(model, SoftPrompt(str(soft)) + Prefix(str(prefix)), ConditionError)
    assert f"{soft} and {prefix}" in message


def test_a_pickle_is_refused_and_not_opened(model: str, soft: Path) -> None:
    (soft / WEIGHTS_FILE).rename(soft / PICKLE_FILE)
    assert "pickle" in refused(model, SoftPrompt(str(soft)), SubjectError)


def test_truncated_tensors_are_refused(model: str, prefix: Path) -> None:
    content = (prefix / WEIGHTS_FILE).read_bytes()
    (prefix / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    assert "is damaged" in refused(model, Prefix(str(prefix)), SubjectError)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(
    model: str, soft: Path, prefix: Path, bad: float
) -> None:
    for folder, condition in ((soft, SoftPrompt(str(soft))), (prefix, Prefix(str(prefix)))):
        edit(folder, lambda tensor: tensor.index_fill(0, torch.tensor(1), bad))
        message = refused(model, condition, SubjectError)
        assert f"{folder}: prompt_embeddings has NaN or infinite values" in message


def test_another_base_is_refused_unless_allowed(model: str, soft: Path) -> None:
    edit_config(soft, base_model_name_or_path="organisation/other")
    condition = SoftPrompt(str(soft))
    assert "organisation/other" in refused(model, condition, SubjectError)
    allowed = load(model, {"base": Base(), "it": condition}, QUERIES[:1], allow_other_base=True)
    assert allowed.settings["it"].n_prefix == 4


def test_another_number_of_tokens_names_both_shapes(model: str, soft: Path, prefix: Path) -> None:
    for folder, condition, width in (
        (soft, SoftPrompt(str(soft)), 32),
        (prefix, Prefix(str(prefix)), 96),
    ):
        edit_config(folder, num_virtual_tokens=5)
        message = refused(model, condition, SubjectError)
        assert f"has shape (3, {width}), not (5, {width})" in message


def test_the_adapter_of_a_wider_model_names_both_shapes(model: str, soft: Path) -> None:
    edit(soft, lambda tensor: torch.cat([tensor, tensor], dim=1))
    message = refused(model, SoftPrompt(str(soft)), SubjectError)
    assert "has shape (3, 64), not (3, 32)" in message


def test_a_prefix_without_grouped_heads_does_not_fit_a_model_with_them(
    model: str, tmp_path: Path
) -> None:
    other = save_model("gpt2", tmp_path / "base")
    folder = save_prefix(other, tmp_path / "prefix")
    message = refused(model, Prefix(folder), SubjectError)
    assert "has shape (3, 192), not (3, 96)" in message


def test_keys_of_other_heads_are_refused(tmp_path: Path) -> None:
    model = save_model("gpt2", tmp_path / "model")
    prefix = Path(save_prefix(model, tmp_path / "prefix"))
    edit_config(prefix, num_attention_heads=2)
    message = refused(model, Prefix(str(prefix)), SubjectError)
    assert "GPT2LMHeadModel" in message
    assert "(heads, width) (2, 16), not (4, 8)" in message


def test_what_peft_cannot_do_names_the_architecture(model: str, prefix: Path) -> None:
    edit_config(prefix, num_layers=2)
    message = refused(model, Prefix(str(prefix)), SubjectError)
    assert "peft cannot" in message
    assert "LlamaForCausalLM" in message


def test_another_task_is_refused(model: str, soft: Path) -> None:
    edit_config(soft, task_type="SEQ_CLS")
    message = refused(model, SoftPrompt(str(soft)), SubjectError)
    assert "for the task SEQ_CLS, not CAUSAL_LM" in message


def test_an_adapter_that_names_no_task_is_accepted(model: str, soft: Path) -> None:
    edit_config(soft, task_type=None)
    assert load(model, {"base": Base(), "it": SoftPrompt(str(soft))}, QUERIES[:1]).notes == []


def test_other_tensors_are_refused_by_name(model: str, soft: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(soft, tmp_path / "copy"))
    tensors = load_file(copy / WEIGHTS_FILE)
    save_file(tensors | {"more": torch.zeros(2)}, copy / WEIGHTS_FILE)
    message = refused(model, SoftPrompt(str(copy)), SubjectError)
    assert "['more', 'prompt_embeddings']" in message


# A CARTRIDGE ------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_a_cartridge_is_a_prefix_as_peft_has_it(tmp_path: Path, architecture: str) -> None:
    model = save_model(architecture, tmp_path / "model")
    folder = save_cartridge(model, tmp_path / "cartridge")
    subject = load(model, {"base": Base(), "it": Prefix(folder)}, QUERIES[:2])
    (query,) = encode([Query(QUERIES[0])], subject.tokenizer)
    setting = subject.settings["it"]
    found = subject.run(setting, Batch.of([query]), subject.prefill(setting))
    ids = torch.tensor([[*setting.prefix, *query.ids]])
    hf = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        expected = PeftModel.from_pretrained(hf, folder)(input_ids=ids).logits
        base = hf(ids).logits
    assert (found - expected[:, -found.shape[1] :]).abs().max() < 1e-4
    assert (expected - base)[:, -found.shape[1] :].abs().max() > 1e-2
