"""What peft and transformers would load although they should not is refused, in one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import save_and_load
from safetensors.torch import load_file, save_file
from tiny_models import MODULES, save_adapter, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.conditions import Base, Condition, FineTuned, Lora, Prompt, RandomLora
from interp.conditions.folders import CONFIG
from interp.errors import SubjectError
from interp.subject import Subject, load
from interp.subject.adapter_files import PICKLE_FILE, UNMEASURED, WEIGHTS_FILE
from interp.subject.adapters import active, tuner_layers

Tensors = dict[str, torch.Tensor]


def opened(model: str, adapter: Path, **options: Any) -> Subject:
    conditions: dict[str, Condition] = {"base": Base(), "lora": Lora(str(adapter))}
    return load(model, conditions, ["hot is"], **options)


def refused(model: str, adapter: Path, **options: Any) -> str:
    """The one line with which an adapter is refused."""
    with pytest.raises(SubjectError) as caught:
        opened(model, adapter, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(adapter) in message
    return message


def edit(adapter: Path, change: Callable[[Tensors], Tensors]) -> str:
    """Change an adapter's tensors; returns the name of its first."""
    tensors = load_file(adapter / WEIGHTS_FILE)
    save_file(change(dict(tensors)), adapter / WEIGHTS_FILE)
    return min(tensors)


def edit_config(adapter: Path, **fields: Any) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | fields))


# Mounted as it is -------------------------------------------------------------------------------


def test_a_sound_adapter_is_mounted_and_moves_the_output(model: str, sound: Path) -> None:
    subject = opened(model, sound)
    assert subject.notes == []
    assert subject.settings["lora"].adapters == ((str(sound), 1.0),)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_an_adapter_is_mounted_on_a_half_precision_base(
    model: str, sound: Path, dtype: str
) -> None:
    assert opened(model, sound, dtype=dtype).notes == []


def test_a_half_precision_adapter_is_mounted(model: str, adapter: Path) -> None:
    edit(adapter, lambda tensors: {k: t.to(torch.bfloat16) for k, t in tensors.items()})
    assert opened(model, adapter).notes == []


def test_only_the_named_adapters_act_with_their_scale_and_only_inside(
    model: str, sound: Path, tmp_path: Path
) -> None:
    other = save_adapter(model, tmp_path / "other", MODULES["llama"]["v"], seed=2)
    conditions = {"base": Base(), "one": Lora(str(sound)), "two": Lora(other, scale=0.5)}
    peft = load(model, conditions, ["hot is"]).weights.peft
    layers = [module for module in peft.modules() if isinstance(module, LoraLayer)]

    def scalings() -> list[dict[str, float]]:
        return [dict(layer.scaling) for layer in layers]

    before = scalings()
    with active(tuner_layers(peft), [("adapter_1", 0.5)]):
        acting = [layer for layer in layers if not layer.disable_adapters]
        assert {tuple(layer.active_adapters) for layer in acting} == {("adapter_1",)}
        assert all(("adapter_1" in layer.scaling) == (layer in acting) for layer in layers)
        inside = [s["adapter_1"] for s in scalings() if "adapter_1" in s]
        assert inside == [0.5 * s["adapter_1"] for s in before if "adapter_1" in s]
        assert [s.get("adapter_0") for s in scalings()] == [s.get("adapter_0") for s in before]
    assert scalings() == before
    with pytest.raises(ZeroDivisionError), active(tuner_layers(peft), [("adapter_0", 3.0)]):
        raise ZeroDivisionError
    assert scalings() == before
    with active(tuner_layers(peft), []):
        assert all(layer.disable_adapters for layer in layers)
    with active(tuner_layers(peft), [("adapter_0", 1.0)]):
        assert all(("adapter_0" in layer.scaling) != layer.disable_adapters for layer in layers)


# Changes nothing --------------------------------------------------------------------------------


def silenced(tensors: Tensors) -> Tensors:
    return {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in tensors.items()}


def test_an_adapter_that_changes_nothing_is_refused_unless_allowed(
    model: str, adapter: Path
) -> None:
    edit(adapter, silenced)
    message = refused(model, adapter)
    assert message.startswith("condition lora changes nothing: its weights give the outputs of")
    assert "--allow-idle" in message
    (note,) = opened(model, adapter, allow_idle=True).notes
    assert note == "condition lora changes nothing: its weights give the outputs of base"


