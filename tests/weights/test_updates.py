"""What a condition adds to every matrix is what peft merges into it, for every kind of adapter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_models
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM
from tuner_models import TUNERS, plain_peft, save_tuner

from interp.conditions import Base, Condition, FineTuned, Lora
from interp.errors import SubjectError
from interp.subject import Subject, load
from interp.weights.updates import Update, left_out, update_of, vectors, weight_matrices

ARCHITECTURES = ("gpt2", "llama", "neox", "phi3")
WILD = {**dict.fromkeys(ARCHITECTURES), "gpt2": ["c_attn", "c_proj"]}
"""Real layouts: a GPT-2 adapter names `c_proj` for attention and MLP at once."""
EMBEDDING = {"gpt2": "wte", "neox": "embed_in", "llama": "embed_tokens", "phi3": "embed_tokens"}
HEAD = {"neox": "embed_out"}
FIRST = {"gpt2": "c_attn", "neox": "query_key_value", "llama": "k_proj", "phi3": "gate_up_proj"}

Parameters = dict[str, np.ndarray]


class Case(NamedTuple):
    """A model with every kind of adapter, and the folder of each."""

    architecture: str
    model: str
    tuned: str
    folders: dict[str, str]
    subject: Subject


def options(architecture: str) -> dict[str, dict[str, Any]]:
    """Kind of adapter -> what its configuration has of its own."""
    biased = {"gpt2": ["c_attn"], "neox": ["query_key_value"]}
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "patterns": {
            "rank_pattern": {FIRST[architecture]: 2},
            "alpha_pattern": {FIRST[architecture]: 5},
        },
        "rslora": {"use_rslora": True},
        "dora": {"use_dora": True},
        "embedding": {"target_modules": [EMBEDDING[architecture], FIRST[architecture]]},
        "saved": {"modules_to_save": [HEAD.get(architecture, "lm_head")]},
    }
    if architecture in biased:
        kinds["bias"] = {"target_modules": biased[architecture], "lora_bias": True}
    return kinds


def save(model: str, folder: Path, architecture: str, seed: int, **own: Any) -> str:
    """A rank-8 adapter of a kind, all of its tensors random."""
    torch.manual_seed(seed)
    targets = WILD[architecture] or tiny_models.all_targets(architecture)
    settings = {"target_modules": targets, "r": 8, "lora_alpha": 12, **own}
    config = LoraConfig(fan_in_fan_out=architecture == "gpt2", task_type="CAUSAL_LM", **settings)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_magnitude" in name:
                parameter.mul_(0.5 + torch.rand_like(parameter))
            elif any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    peft.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Architecture -> its case, made once."""

    @functools.cache
    def make(architecture: str) -> Case:
        root = tmp_path_factory.mktemp(architecture)
        model = tiny_models.save_model(architecture, root / "model")
        tuned = tiny_models.save_model(architecture, root / "tuned", seed=5)
        folders = {
            kind: save(model, root / kind, architecture, seed, **own)
            for seed, (kind, own) in enumerate(options(architecture).items())
        }
        conditions: dict[str, Condition] = {
            "base": Base(),
            **{kind: Lora(folder) for kind, folder in folders.items()},
            "half": Lora(folders["plain"], scale=0.5),
            "half dora": Lora(folders["dora"], scale=0.5),
            "two": Lora(folders["plain"]) + Lora(folders["rslora"], scale=0.5),
            "tuned": FineTuned(tuned),
            "tuned dora": FineTuned(tuned) + Lora(folders["dora"]),
        }
        subject = load(model, conditions, ["up is the opposite of"], device="cpu")
        return Case(architecture, model, tuned, folders, subject)

    return make


def parameters(model: Any) -> Parameters:
    return {name: p.detach().numpy().copy() for name, p in model.named_parameters()}


