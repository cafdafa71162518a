"""The parity reference is what a user gets from peft, so that no kind of adapter is measured
as something that it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import (
    BdLoraConfig,
    KasaConfig,
    LoraGAConfig,
    MontecloraConfig,
    VeloraConfig,
)
from safetensors.torch import load_file, save_file
from tiny_models import MODULES, save_adapter, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM
from tuner_models import from_peft, save_tuner

from interp.conditions import Base, Condition, FineTuned, Lora, Prompt, RandomLora, SoftPrompt
from interp.conditions.folders import CONFIG
from interp.errors import ParityError, SubjectError
from interp.queries import Query, encode
from interp.subject import Batch, Subject, adapter_files, load, weights
from interp.subject.adapter_files import WEIGHTS_FILE
from interp.subject.adapters import active
from interp.subject.controls import random_like
from interp.subject.plain import parameter_fingerprints
from interp.validation.tiny import save_soft_prompt

QUERY = "hot is the opposite of cold"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("llama", tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def lora(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    return save_adapter(model, folder, MODULES["llama"]["q"])


def configured(model: str, folder: Path, **options: Any) -> str:
    """A LoRA folder of these options whose every tensor is random."""
    return save_tuner(model, folder, "LORA", **options)


def ids_of(subject: Subject, query: str = QUERY) -> Tensor:
    (encoded,) = encode([Query(query)], subject.tokenizer)
    return torch.tensor([[*subject.settings["base"].prefix, *encoded.ids]])


def measured(subject: Subject, name: str, query: str = QUERY) -> Tensor:
    setting = subject.settings[name]
    batch = Batch.of(encode([Query(query)], subject.tokenizer))
    return subject.run(setting, batch, subject.prefill(setting))


def same(subject: Subject, name: str, expected: Tensor) -> bool:
    found = measured(subject, name)
    return bool((found - expected[:, -found.shape[1] :]).abs().max() < 1e-4)


# Every kind of LoRA is measured as peft has it, or refused by its name ---------------------------


ALORA = {"alora_invocation_tokens": [7, 9]}

MEASURED: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "block diagonal": {
        "target_modules": ["q_proj"],
        "use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2),
    },
    "velora": {"velora_config": VeloraConfig(num_groups=4)},
    "monte carlo": {"monteclora_config": MontecloraConfig(num_samples=2, buffer_size=4)},
    "kasa": {"kasa_config": KasaConfig()},
    "mica": {"init_lora_weights": "mica"},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "eva": {"init_lora_weights": "eva"},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "unembedding saved whole": {"modules_to_save": ["lm_head"]},
    "trained tokens": {"trainable_token_indices": list(range(60, 400))},
    "with biases": {"lora_bias": True},
    "on parameters": {"target_modules": ["q_proj"], "target_parameters": ["up_proj.weight"]},
    "embedding and unembedding": {"target_modules": ["embed_tokens", "lm_head"]},
    "patterns": {"rank_pattern": {"up_proj": 2}, "alpha_pattern": {"q_proj": 20}},
}


@pytest.mark.parametrize("kind", MEASURED)
def test_a_kind_of_lora_is_measured_as_peft_has_it(model: str, tmp_path: Path, kind: str) -> None:
    folder = configured(model, tmp_path / "lora", **MEASURED[kind])
    subject = load(model, {"base": Base(), "lora": Lora(folder)}, [QUERY])
    expected = from_peft(model, ids_of(subject), folder)
    assert same(subject, "lora", expected)
    assert not same(subject, "base", expected)
    assert subject.notes == []


def refusal(
    model: str,
    condition: Condition,
    query: str = QUERY,
    dtype: str = "float32",
    **beside: Condition,
) -> str:
    with pytest.raises(SubjectError) as caught:
        load(model, {"base": Base(), **beside, "it": condition}, [query], dtype=dtype)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("option", "word"),
    [
        (ALORA, "aLoRA"),
        ({"arrow_config": {"top_k": 1}}, "Arrow router"),
        ({"layer_replication": [[0, 3], [1, 3]]}, "replicates layers"),
    ],
    ids=["alora", "arrow", "replication"],
)
def test_what_acts_outside_its_modules_is_refused_by_name(
    model: str, tmp_path: Path, option: dict[str, Any], word: str
) -> None:
    folder = configured(model, tmp_path / "lora")
    config = json.loads((Path(folder) / CONFIG).read_text())
    (Path(folder) / CONFIG).write_text(json.dumps(config | option))
    for condition in (Lora(folder), Prompt(text="up") + Lora(folder, scale=2)):
        message = refusal(model, condition)
        assert folder in message
        assert word in message
    assert word in refusal(model, RandomLora(Lora(folder)))


# Adapters that rewrite the model they sit on -----------------------------------------------------

REWRITING: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa with rslora": {"init_lora_weights": "pissa", "use_rslora": True},
    "olora": {"init_lora_weights": "olora"},
    "olora with dora": {"init_lora_weights": "olora", "use_dora": True},
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", REWRITING)
def test_an_adapter_that_rewrites_base_acts_on_what_it_wrote(
    model: str, lora: str, tmp_path: Path, kind: str, dtype: str
) -> None:
    """Beside a sound adapter, and together with it; base stays base, to the bit."""
    folder = configured(model, tmp_path / "lora", **REWRITING[kind])
    both = Lora(lora) + Lora(folder)
    conditions = {"base": Base(), "sound": Lora(lora), "it": Lora(folder), "both": both}
    subject = load(model, conditions, [QUERY], dtype=dtype)
    before = parameter_fingerprints(subject.bridge.original_model)
    if dtype == "float32":
        ids = ids_of(subject)
        assert same(subject, "it", from_peft(model, ids, folder))
        assert same(subject, "both", from_peft(model, ids, lora, folder))
        assert same(subject, "sound", from_peft(model, ids, lora))
    alone = load(model, {"base": Base()}, [QUERY], dtype=dtype)
    assert torch.equal(measured(subject, "base"), measured(alone, "base"))
    assert parameter_fingerprints(subject.bridge.original_model) == before


def test_without_its_modules_an_adapter_that_rewrites_base_is_base(
    model: str, tmp_path: Path
) -> None:
    folder = configured(model, tmp_path / "lora", init_lora_weights="pissa")
    subject = load(model, {"base": Base(), "it": Lora(folder)}, [QUERY])
    silent = subject.without(subject.weights.layers)
    assert torch.equal(measured(silent, "it"), measured(subject, "base"))


def test_trained_biases_of_base_are_measured(tmp_path: Path) -> None:
    gpt2 = save_model("gpt2", tmp_path / "gpt2")
    for bias in ("all", "lora_only"):
        options = {"target_modules": ["c_fc"], "fan_in_fan_out": True, "bias": bias}
        folder = configured(gpt2, tmp_path / bias, **options)
        subject = load(gpt2, {"base": Base(), "lora": Lora(folder)}, [QUERY])
        assert same(subject, "lora", from_peft(gpt2, ids_of(subject), folder))
        assert not same(subject, "base", from_peft(gpt2, ids_of(subject), folder))
        assert "has no scale" in refusal(gpt2, Lora(folder, scale=2))


def test_what_rewrites_base_is_refused_where_that_means_nothing(model: str, tmp_path: Path) -> None:
    one, two = (
        configured(model, tmp_path / init, init_lora_weights=init) for init in ("pissa", "olora")
    )
    assert "changes base's own weights" in refusal(model, Lora(one, scale=0.5))
    assert "both rewrite model.layers.0" in refusal(model, Lora(one) + Lora(two))
    assert "init_lora_weights=pissa" in refusal(model, RandomLora(Lora(one)))
    other = save_model("llama", tmp_path / "other", seed=1)
    assert f"{one} changes base's own weights" in refusal(model, FineTuned(other) + Lora(one))


@pytest.mark.parametrize(
    "options",
    [
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
    ],
    ids=["pissa_niter", "lora_ga"],
)
def test_a_start_that_is_lost_is_refused_by_name(
    model: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    """peft would load another adapter than the one that was trained, and say nothing."""
    folder = configured(model, tmp_path / "lora", **options)
    assert f"init_lora_weights={options['init_lora_weights']} " in refusal(model, Lora(folder))


def test_an_init_that_peft_cannot_load_is_one_line(model: str, tmp_path: Path) -> None:
    """LoftQ without bitsandbytes, which quantises base once more."""
    folder = configured(model, tmp_path / "lora")
    config = json.loads((Path(folder) / CONFIG).read_text())
    loftq = {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}
    (Path(folder) / CONFIG).write_text(json.dumps(config | loftq))
    assert f"adapter {folder} does not fit {model}: " in refusal(model, Lora(folder))


def test_a_kasa_beside_another_lora_is_one_line(model: str, lora: str, tmp_path: Path) -> None:
    folder = configured(model, tmp_path / "lora", kasa_config=KasaConfig())
    assert "KaSA cannot be combined" in refusal(model, Lora(folder), sound=Lora(lora))


def test_layers_that_are_replicated_are_one_line(model: str, tmp_path: Path) -> None:
    folder = configured(model, tmp_path / "lora", layer_replication=[[0, 2], [1, 3]])
    assert "it replicates layers" in refusal(model, Lora(folder))


def test_a_converted_pissa_is_measured(model: str, tmp_path: Path) -> None:
    """The way out that the refusal names: peft's own conversion to a plain LoRA."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa")
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    peft.peft_config["default"].init_lora_weights = True
    start, folder = str(tmp_path / "start"), str(tmp_path / "lora")
    peft.save_pretrained(start)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            parameter.add_(0.2 * torch.randn_like(parameter) * ("lora_B" in name))
    subject = load(model, {"base": Base()}, [QUERY])
    with torch.no_grad():
        expected = peft.eval()(input_ids=ids_of(subject)).logits
    peft.save_pretrained(folder, path_initial_model_for_weight_conversion=start)
    subject = load(model, {"base": Base(), "lora": Lora(folder)}, [QUERY])
    assert same(subject, "lora", expected)