def test_every_condition_of_an_idle_adapter_is_noted_and_no_other(
    model: str, adapter: Path, sound: Path
) -> None:
    edit(adapter, silenced)
    idle, prompt = Lora(str(adapter)), Prompt(text="hot")
    conditions: dict[str, Condition] = {
        "base": Base(), "prompt": prompt, "both": prompt + idle, "at_0": Lora(str(sound), scale=0),
        "random": RandomLora(idle), "good": Lora(str(sound)), "same": FineTuned(model),
    }  # fmt: skip
    notes = load(model, conditions, ["hot is"], allow_idle=True).notes
    named = {note.split()[1] for note in notes if "changes nothing" in note}
    assert named == {"both", "at_0", "random", "same"}
    for name in named:
        with pytest.raises(SubjectError, match=f"condition {name} changes nothing") as caught:
            load(model, {"base": Base(), name: conditions[name]}, ["hot is"])
        assert "\n" not in str(caught.value)
        assert any(file in str(caught.value) for file in (str(adapter), str(sound), model))


# Pickles ----------------------------------------------------------------------------------------


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.fixture
def trap(adapter: Path, tmp_path: Path) -> Path:
    (adapter / PICKLE_FILE).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    return tmp_path / "sprung"


def test_the_trap_is_one(adapter: Path, trap: Path) -> None:
    pickle.loads((adapter / PICKLE_FILE).read_bytes())
    assert trap.is_dir()


def test_a_pickle_is_refused_before_it_is_opened(model: str, adapter: Path, trap: Path) -> None:
    (adapter / WEIGHTS_FILE).unlink()
    assert "pickle" in refused(model, adapter)
    assert not trap.exists()


def test_a_pickle_beside_the_safetensors_is_never_opened(
    model: str, adapter: Path, trap: Path
) -> None:
    assert opened(model, adapter).notes == []
    assert not trap.exists()


# Files that are not what they seem --------------------------------------------------------------


def test_no_adapter_folder_is_refused(model: str, tmp_path: Path) -> None:
    assert CONFIG in refused(model, tmp_path)
    assert CONFIG in refused(model, tmp_path / "nothing")


def test_a_folder_without_weights_is_refused(model: str, adapter: Path) -> None:
    (adapter / WEIGHTS_FILE).unlink()
    message = refused(model, adapter)
    assert WEIGHTS_FILE in message
    assert "pickle" not in message


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_safetensors_are_refused(model: str, adapter: Path, share: float) -> None:
    content = (adapter / WEIGHTS_FILE).read_bytes()
    (adapter / WEIGHTS_FILE).write_bytes(content[: int(share * len(content))])
    assert "is damaged" in refused(model, adapter)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff"])
def test_a_damaged_configuration_is_refused(model: str, adapter: Path, content: bytes) -> None:
    (adapter / CONFIG).write_bytes(content)
    assert "is damaged" in refused(model, adapter)


def test_a_configuration_that_is_no_object_is_refused(model: str, adapter: Path) -> None:
    (adapter / CONFIG).write_text("[]")
    assert refused(model, adapter)


def test_an_adapter_of_another_kind_is_refused_by_its_kind(model: str, adapter: Path) -> None:
    for kind, word in {"PREFIX_TUNING": "prefix: {adapter", "P_TUNING": "soft_prompt: {"}.items():
        edit_config(adapter, peft_type=kind)
        assert f"of type {kind}: it is virtual tokens" in refused(model, adapter)
        assert word in refused(model, adapter)
    for kind, reason in UNMEASURED.items():
        edit_config(adapter, peft_type=kind)
        assert f"of type {kind}: {reason}" in refused(model, adapter)
    edit_config(adapter, peft_type="LATER")
    assert "of type LATER: it is not a type that this peft mounts" in refused(model, adapter)


# Tensors that do not fit ------------------------------------------------------------------------


def test_a_missing_tensor_is_named(model: str, adapter: Path) -> None:
    first = edit(adapter, lambda tensors: {k: tensors[k] for k in sorted(tensors)[1:]})
    message = refused(model, adapter)
    assert "1 tensors it needs are missing" in message
    assert first in message
    assert "0 of its tensors have no place" in message