def plain(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def merged(case: Case, folder: str, scale: float = 1.0, model: str = "") -> Parameters:
    """Every parameter after peft's own merge, in float64."""
    peft = PeftModel.from_pretrained(plain(model or case.model), folder)
    for module in peft.modules():
        if isinstance(module, LoraLayer):
            module.scaling = {name: scale * s for name, s in module.scaling.items()}
    return parameters(peft.merge_and_unload().double())


def added(case: Case, condition: str) -> Iterator[tuple[str, np.ndarray]]:
    """Parameter -> what the condition adds, as it is stored; only what it changes."""
    subject = case.subject
    setting = subject.settings[condition]
    for matrix in weight_matrices(subject).values():
        if (update := update_of(subject, setting, matrix)) is not None:
            stored = update.matrix.T if matrix.turned else update.matrix
            yield f"{matrix.module}.weight", stored.numpy()
    for name, (vector, _) in vectors(subject, setting).items():
        yield name, vector.numpy()


def expected(case: Case, after: Mapping[str, np.ndarray]) -> Parameters:
    """What differs from the model on disk. A head tied to the embedding is not a parameter until an
    adapter brings a copy of it."""
    before = parameters(plain(case.model))
    if case.architecture == "gpt2" and "lm_head.weight" in after:
        before["lm_head.weight"] = before["transformer.wte.weight"]
    both = {name: after[name] - before[name] for name in after}
    return {name: value for name, value in both.items() if value.any()}


def same(case: Case, condition: str, after: Mapping[str, np.ndarray]) -> None:
    found, wanted = dict(added(case, condition)), expected(case, after)
    assert set(found) == set(wanted)
    assert len(wanted) >= 2
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-9, err_msg=name)


KINDS = [(a, kind) for a in ARCHITECTURES for kind in options(a)]


@pytest.mark.parametrize(("architecture", "kind"), KINDS)
def test_an_update_is_what_peft_merges(
    cases: Callable[[str], Case], architecture: str, kind: str
) -> None:
    case = cases(architecture)
    same(case, kind, merged(case, case.folders[kind]))
    assert left_out(case.subject, case.subject.settings[kind]) == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("condition", "kind"), [("half", "plain"), ("half dora", "dora")])
def test_a_conditions_own_scale_is_in_it(
    cases: Callable[[str], Case], architecture: str, condition: str, kind: str
) -> None:
    case = cases(architecture)
    same(case, condition, merged(case, case.folders[kind], 0.5))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_adapters_and_other_weights_add_up(cases: Callable[[str], Case], architecture: str) -> None:
    case = cases(architecture)
    base = parameters(plain(case.model))
    one, other = (
        merged(case, case.folders[kind], scale) for kind, scale in (("plain", 1.0), ("rslora", 0.5))
    )
    same(case, "two", {name: one[name] + other[name] - base[name] for name in base})
    tuned = {
        "tuned": parameters(plain(case.tuned)),
        "tuned dora": merged(case, case.folders["dora"], model=case.tuned),
    }
    for condition, after in tuned.items():
        if architecture == "gpt2":  # a module of its own, since one of the adapters copies it
            after["lm_head.weight"] = after["transformer.wte.weight"]
        same(case, condition, after)


def alone(tmp_path: Path, kind: str, **own: Any) -> Case:
    """A model with one adapter; some kinds cannot be mounted beside others."""
    model = tiny_models.save_model("llama", tmp_path / "model")
    folder = save(model, tmp_path / kind, "llama", 3, **own)
    conditions = {"base": Base(), kind: Lora(folder)}
    subject = load(model, conditions, ["up is the opposite of"], device="cpu")
    return Case("llama", model, "", {kind: folder}, subject)


def test_rows_of_trained_tokens(tmp_path: Path) -> None:
    case = alone(tmp_path, "tokens", trainable_token_indices=[3, 7])
    same(case, "tokens", merged(case, case.folders["tokens"]))


