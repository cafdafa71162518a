"""What adapters and their bases are called: hub ids, subfolders, other machines, twins."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from tiny_models import save_prefix, save_soft_prompt

from interp.conditions import (
    CONFIG,
    Base,
    Condition,
    Lora,
    Prefix,
    Prompt,
    RandomLora,
    SoftPrompt,
    local_folder,
    located,
)
from interp.config import Experiment
from interp.errors import ConditionError, InterpError, SubjectError
from interp.subject import Subject, load
from interp.subject.adapter_files import PICKLE_FILE, WEIGHTS_FILE
from interp.subject.bases import BaseMatch, relation

QUERY = "hot is"
COMMIT, OLDER = "a1" * 20, "b2" * 20


@pytest.fixture
def hub(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub's cache with an adapter in two revisions; the older one's folder."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    for reference, commit in {"main": COMMIT, "v1": OLDER}.items():
        (repository / "refs" / reference).write_text(commit)
        shutil.copytree(sound, repository / "snapshots" / commit)
    shutil.copytree(sound, repository / "snapshots" / COMMIT / "checkpoint-5")
    return repository / "snapshots" / OLDER


def opened(model: str, condition: Condition, **options: Any) -> Subject:
    return load(model, {"base": Base(), "it": condition}, [QUERY], **options)


def refused(model: str, condition: Condition, **options: Any) -> str:
    with pytest.raises(InterpError) as caught:
        opened(model, condition, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_config(adapter: Path, **fields: Any) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | fields))


# Names of adapters ------------------------------------------------------------------------------


@pytest.mark.usefixtures("hub")
def test_a_hub_id_and_its_subfolder_and_revision_are_measured(model: str, hub: Path) -> None:
    newest = hub.parent / COMMIT
    subject = opened(model, Lora("org/name") + Lora("org/name:checkpoint-5"))
    folders = [folder for folder, _ in subject.settings["it"].adapters]
    assert folders == [str(newest), str(newest / "checkpoint-5")]
    older = opened(model, Lora("org/name"), adapter_revision="v1")
    assert older.settings["it"].adapters == ((str(hub), 1.0),)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("name", ["org/other", "org/name:nothing", "nowhere/lora"])
def test_what_is_not_on_the_hub_is_one_line(model: str, name: str) -> None:
    message = refused(model, Lora(name))
    assert name.partition(":")[2] in message
    assert "neither a folder nor in the cache" in message or f"it has no {CONFIG}" in message


@pytest.mark.usefixtures("hub")
def test_another_revision_is_one_line(model: str) -> None:
    message = refused(model, Lora("org/name"), adapter_revision="v9")
    assert "the cache does not have revision 'v9' of org/name" in message


def test_hub_ids_are_named_so_to_people(hub: Path) -> None:
    assert Lora(str(hub)).describe() == "LoRA org/name"
    assert (
        Lora(str(hub / "checkpoint-5"), scale=2).describe() == "LoRA org/name:checkpoint-5, scale 2"
    )
    assert Lora("runs/lora_0").describe() == "LoRA lora_0"
    edit_config(hub, peft_type="IA3")
    assert Lora(str(hub)).describe() == "IA3 org/name"


def test_names_are_located_wherever_they_stand(hub: Path) -> None:
    lora, found = Lora("org/name"), Lora(str(hub.parent / COMMIT))
    prompt = Prompt(pairs=(("hot", "cold"), ("up", "down")))
    assert located(prompt + RandomLora(lora) + lora) == prompt + RandomLora(found) + found
    assert located(SoftPrompt("org/name"), "v1") == SoftPrompt(str(hub))
    assert located(Prefix("org/name:checkpoint-5")).adapter.endswith("checkpoint-5")
    assert located(prompt) == prompt


def test_a_study_is_of_the_folder_that_a_hub_id_names(hub: Path, tmp_path: Path) -> None:
    fields = {"model": "m", "queries": tmp_path, "out": tmp_path, "adapter_revision": "v1"}
    yaml = {"twice": {"lora": {"adapter": "org/name", "scale": 2}}}
    built = Experiment(**fields, adapter=("org/name",), conditions=yaml).build()
    assert built["lora"] == Lora(str(hub))
    assert built["twice"] == Lora(str(hub), scale=2)
    assert built["random_lora"] == RandomLora(like=Lora(str(hub)))


def test_a_subfolder_of_a_folder_is_measured(model: str, adapter: Path) -> None:
    shutil.copytree(adapter, adapter / "checkpoint-500")
    subject = opened(model, Lora(f"{adapter}:checkpoint-500"))
    assert subject.settings["it"].adapters == ((str(adapter / "checkpoint-500"), 1.0),)


def test_existing_folders_are_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()
    assert local_folder(f"{tmp_path}/a:b") == f"{tmp_path}/a:b"
    for name in ("C:\\runs\\lora", "/nowhere/lora", "lora", "org/name:../other", ""):
        assert local_folder(name) == name


def test_a_trainer_s_folder_names_its_checkpoints(model: str, sound: Path, tmp_path: Path) -> None:
    for name in ("checkpoint-500", "checkpoint-1000", "final/policy"):
        shutil.copytree(sound, tmp_path / "run" / name)
    message = refused(model, Lora(str(tmp_path / "run")))
    assert f"it has no {CONFIG}; write {tmp_path / 'run'}:FOLDER for one of" in message
    for name in ("checkpoint-500", "checkpoint-1000", "final/policy"):
        assert name in message
        assert opened(model, Lora(f"{tmp_path / 'run'}:{name}")).notes == []


def test_a_pickle_in_a_checkpoint_is_refused(model: str, sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "run" / "checkpoint-5"))
    (folder / WEIGHTS_FILE).rename(folder / PICKLE_FILE)
    assert "pickle" in refused(model, Lora(f"{tmp_path / 'run'}:checkpoint-5"))


@pytest.mark.parametrize("kind", [SoftPrompt, Prefix])
def test_virtual_tokens_have_subfolders_too(model: str, tmp_path: Path, kind: Any) -> None:
    save = save_soft_prompt if kind is SoftPrompt else save_prefix
    save(model, tmp_path / "run" / "checkpoint-5")
    subject = opened(model, kind(f"{tmp_path / 'run'}:checkpoint-5"))
    assert subject.settings["it"].n_prefix == 4


# Names of bases ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trained_on", "base"),
    [
        ("org/model", "/data/model"),
        ("org/Model", "other/model"),
        ("C:\\Users\\me\\models\\model", "org/model"),
        ("C:/models/model/", "org/model"),
        ("/kaggle/input/model", "org/model"),
        ("unsloth/model-bnb-4bit", "org/model"),
        ("unsloth/model-unsloth-bnb-4bit", "org/model"),
        ("org/model-GPTQ-Int4", "org/model"),
        ("org/model-AWQ", "org/model"),
        ("unsloth/Meta-Llama-3.1-8B-bnb-4bit", "meta-llama/Llama-3.1-8B"),
        (f"/data/me/.cache/huggingface/hub/models--org--model/snapshots/{COMMIT}", "org/model"),
        ("org/model", f"/data/hub/models--org--model/snapshots/{COMMIT}/"),
    ],
)
def test_a_model_is_known_by_all_of_its_names(trained_on: str, base: str) -> None:
    assert relation(trained_on, base) is BaseMatch.SAME


@pytest.mark.parametrize(
    ("trained_on", "base", "is_"),
    [
        ("org/other", "org/model", BaseMatch.OTHER),
        ("org/model-Instruct", "org/model", BaseMatch.OTHER),
        ("gpt2", "gpt2-medium", BaseMatch.OTHER),
        (f"/hub/models--org--other/snapshots/{COMMIT}", "org/model", BaseMatch.OTHER),
        (".", "org/model", BaseMatch.UNKNOWN),
        ("./output", "org/model", BaseMatch.UNKNOWN),
        ("/workspace/merged", "org/model", BaseMatch.UNKNOWN),
        ("D:\\merged", "org/model", BaseMatch.UNKNOWN),
    ],
)
def test_other_names_are_others_and_folders_tell_nothing(
    trained_on: str, base: str, is_: BaseMatch
) -> None:
    assert relation(trained_on, base) is is_


def test_a_model_named_by_a_dot_has_its_folder_s_name(
    model: str, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_config(adapter, base_model_name_or_path="org/base")
    monkeypatch.chdir(model)
    assert opened(".", Lora(str(adapter))).notes == []


@pytest.mark.parametrize("trained_on", [".", "/workspace/merged", "C:\\merged"])
def test_a_base_that_tells_nothing_is_compared_by_shape_and_noted(
    model: str, adapter: Path, trained_on: str
) -> None:
    edit_config(adapter, base_model_name_or_path=trained_on)
    (note,) = opened(model, Lora(str(adapter))).notes
    assert note.startswith(f"adapter {adapter} was made for {trained_on}, which may be another")
    assert opened(model, Lora(str(adapter)), allow_other_base=True).notes == []
    tensors = load_file(adapter / WEIGHTS_FILE)
    wider = {k: torch.cat([t, t], 1) if "lora_A" in k else t for k, t in tensors.items()}
    save_file(wider, adapter / WEIGHTS_FILE)
    assert "[3, 64]" in refused(model, Lora(str(adapter)))


def test_a_base_that_is_here_is_compared_by_content(
    model: str, adapter: Path, tmp_path: Path
) -> None:
    twin = shutil.copytree(model, tmp_path / "twin")
    edit_config(adapter, base_model_name_or_path=str(twin))
    assert opened(model, Lora(str(adapter))).notes == []
    tensors = load_file(twin / "model.safetensors")
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, twin / "model.safetensors", metadata={"format": "pt"})
    message = refused(model, Lora(str(adapter)))
    assert f"was made for {twin}, not {model}" in message
    assert "--allow-other-base" in message
    assert opened(model, Lora(str(adapter)), allow_other_base=True).notes == []


# Number formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_tensors_are_read(model: str, adapter: Path, dtype: torch.dtype) -> None:
    tensors = {k: t.to(dtype) for k, t in load_file(adapter / WEIGHTS_FILE).items()}
    exact = Path(shutil.copytree(adapter, adapter.parent / "exact"))
    save_file({k: t.float() for k, t in tensors.items()}, exact / WEIGHTS_FILE)
    save_file(tensors, adapter / WEIGHTS_FILE)
    subject = load(
        model, {"base": Base(), "it": Lora(str(adapter)), "exact": Lora(str(exact)),
                "half": Lora(str(adapter), scale=0.5)}, [QUERY]
    )  # fmt: skip
    layer = next(iter(subject.weights.layers.values()))
    one, other = (layer.lora_A[subject.weights.adapters[str(f)]].weight for f in (adapter, exact))
    assert torch.equal(one, other)


def test_float8_that_is_not_finite_is_named(model: str, adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS_FILE)
    first = min(tensors)
    tensors[first] = torch.full_like(tensors[first], torch.nan).to(torch.float8_e5m2)
    save_file(tensors, adapter / WEIGHTS_FILE)
    with pytest.raises(SubjectError, match="has NaN or infinite values"):
        opened(model, Lora(str(adapter)))


def test_a_hub_id_that_cannot_be_fetched_is_a_condition_error() -> None:
    with pytest.raises(ConditionError, match="no adapter 'nobody/nothing'"):
        local_folder("nobody/nothing")