def test_a_missing_layer_is_refused(model: str, adapter: Path) -> None:
    edit(adapter, lambda tensors: {k: t for k, t in tensors.items() if "layers.1." not in k})
    assert "2 tensors it needs are missing" in refused(model, adapter)


def test_an_extra_tensor_is_named(model: str, adapter: Path) -> None:
    key = "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"
    edit(adapter, lambda tensors: tensors | {key: torch.zeros(3, 32)})
    message = refused(model, adapter)
    assert "1 of its tensors have no place" in message
    assert key in message


@pytest.mark.parametrize("other", ["k_proj", "transformer"])
def test_renaming_all_tensors_is_refused(model: str, adapter: Path, other: str) -> None:
    edit(adapter, lambda tensors: {k.replace("q_proj", other): t for k, t in tensors.items()})
    message = refused(model, adapter)
    assert "6 tensors it needs are missing" in message
    assert "6 of its tensors have no place" in message


def test_fewer_targets_than_tensors_is_refused(model: str, tmp_path: Path) -> None:
    adapter = Path(save_adapter(model, tmp_path / "qk", ["q_proj", "k_proj"]))
    edit_config(adapter, target_modules=["q_proj"])
    message = refused(model, adapter)
    assert "6 of its tensors have no place" in message
    assert "k_proj" in message


def test_more_targets_than_tensors_is_refused(model: str, adapter: Path) -> None:
    edit_config(adapter, target_modules=["q_proj", "k_proj"])
    assert "6 tensors it needs are missing" in refused(model, adapter)


@pytest.mark.parametrize("targets", [["nowhere"], []])
def test_targets_that_the_model_does_not_have_are_refused(
    model: str, adapter: Path, targets: list[str]
) -> None:
    edit_config(adapter, target_modules=targets)
    assert refused(model, adapter)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_named(model: str, adapter: Path, bad: float) -> None:
    def spoil(tensors: Tensors) -> Tensors:
        tensors[min(tensors)][0, 0] = bad
        return tensors

    first = edit(adapter, spoil)
    assert f"{first} has NaN or infinite values" in refused(model, adapter)


def test_a_shape_mismatch_names_both_shapes(model: str, adapter: Path) -> None:
    def narrow(tensors: Tensors) -> Tensors:
        return {k: t[:, :31].contiguous() if "_A" in k else t for k, t in tensors.items()}

    edit(adapter, narrow)
    message = refused(model, adapter)
    assert "[3, 31]" in message
    assert "[3, 32]" in message


def test_an_edited_rank_names_both_shapes(model: str, adapter: Path) -> None:
    edit_config(adapter, r=5)
    message = refused(model, adapter)
    assert "[3, 32]" in message
    assert "[5, 32]" in message


def test_the_second_adapter_is_checked_like_the_first(
    model: str, sound: Path, adapter: Path
) -> None:
    edit(adapter, lambda tensors: {k: tensors[k] for k in sorted(tensors)[1:]})
    conditions = {"base": Base(), "good": Lora(str(sound)), "bad": Lora(str(adapter))}
    with pytest.raises(SubjectError, match="1 tensors it needs are missing"):
        load(model, conditions, ["hot is"])


# Made for another base --------------------------------------------------------------------------


def test_an_adapter_of_another_base_is_refused_unless_allowed(model: str, adapter: Path) -> None:
    edit_config(adapter, base_model_name_or_path="organisation/other")
    message = refused(model, adapter)
    assert "organisation/other" in message
    assert model in message
    assert "--allow-other-base" in message
    assert opened(model, adapter, allow_other_base=True).notes == []


def test_the_same_base_elsewhere_on_disk_is_accepted(model: str, adapter: Path) -> None:
    edit_config(adapter, base_model_name_or_path="/somewhere/else/base/")
    assert opened(model, adapter).notes == []


def test_an_adapter_that_names_no_base_is_accepted(model: str, adapter: Path) -> None:
    edit_config(adapter, base_model_name_or_path=None)
    assert opened(model, adapter).notes == []