def test_a_lora_that_adds_no_fixed_matrix_is_refused_by_name(tmp_path: Path) -> None:
    """An activated one acts after certain tokens only."""
    with pytest.raises(SubjectError, match=r"activated.*aLoRA|aLoRA.*activated"):
        alone(tmp_path, "activated", alora_invocation_tokens=[3])


# Adapters without two factors --------------------------------------------------------------------

OF_VECTORS = {"LN_TUNING"}
"""Types that change no matrix."""

NAMED = {
    "ADAMSS": "ADAMSS, which does not compute in float64",
    "BEFT": "a bias, where base has none",
}


def of_type(tmp_path: Path, kind: str) -> Case:
    model = tiny_models.save_model("llama", tmp_path / "model")
    folder = save_tuner(model, tmp_path / kind, kind)
    conditions: dict[str, Condition] = {"base": Base(), kind: Lora(folder)}
    subject = load(model, conditions, ["up is the opposite of"], device="cpu")
    return Case("llama", model, "", {kind: folder}, subject)


@pytest.mark.parametrize("kind", sorted(TUNERS.keys() - NAMED.keys() - {"LORA"}))
def test_an_adapter_of_any_type_is_what_peft_merges(tmp_path: Path, kind: str) -> None:
    case = of_type(tmp_path, kind)
    before = parameters(AutoModelForCausalLM.from_pretrained(case.model))
    after = parameters(plain_peft(case.model, case.folders[kind]).merge_and_unload())
    wanted = {name: after[name] - before[name] for name in before}
    wanted = {name: value for name, value in wanted.items() if np.abs(value).max() > 1e-6}
    found = dict(added(case, kind))
    assert found.keys() == wanted.keys()
    assert all(("norm" in name) == (kind in OF_VECTORS) for name in found)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-4, err_msg=name)
    assert left_out(case.subject, case.subject.settings[kind]) == {}


@pytest.mark.parametrize("kind", sorted(NAMED))
def test_an_adapter_that_is_no_matrix_of_base_is_named(tmp_path: Path, kind: str) -> None:
    case = of_type(tmp_path, kind)
    reasons = left_out(case.subject, case.subject.settings[kind])
    assert set(reasons.values()) == {NAMED[kind]}
    assert len(reasons) == 6
    assert dict(added(case, kind)) == {}


@pytest.mark.parametrize("kind", ["IA3", "BEFT"])
def test_a_changed_bias_is_what_peft_merges(tmp_path: Path, kind: str) -> None:
    model = tiny_models.save_model("gpt2", tmp_path / "model")
    options = {"target_modules": ["c_attn", "mlp.c_proj"], "fan_in_fan_out": True}
    if kind == "IA3":
        options["feedforward_modules"] = ["mlp.c_proj"]
    else:
        model = tiny_models.save_model("qwen2", tmp_path / "qwen2")
        options = {"target_modules": ["q_proj", "v_proj"]}
    folder = save_tuner(model, tmp_path / kind, kind, **options)
    conditions: dict[str, Condition] = {"base": Base(), kind: Lora(folder)}
    subject = load(model, conditions, ["up is the opposite of"], device="cpu")
    case = Case("other", model, "", {kind: folder}, subject)
    before = parameters(AutoModelForCausalLM.from_pretrained(model))
    after = parameters(plain_peft(model, folder).merge_and_unload())
    found = dict(added(case, kind))
    assert any(name.endswith(".bias") for name in found)
    for name, value in found.items():
        np.testing.assert_allclose(value, after[name] - before[name], atol=1e-5, err_msg=name)


def test_two_adapters_that_multiply_are_one_update(tmp_path: Path) -> None:
    model = tiny_models.save_model("llama", tmp_path / "model")
    one, two = (save_tuner(model, tmp_path / str(seed), "IA3", seed) for seed in (0, 1))
    both = Lora(one) + Lora(two)
    subject = load(model, {"base": Base(), "both": both}, ["up is"], device="cpu")
    case = Case("llama", model, "", {}, subject)
    before = parameters(AutoModelForCausalLM.from_pretrained(model))
    after = parameters(
        plain_peft(model, one, two).merge_and_unload(adapter_names=["adapter_0", "adapter_1"])
    )
    for name, value in added(case, "both"):
        np.testing.assert_allclose(value, after[name] - before[name], atol=1e-5, err_msg=name)