@given(place=st.integers(0, 34), bit=st.integers(0, 31))
def test_a_fingerprint_sees_every_bit(place: int, bit: int) -> None:
    layer = torch.nn.Linear(7, 5, bias=False)
    layer.device = torch.device("cpu")
    before = parameter_fingerprints(layer)
    layer.weight.data.view(-1).view(torch.int32)[place] ^= 1 << bit if bit < 31 else -(1 << 31)
    assert parameter_fingerprints(layer) != before


def test_a_fingerprint_sees_order_and_signs() -> None:
    layer = torch.nn.Linear(2048, 1100, bias=False)  # more than one chunk
    layer.device = torch.device("cpu")
    weight = layer.weight.data.clone()
    before = parameter_fingerprints(layer)
    for change in (-weight, weight.flip(0), weight.flip(1), weight.roll(1, 0)):
        layer.weight.data = change.contiguous()
        assert parameter_fingerprints(layer) != before
    layer.weight.data = weight.clone()
    assert parameter_fingerprints(layer) == before


# An activated LoRA: its effect lives in PeftModel.forward ----------------------------------------


@pytest.fixture
def alora(model: str, tmp_path: Path) -> tuple[str, str]:
    """An aLoRA folder, and a query in which its invocation tokens stand."""
    subject = load(model, {"base": Base()}, [QUERY])
    invocation = ids_of(subject)[0, 3:5].tolist()
    folder = configured(model, tmp_path / "alora", alora_invocation_tokens=invocation)
    return folder, QUERY


