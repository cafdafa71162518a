"""Every type of adapter that peft mounts is measured as plain peft has it, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from tiny_models import save_adapter, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM
from tuner_models import TARGETS, TUNERS, from_peft, greedy, plain_peft, save_tuner

from interp.conditions import Base, Condition, Lora, Prompt
from interp.errors import SubjectError
from interp.generating import generate
from interp.queries import Query, encode
from interp.subject import Batch, Subject, load
from interp.subject.adapter_files import ALPHAS, MOUNTED, UNMEASURED, VIRTUAL

QUERY = "hot is the opposite of cold"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("llama", tmp_path_factory.mktemp("models") / "base")


def opened(model: str, **conditions: Condition) -> Subject:
    return load(model, {"base": Base(), **conditions}, [QUERY])


def ids_of(subject: Subject) -> Tensor:
    (encoded,) = encode([Query(QUERY)], subject.tokenizer)
    return torch.tensor([[*subject.settings["base"].prefix, *encoded.ids]])


def measured(subject: Subject, name: str) -> Tensor:
    setting = subject.settings[name]
    batch = Batch.of(encode([Query(QUERY)], subject.tokenizer))
    return subject.run(setting, batch, subject.prefill(setting))


def difference(subject: Subject, name: str, expected: Tensor) -> float:
    found = measured(subject, name)
    return float((found - expected[:, -found.shape[1] :]).abs().max())


def refusal(model: str, condition: Condition) -> str:
    with pytest.raises(SubjectError) as caught:
        opened(model, it=condition)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_type_that_peft_has_is_known() -> None:
    """What a new peft brings is either tried here, or named as not measured."""
    assert TUNERS.keys() == MOUNTED
    kinds = {kind.value for kind in PEFT_TYPE_TO_TUNER_MAPPING}
    assert kinds == MOUNTED | UNMEASURED.keys() | VIRTUAL.keys()


@pytest.mark.parametrize("kind", TUNERS)
def test_a_type_is_measured_as_peft_has_it(model: str, tmp_path: Path, kind: str) -> None:
    """Logits, greedy tokens, and base to the bit before and after."""
    folder = save_tuner(model, tmp_path / "adapter", kind)
    subject, peft = opened(model, it=Lora(folder)), plain_peft(model, folder)
    ids = ids_of(subject)
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model).eval()(ids).logits
        expected = peft(input_ids=ids).logits
    off = measured(subject, "base")
    assert difference(subject, "it", expected) < 1e-4
    assert (expected - base).abs().max() > 1e-2
    assert difference(subject, "base", base) < 1e-4
    assert torch.equal(measured(subject, "base"), off)
    (written,) = generate(
        subject, subject.settings["it"], encode([Query(QUERY)], subject.tokenizer), 5
    )
    assert written == greedy(peft, ids)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("IA3", {"modules_to_save": ["lm_head"]}),
        ("LOHA", {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 20}}),
        ("OFT", {"coft": True}),
        ("MISS", {"init_weights": "bat"}),
        ("TINYLORA", {"save_projection": False}),
        ("VBLORA", {"save_only_topk_weights": True}),
        ("VERA", {"save_projection": False}),
    ],
)
def test_a_variant_of_a_type_is_measured_as_peft_has_it(
    model: str, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    folder = save_tuner(model, tmp_path / "adapter", kind, **options)
    subject = opened(model, it=Lora(folder))
    assert difference(subject, "it", from_peft(model, ids_of(subject), folder)) < 1e-4


@pytest.mark.parametrize("kind", ["FROD", "LN_TUNING", "LORA", "OFT"])
def test_a_type_is_measured_on_a_half_precision_base(model: str, tmp_path: Path, kind: str) -> None:
    """peft keeps some types in the number format of the model, which rounds the file."""
    folder = save_tuner(model, tmp_path / "adapter", kind)
    subject = load(model, {"base": Base(), "it": Lora(folder)}, [QUERY], dtype="bfloat16")
    assert subject.parity["it"] < 5e-2


def test_an_adapter_that_is_drawn_in_every_run_is_refused(model: str, tmp_path: Path) -> None:
    folder = save_tuner(model, tmp_path / "adapter", "PVERA", sample_at_inference=True)
    assert "it draws other weights in every run" in refusal(model, Lora(folder))


@pytest.mark.parametrize("norm", ["ln_1", "ln_2", "ln_f"])
@pytest.mark.parametrize("kind", ["LN_TUNING", "LORA"])
def test_an_adapted_norm_of_gpt2_is_live(tmp_path: Path, kind: str, norm: str) -> None:
    """Its bridge computes norms from base's own weight; a LoRA brings a whole copy of one."""
    gpt2 = save_model("gpt2", tmp_path / "gpt2")
    saved = {"target_modules": ["c_fc"], "modules_to_save": [norm], "fan_in_fan_out": True}
    options = {"target_modules": [norm]} if kind == "LN_TUNING" else saved
    folder = save_tuner(gpt2, tmp_path / "adapter", kind, **options)
    subject = opened(gpt2, it=Lora(folder))
    assert difference(subject, "it", from_peft(gpt2, ids_of(subject), folder)) < 1e-4