def test_an_update_has_no_more_directions_than_its_rank(tmp_path: Path) -> None:
    """A difference of matrices is rounded, which is no direction."""
    case = of_type(tmp_path, "VERA")
    matrix = weight_matrices(case.subject)["model.layers.0.self_attn.q_proj"]
    update = update_of(case.subject, case.subject.settings["VERA"], matrix)
    assert update is not None
    assert update.right is None
    assert len(update.directions.s) == 8


def test_a_matrix_that_is_targeted_as_a_parameter(tmp_path: Path) -> None:
    own = {"target_modules": ["q_proj"], "target_parameters": ["up_proj.weight"]}
    case = alone(tmp_path, "parameter", **own)
    same(case, "parameter", merged(case, case.folders["parameter"]))
    assert left_out(case.subject, case.subject.settings["parameter"]) == {}


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_a_lora_takes_out_of_base_is_in_its_update(tmp_path: Path, init: str) -> None:
    """Base's own weights change, and the sum is what peft merges."""
    case = alone(tmp_path, init, init_lora_weights=init)
    before = parameters(AutoModelForCausalLM.from_pretrained(case.model))
    after = parameters(plain_peft(case.model, case.folders[init]).merge_and_unload())
    found = dict(added(case, init))
    assert len(found) == 21
    for name, value in found.items():
        np.testing.assert_allclose(value, after[name] - before[name], atol=1e-4, err_msg=name)


def test_a_plain_lora_is_never_multiplied_out(cases: Callable[[str], Case]) -> None:
    subject = cases("llama").subject
    for condition in ("plain", "patterns", "two"):
        updates = [
            update_of(subject, subject.settings[condition], m)
            for m in weight_matrices(subject).values()
        ]
        factored = [update for update in updates if update is not None]
        assert factored
        assert all(update.right is not None for update in factored)


def test_directions_are_the_matrixs_own(cases: Callable[[str], Case]) -> None:
    subject = cases("llama").subject
    for condition, full in (("two", False), ("dora", True)):
        for matrix in weight_matrices(subject).values():
            update = update_of(subject, subject.settings[condition], matrix)
            if update is None:
                continue
            u, s, v = (x.numpy() for x in update.directions)
            wanted = np.linalg.svd(update.matrix.numpy(), compute_uv=False)
            np.testing.assert_allclose(s, wanted[: len(s)], rtol=1e-9)
            np.testing.assert_allclose((u * s) @ v, update.matrix.numpy(), atol=1e-9)
            assert (len(s) == len(wanted)) == full or len(wanted) <= 16


def test_a_silent_module_and_an_adapter_of_zeros_add_nothing(cases: Callable[[str], Case]) -> None:
    case = cases("llama")
    known, setting = weight_matrices(case.subject), case.subject.settings["plain"]
    module = next(m for m in known if m.endswith("q_proj"))
    assert update_of(case.subject, setting, known[module]) is not None
    assert update_of(case.subject.without([module]), setting, known[module]) is None
    assert update_of(case.subject, case.subject.settings["base"], known[module]) is None


def test_rounding_is_no_direction(cases: Callable[[str], Case]) -> None:
    """An adapter twice, once with its sign turned, is nothing; a rank that is not there is not
    listed."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(12, 2, dtype=torch.float64, generator=generator)
    right = torch.randn(2, 9, dtype=torch.float64, generator=generator)
    doubled = Update(torch.cat([left, left], 1), torch.cat([right, right]))
    assert len(doubled.directions.s) == 2
    assert len(Update(left @ right).directions.s) == 2
    assert Update(0 * left, right).directions.s.numel() == 0