def test_an_alora_moves_the_logits_of_peft_alone(model: str, alora: tuple[str, str]) -> None:
    """What made it a false zero: peft's model moves, the model within it does not."""
    folder, query = alora
    subject = load(model, {"base": Base()}, [query])
    ids = ids_of(subject, query)
    moved = from_peft(model, ids, folder)
    hf = AutoModelForCausalLM.from_pretrained(model).eval()
    with torch.no_grad():
        base = hf(ids).logits
        within = PeftModel.from_pretrained(hf, folder).eval().base_model.model(ids).logits
    assert torch.equal(within, base)
    assert (moved - base)[:, 3:].abs().max() > 1e-2
    assert torch.equal(moved[:, :3], base[:, :3])


def test_parity_itself_refuses_an_alora_and_names_it(
    model: str, alora: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the refusal by configuration: of a kind that nobody has thought of."""
    folder, query = alora
    monkeypatch.setattr(adapter_files, "REFUSED", {})
    for condition in (Lora(folder), Prompt(text="up is down") + Lora(folder)):
        message = refusal(model, condition, query)
        assert "parity failed" in message
        assert "condition it" in message
        assert folder in message


def test_parity_does_not_believe_the_subject_s_own_switch(
    model: str, lora: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def broken(layers: Any, names: Any, silent: Any = ()) -> Iterator[None]:
        with active(layers, [], silent):
            yield

    monkeypatch.setattr(weights, "active", broken)
    with pytest.raises(ParityError, match="condition it") as caught:
        load(model, {"base": Base(), "it": Lora(lora)}, [QUERY])
    assert lora in str(caught.value)


# Several adapters, scales, random ones -----------------------------------------------------------


def merged(model: str, *parts: tuple[str, float]) -> Any:
    """A plain model whose weights have the scaled updates added by hand, from the files alone."""
    hf = AutoModelForCausalLM.from_pretrained(model).eval()
    own = dict(hf.named_parameters())
    for folder, scale in parts:
        config = json.loads((Path(folder) / CONFIG).read_text())
        tensors = load_file(Path(folder) / WEIGHTS_FILE)
        for key in (key for key in tensors if "lora_A" in key):
            update = tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
            name = key.removeprefix("base_model.model.").replace("lora_A.", "")
            own[name].data += scale * config["lora_alpha"] / config["r"] * update
    return hf


@pytest.fixture(scope="module")
def several(model: str, lora: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, str]:
    root = tmp_path_factory.mktemp("several")
    other = save_adapter(model, root / "other", ["q_proj", "down_proj"], seed=5)
    conditions: dict[str, Condition] = {
        "base": Base(),
        "both": Lora(lora) + Lora(other),
        "scaled": Lora(lora, scale=0.5) + Lora(other, scale=-2),
        "twice": Lora(lora, scale=0.5) + Lora(lora, scale=0.25),
        "random": RandomLora(Lora(lora), seed=3, scale=0.5),
        "prompted": Prompt(text="up is down") + Lora(lora, scale=0.5) + Lora(other),
        "virtual": SoftPrompt(save_soft_prompt(model, root / "soft")) + Lora(lora),
    }
    return load(model, conditions, [QUERY]), other


@pytest.mark.parametrize("name", ["both", "scaled", "twice", "random"])
def test_compositions_are_the_updates_added_up(
    model: str, lora: str, several: tuple[Subject, str], tmp_path: Path, name: str
) -> None:
    subject, other = several
    drawn = tmp_path / "random"
    drawn.mkdir()
    (drawn / CONFIG).write_text((Path(lora) / CONFIG).read_text())
    save_file(random_like(load_file(Path(lora) / WEIGHTS_FILE), 3), drawn / WEIGHTS_FILE)
    parts: dict[str, Callable[[], Any]] = {
        "both": lambda: merged(model, (lora, 1), (other, 1)),
        "scaled": lambda: merged(model, (lora, 0.5), (other, -2)),
        "twice": lambda: merged(model, (lora, 0.75)),
        "random": lambda: merged(model, (str(drawn), 0.5)),
    }
    with torch.no_grad():
        expected = parts[name]()(ids_of(subject)).logits
    assert same(subject, name, expected)


def test_two_adapters_are_what_peft_makes_of_them(
    model: str, lora: str, several: tuple[Subject, str]
) -> None:
    subject, other = several
    assert same(subject, "both", from_peft(model, ids_of(subject), lora, other))


def test_every_composition_was_compared(several: tuple[Subject, str]) -> None:
    subject, _ = several
    assert subject.parity.keys() == subject.settings.keys()
    assert max(subject.parity.values()) < 1e-4


def test_two_adapters_that_peft_cannot_join_are_one_line(model: str, tmp_path: Path) -> None:
    one, two = (
        configured(model, tmp_path / name, modules_to_save=["lm_head"]) for name in ("one", "two")
    )
    message = refusal(model, Lora(one) + Lora(two))
    assert one in message
    assert two in message