@pytest.mark.parametrize("kind", sorted(ALPHAS))
def test_a_scale_multiplies_the_update(model: str, tmp_path: Path, kind: str) -> None:
    """Update = merged weights minus base's, by plain peft; added twice as much by hand."""
    folder = save_tuner(model, tmp_path / "adapter", kind)
    subject = opened(model, it=Lora(folder), twice=Lora(folder, scale=2))
    if kind == "PEANUT":  # not a weight that could be merged and doubled by hand: parity alone
        assert subject.parity["twice"] < 1e-4
        return
    hf = AutoModelForCausalLM.from_pretrained(model).eval()
    whole = dict(plain_peft(model, folder).merge_and_unload().named_parameters())
    with torch.no_grad():
        for name, own in hf.named_parameters():
            own.add_(2 * (whole[name] - own))
        expected = hf(ids_of(subject)).logits
    assert difference(subject, "twice", expected) < 1e-3


@pytest.mark.parametrize("kind", sorted(MOUNTED - ALPHAS.keys()))
def test_a_type_without_a_scale_takes_none(model: str, tmp_path: Path, kind: str) -> None:
    folder = save_tuner(model, tmp_path / "adapter", kind)
    message = refusal(model, Prompt(text="up") + Lora(folder, scale=0.5))
    assert f"adapter {folder} is of type {kind}, which has no scale" in message


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ADAPTION_PROMPT", {"target_modules": None, "adapter_len": 4, "adapter_layers": 2}),
        ("LILY", {"r": 4}),
        ("POLY", {"r": 4}),
        ("SHADOW", {}),
    ],
)
def test_a_type_that_does_more_is_refused_by_name(
    model: str, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    folder = save_tuner(model, tmp_path / "adapter", kind, **options)
    message = refusal(model, Lora(folder))
    assert f"adapter {folder} is of type {kind}: {UNMEASURED[kind]}" in message


def test_two_types_on_one_model_are_one_line(model: str, tmp_path: Path) -> None:
    one = save_adapter(model, tmp_path / "lora", TARGETS)
    other = save_tuner(model, tmp_path / "ia3", "IA3")
    with pytest.raises(SubjectError, match="are of two types") as caught:
        opened(model, one=Lora(one), other=Lora(other))
    for word in (one, other, "LORA", "IA3"):
        assert word in str(caught.value)


def test_what_peft_cannot_run_together_is_one_line(model: str, tmp_path: Path) -> None:
    one, two = (save_tuner(model, tmp_path / name, "LN_TUNING") for name in ("one", "two"))
    message = refusal(model, Lora(one) + Lora(two))
    assert message.startswith(f"adapter {one} and {two} cannot act on {model}")


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "LOKR", "VERA", "FOURIERFT"])
def test_two_of_a_type_together_are_what_peft_makes_of_them(
    model: str, tmp_path: Path, kind: str
) -> None:
    one = save_tuner(model, tmp_path / "one", kind)
    two = save_tuner(model, tmp_path / "two", kind, seed=1)
    subject = opened(model, one=Lora(one), both=Lora(one) + Lora(two))
    ids = ids_of(subject)
    assert difference(subject, "both", from_peft(model, ids, one, two)) < 1e-4
    assert difference(subject, "one", from_peft(model, ids, one)) < 1e-4
