"""A quantised model is measured as transformers and peft have it, or it is refused in one line."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tiny_models import all_targets, save_adapter, save_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from interp.conditions import Base, Condition, FineTuned, Lora, Prompt, Untrained
from interp.config import Experiment
from interp.errors import SubjectError
from interp.queries import Query, encode
from interp.runs.files import read_manifest
from interp.study import run_study
from interp.subject import Batch, Subject, load
from interp.subject.plain import parameter_fingerprints
from interp.subject.quantization import package_for, rounded
from interp.weights.updates import weight_matrices

QUERY = "hot is the opposite of cold"
NARROW = 16
"""Weights that share a scale: what divides both widths of a tiny model, 32 and 48."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name in ("llama", "phi3"):
        save_model(name, root / name)
        save_adapter(str(root / name), root / f"{name}-lora", all_targets(name))
    return root


def refusal(model: Path, *others: Condition, **options: Any) -> str:
    conditions = {"base": Base(), **{str(i): other for i, other in enumerate(others)}}
    with pytest.raises(SubjectError) as caught:
        load(str(model), conditions, [QUERY], **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Rounded as it is loaded -------------------------------------------------------------------------

torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")


def plain(folder: Path, bits: str, dtype: torch.dtype = torch.float32) -> Any:
    """A quantised model as users of transformers open it."""
    from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup
    from transformers import TorchAoConfig

    four = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(NARROW))
    config = TorchAoConfig(Int8WeightOnlyConfig() if bits == "int8" else four)
    return AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=dtype, device_map="cpu"
    ).eval()


@pytest.fixture(scope="module", params=["llama int8", "llama int4", "phi3 int8"])
def packed(request: pytest.FixtureRequest, root: Path) -> tuple[Subject, Path, str]:
    """phi3: projections that are fused, which TransformerBridge would cut copies out of."""
    name, bits = request.param.split()
    lora = Lora(str(root / f"{name}-lora"))
    conditions = {"base": Base(), "lora": lora, "both": Prompt(text="up is down\n") + lora}
    subject = load(str(root / name), conditions, [QUERY], quantization=bits)
    return subject, root / name, bits


@torchao
@pytest.mark.parametrize("name", ["base", "lora"])
def test_a_quantised_model_is_the_one_of_transformers_and_peft(
    packed: tuple[Subject, Path, str], name: str
) -> None:
    subject, folder, bits = packed
    (query,) = encode([Query(QUERY)], subject.tokenizer)
    setting = subject.settings[name]
    hf = plain(folder, bits)
    with torch.no_grad():
        if name == "lora":
            hf = PeftModel.from_pretrained(hf, f"{folder}-lora").eval()
        expected = hf(torch.tensor([[*setting.prefix, *query.ids]])).logits[:, -len(query.ids) :]
    found = subject.run(setting, Batch.of([query]), subject.prefill(setting))
    assert (found - expected).abs().max() < 1e-4
    assert max(subject.parity.values()) < 1e-4


@torchao
def test_it_is_rounded(packed: tuple[Subject, Path, str]) -> None:
    subject, folder, _ = packed
    (query,) = encode([Query(QUERY)], subject.tokenizer)
    setting = subject.settings["base"]
    whole = load(str(folder), {"base": Base()}, [QUERY])
    found, exact = (
        one.run(setting, Batch.of([query]), one.prefill(setting)) for one in (subject, whole)
    )
    assert (found - exact).abs().max() > 1e-3


@torchao
def test_its_matrices_are_the_numbers_that_it_computes_with(
    packed: tuple[Subject, Path, str],
) -> None:
    subject, folder, bits = packed
    own = dict(plain(folder, bits).named_modules())
    every = {name: m for name, m in weight_matrices(subject).items() if rounded(m.parameter)}
    assert every.keys() == {n for n, m in own.items() if n.endswith("proj")}
    for name, matrix in every.items():
        through = own[name](torch.eye(own[name].in_features)).T
        assert torch.allclose(matrix.weight, through, atol=1e-5)


@torchao
def test_a_fingerprint_sees_packed_numbers_and_their_scales(root: Path) -> None:
    hf = plain(root / "llama", "int8")
    before = parameter_fingerprints(hf)
    weight = hf.model.layers[1].mlp.up_proj.weight
    for part in (weight.qdata, weight.scale):
        part.view(-1)[3] += 1
        changed = {
            name for name, value in parameter_fingerprints(hf).items() if value != before[name]
        }
        assert changed == {"model.layers.1.mlp.up_proj.weight"}
        part.view(-1)[3] -= 1


@torchao
def test_a_half_precision_model_is_quantised_within_its_bound(root: Path) -> None:
    conditions = {"base": Base(), "lora": Lora(str(root / "llama-lora"))}
    subject = load(str(root / "llama"), conditions, [QUERY], quantization="int8", dtype="bfloat16")
    assert subject.dtype == torch.bfloat16
    assert 0 <= max(subject.parity.values()) < 5e-2


@torchao
def test_layers_that_nobody_can_quantise_are_one_line(tmp_path: Path) -> None:
    model = save_model("gpt2", tmp_path / "gpt2")
    said = refusal(Path(model), quantization="int8")
    assert said == f"{model} has no layer that torchao can quantise"