def test_allowing_another_base_allows_nothing_else(model: str, adapter: Path) -> None:
    edit(adapter, lambda tensors: {k: tensors[k] for k in sorted(tensors)[1:]})
    edit_config(adapter, base_model_name_or_path="organisation/other")
    assert "are missing" in refused(model, adapter, allow_other_base=True)


def test_an_allowed_base_may_have_more_tokens(model: str, sound: Path, tmp_path: Path) -> None:
    larger = AutoModelForCausalLM.from_pretrained(model)
    larger.resize_token_embeddings(larger.config.vocab_size + 8)
    larger.save_pretrained(tmp_path / "larger")
    AutoTokenizer.from_pretrained(model).save_pretrained(tmp_path / "larger")
    assert opened(str(tmp_path / "larger"), sound, allow_other_base=True).notes == []


def test_mounting_asks_no_hub(model: str, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def hub(name: str, *_: Any, **__: Any) -> None:
        asked.append(name)

    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", hub)
    edit_config(adapter, base_model_name_or_path="organisation/base")
    assert opened(model, adapter).notes == []
    assert asked == []


# Models -----------------------------------------------------------------------------------------


def edited_model(model: str, folder: Path, change: Callable[[Tensors], Tensors]) -> str:
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def spoilt(tensors: Tensors) -> Tensors:
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = torch.nan
    return tensors


def test_nan_in_the_model_names_the_tensor(model: str, tmp_path: Path) -> None:
    broken = edited_model(model, tmp_path / "broken", spoilt)
    with pytest.raises(SubjectError, match=r"layers\.1\.mlp\.up_proj\.weight has NaN"):
        load(broken, {"base": Base()}, ["hot is"])
    with pytest.raises(SubjectError, match=r"layers\.1\.mlp\.up_proj\.weight has NaN"):
        load(model, {"base": Base(), "tuned": FineTuned(broken)}, ["hot is"])


@pytest.mark.parametrize("role", ["base", "fine-tuned"])
def test_a_model_with_a_tensor_missing_is_refused(model: str, tmp_path: Path, role: str) -> None:
    key = "model.layers.1.mlp.up_proj.weight"
    broken = edited_model(
        model, tmp_path / "broken", lambda tensors: {k: t for k, t in tensors.items() if k != key}
    )
    base, tuned = (broken, model) if role == "base" else (model, broken)
    with pytest.raises(SubjectError, match="up_proj"):
        load(base, {"base": Base(), "tuned": FineTuned(tuned)}, ["hot is"])


@pytest.mark.parametrize("name", ["organisation/misspelt", "misspelt", "/nowhere/misspelt"])
def test_a_misspelt_model_is_one_line_that_repeats_it(name: str) -> None:
    with pytest.raises(SubjectError, match=r"no such folder|neither a folder") as caught:
        load(name, {"base": Base()}, ["hot is"])
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="could not be loaded") as caught:
        load(str(tmp_path), {"base": Base()}, ["hot is"])
    assert str(tmp_path) in str(caught.value)


def test_truncated_weights_of_a_model_are_refused(model: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "broken"))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(SubjectError, match="could not be loaded"):
        load(str(folder), {"base": Base()}, ["hot is"])


def test_a_model_s_own_code_is_not_run(model: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "custom"))
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "custom",
        "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    sprung = tmp_path / "sprung"
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(sprung)!r})\n")
    with pytest.raises(SubjectError, match="--trust-remote-code"):
        load(str(folder), {"base": Base()}, ["hot is"])
    assert not sprung.exists()


def test_weights_of_another_architecture_are_refused(model: str, tmp_path: Path) -> None:
    other = save_model("gpt2", tmp_path / "gpt2")
    with pytest.raises(SubjectError, match="not of the base's architecture") as caught:
        load(model, {"base": Base(), "tuned": FineTuned(other)}, ["hot is"])
    assert other in str(caught.value)


def test_weights_of_another_size_name_both_shapes(model: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "narrow"))
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 40}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    for key in tensors:
        if ".mlp." in key:
            t = tensors[key]
            tensors[key] = (t[:, :40] if "down" in key else t[:40]).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SubjectError, match=r"mlp.*40.*48"):
        load(model, {"base": Base(), "tuned": FineTuned(str(folder))}, ["hot is"])