@torchao
@pytest.mark.parametrize("other", ["fine-tuned", "untrained"])
def test_other_weights_beside_packed_ones_are_one_line(root: Path, other: str) -> None:
    tuned = FineTuned(str(root / "llama")) if other == "fine-tuned" else Untrained()
    said = refusal(root / "llama", tuned, quantization="int8")
    assert said.startswith("other weights cannot take the place of quantised ones")


@torchao
def test_a_study_says_how_its_model_is_quantised(root: Path, tmp_path: Path) -> None:
    """Its battery of controls has no untrained weights, which cannot take the place of packed
    ones."""
    (tmp_path / "prompt.txt").write_text("up is down")
    (tmp_path / "queries.jsonl").write_text('{"text": "hot is"}\n{"text": "a river"}\n')
    experiment = Experiment(
        model=str(root / "llama"),
        adapter=(str(root / "llama-lora"),),
        prompt_file=(tmp_path / "prompt.txt",),
        queries=tmp_path / "queries.jsonl",
        out=tmp_path / "run",
        controls=("untrained", "shifted"),
        separator=" ",
        quantization="int8",
        bootstrap=0,
        permutations=0,
        sample=0,
    )
    manifest = read_manifest(run_study(experiment))
    assert manifest["config"]["quantization"] == "int8"
    assert "torchao" in manifest["versions"]
    assert manifest["model"]["quantization"] == "int8"
    assert set(manifest["conditions"]) == {"base", "prompt", "lora", "shifted"}


# Saved quantised ---------------------------------------------------------------------------------


@torchao
def test_a_model_that_was_saved_quantised_is_measured(root: Path, tmp_path: Path) -> None:
    hf = plain(root / "llama", "int8")
    hf.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(root / "llama").save_pretrained(tmp_path)
    lora = Lora(str(root / "llama-lora"))
    subject = load(str(tmp_path), {"base": Base(), "lora": lora}, [QUERY], allow_other_base=True)
    (query,) = encode([Query(QUERY)], subject.tokenizer)
    setting = subject.settings["base"]
    found = subject.run(setting, Batch.of([query]), subject.prefill(setting))
    with torch.no_grad():
        expected = hf(torch.tensor([[*setting.prefix, *query.ids]])).logits[:, -len(query.ids) :]
    assert (found - expected).abs().max() < 1e-4
    said = refusal(tmp_path, quantization="int8")
    assert said.endswith("is quantised by torchao already: leave --quantization away")


def saved_by(root: Path, method: dict[str, Any], folder: Path) -> Path:
    """A folder whose configuration says that its weights are quantised so."""
    AutoTokenizer.from_pretrained(root / "llama").save_pretrained(folder)
    config = AutoConfig.from_pretrained(root / "llama").to_dict()
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": method}))
    return folder


NEEDS = {
    "gptq": "optimum",
    "awq": "gptqmodel",
    "compressed-tensors": "compressed_tensors",
    "hqq": "hqq",
    "aqlm": "aqlm",
}
"""Method -> the package that transformers reads it with."""


@pytest.mark.parametrize("method", NEEDS)
def test_a_method_whose_package_is_missing_is_named(
    root: Path, tmp_path: Path, method: str
) -> None:
    if find_spec(NEEDS[method]):
        pytest.skip(f"{NEEDS[method]} is installed")
    fields = {"quant_method": method, "bits": 4, "group_size": 16, "quant_config": {}}
    model = saved_by(root, fields, tmp_path)
    assert refusal(model).startswith(f"{model} (quantised by {method}) could not be loaded: ")


@pytest.mark.parametrize("method", ["some_new_method", None])
def test_a_method_that_nobody_knows_is_one_line(
    root: Path, tmp_path: Path, method: str | None
) -> None:
    fields = {"bits": 4} | ({"quant_method": method} if method else {})
    said = refusal(saved_by(root, fields, tmp_path))
    shown = method or "an unnamed method"
    assert said == f"{tmp_path} is quantised by {shown}, which transformers cannot read"


# What is missing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_package_that_rounds_is_there_or_named_in_one_line(device: str, bits: str) -> None:
    package = "bitsandbytes" if (bits, device) == ("int4", "cuda") else "torchao"
    if find_spec(package):
        assert package_for(bits, torch.device(device)) == package
        return
    with pytest.raises(SubjectError, match=f"needs {package}: pip install {package}$"):
        package_for(bits, torch.device(device))


def test_another_device_cannot_round() -> None:
    with pytest.raises(SubjectError, match="on cpu or cuda, not on mps"):
        package_for("int8", torch.device("mps"))


def test_bitsandbytes_is_not_measured_on_a_cpu(root: Path, tmp_path: Path) -> None:
    fields = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    said = refusal(saved_by(root, fields, tmp_path), device="cpu")
    assert said.endswith("is quantised by bitsandbytes, which is measured on a GPU alone")


def test_a_gguf_file_is_not_rounded_again(root: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    (tmp_path / "it.gguf").write_bytes(b"")
    tokens = str(root / "llama")
    said = refusal(tmp_path, gguf_file="it.gguf", tokenizer=tokens, quantization="int8")
    assert said == "--quantization cannot round a GGUF file: leave one of them away"
