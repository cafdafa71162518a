"""A LoRA without some of its parts: modules silent, singular directions of the update left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import all_targets, save_adapter, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp.conditions import Base, Condition, Lora
from interp.errors import SubjectError
from interp.queries import Query, encode
from interp.subject import Batch, Subject, load
from interp.subject.directions import decomposed, truncated

QUERIES = ["hot is the opposite", "a river"]
RANK = 3
ADAPTER = "adapter_0"


class Case(NamedTuple):
    """A model with a LoRA on every linear module."""

    model: str
    lora: str
    subject: Subject
    batch: Batch

    def logits(self, name: str = "lora", subject: Subject | None = None) -> Tensor:
        subject = subject or self.subject
        setting = subject.settings[name]
        return subject.run(setting, self.batch, subject.prefill(setting))

    @property
    def modules(self) -> list[str]:
        return list(self.subject.weights.layers)

    def factors(self) -> dict[str, Tensor]:
        return {
            f"{module} {name}": getattr(layer, name)[ADAPTER].weight.detach().clone()
            for module, layer in self.subject.weights.layers.items()
            for name in ("lora_A", "lora_B")
        }


@pytest.fixture(scope="module", params=["gpt2", "phi3", "llama"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp(request.param)
    model = save_model(request.param, root / "model")
    lora = save_adapter(model, root / "lora", all_targets(request.param))
    conditions: dict[str, Condition] = {
        "base": Base(),
        "lora": Lora(lora),
        "half": Lora(lora, scale=0.5),
    }
    subject = load(model, conditions, QUERIES)
    return Case(model, lora, subject, Batch.of(encode(map(Query, QUERIES), subject.tokenizer)))


def plain(case: Case, without: dict[str, Tensor]) -> list[Tensor]:
    """Logits of plain Hugging Face + peft, the updates of some modules replaced: module -> what
    stands for B A."""
    hf: Any = AutoModelForCausalLM.from_pretrained(case.model, attn_implementation="eager")
    peft = PeftModel.from_pretrained(hf, case.lora).eval()
    prefix = case.subject.settings["lora"].prefix
    for module, update in without.items():
        layer = peft.base_model.model.get_submodule(module)
        up, down = layer.lora_B["default"], layer.lora_A["default"]
        u, s, v = np.linalg.svd(update.double().numpy(), full_matrices=False)
        up.weight.data = torch.tensor(u[:, :RANK] * s[:RANK]).float()
        down.weight.data = torch.tensor(v[:RANK]).float()
    with torch.no_grad():
        return [
            peft(torch.tensor([[*prefix, *row[:length].tolist()]])).logits[0, len(prefix) :]
            for row, length in zip(case.batch.ids, case.batch.lengths, strict=True)
        ]


def same(case: Case, got: Tensor, expected: list[Tensor], tolerance: float = 2e-5) -> bool:
    rows = zip(got, expected, strict=True)
    return all(torch.allclose(a[: len(b)], b, atol=tolerance, rtol=tolerance) for a, b in rows)


def masks(case: Case, *kept: bool) -> dict[str, Tensor]:
    return {module: torch.tensor(kept) for module in case.modules}


# --- modules off ----------------------------------------------------------------------------------


def test_all_modules_silent_is_base_to_the_bit(case: Case) -> None:
    silent = case.subject.without(case.modules)
    assert torch.equal(case.logits(subject=silent), case.logits("base"))
    assert not torch.equal(case.logits(), case.logits("base"))


def test_without_nothing_is_the_lora_to_the_bit(case: Case) -> None:
    assert torch.equal(case.logits(subject=case.subject.without([])), case.logits())


def test_a_silent_module_is_one_without_update(case: Case) -> None:
    for module in case.modules[:: max(1, len(case.modules) // 4)]:
        found = case.logits(subject=case.subject.without([module]))
        layer = case.subject.weights.layers[module]
        shape = (layer.lora_B[ADAPTER].weight.shape[0], layer.lora_A[ADAPTER].weight.shape[1])
        assert same(case, found, plain(case, {module: torch.zeros(shape)}))
        assert not torch.equal(found, case.logits())


def test_a_silent_subject_leaves_its_original_alone(case: Case) -> None:
    before = case.logits()
    silent = case.subject.without(case.modules[:2])
    assert not torch.equal(case.logits(subject=silent), before)
    assert torch.equal(case.logits(), before)


def test_an_unknown_module_is_refused(case: Case) -> None:
    with pytest.raises(SubjectError, match="no adapter is mounted on here") as caught:
        case.subject.without([case.modules[0], "here"])
    assert "\n" not in str(caught.value)


# --- directions -----------------------------------------------------------------------------------


def update(case: Case, module: str) -> np.ndarray:
    """B A, float64, from the factors."""
    layer = case.subject.weights.layers[module]
    factors = (getattr(layer, name)[ADAPTER].weight for name in ("lora_B", "lora_A"))
    up, down = (factor.detach().double().numpy() for factor in factors)
    return up @ down


def test_directions_are_numpys(case: Case) -> None:
    for module in case.modules:
        u, s, v = (x.numpy() for x in decomposed(case.subject.weights, module, ADAPTER))
        full = update(case, module)
        assert np.allclose(s, np.linalg.svd(full, compute_uv=False)[:RANK], rtol=1e-10)
        assert np.allclose((u * s) @ v, full, atol=1e-10)
        assert np.allclose(u.T @ u, np.eye(RANK), atol=1e-10)
        assert np.allclose(v @ v.T, np.eye(RANK), atol=1e-10)
        assert (np.diff(s) <= 0).all()


def test_all_directions_are_the_lora_and_none_is_base(case: Case) -> None:
    lora, base = case.logits(), case.logits("base")
    with truncated(case.subject.weights, ADAPTER, masks(case, True, True, True)):
        assert torch.allclose(case.logits(), lora, atol=1e-5, rtol=1e-5)
    with truncated(case.subject.weights, ADAPTER, masks(case, False, False, False)):
        assert torch.equal(case.logits(), base)


@pytest.mark.parametrize("kept", [(True, False, False), (False, True, True), (True, True, False)])
def test_some_directions_against_plain_peft(case: Case, kept: tuple[bool, ...]) -> None:
    """The update by numpy's decomposition of the whole matrix, in all modules and in one."""
    left = {}
    for module in case.modules:
        u, s, v = np.linalg.svd(update(case, module), full_matrices=False)
        left[module] = torch.tensor((u[:, :RANK] * (s[:RANK] * np.array(kept))) @ v[:RANK])
    one = case.modules[1]
    for modules in (case.modules, [one]):
        chosen = {module: torch.tensor(kept) for module in modules}
        with truncated(case.subject.weights, ADAPTER, chosen):
            found = case.logits()
        assert same(case, found, plain(case, {module: left[module] for module in modules}))


def test_the_scale_of_a_condition_still_acts(case: Case) -> None:
    """Half a LoRA of no direction is base, of all of them half the LoRA."""
    half = case.logits("half")
    with truncated(case.subject.weights, ADAPTER, masks(case, True, True, True)):
        assert torch.allclose(case.logits("half"), half, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(case.logits("half"), case.logits(), atol=1e-3)


def test_the_factors_are_put_back_to_the_bit(case: Case) -> None:
    before, logits = case.factors(), case.logits()
    changing = masks(case, True, False, False)
    with pytest.raises(ZeroDivisionError), truncated(case.subject.weights, ADAPTER, changing):
        _fail(before, case.factors())
    changing["here"] = KEEP  # fails when all others are changed
    with pytest.raises(SubjectError), truncated(case.subject.weights, ADAPTER, changing):
        pass
    after = case.factors()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(case.logits(), logits)


def _fail(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    raise ZeroDivisionError


KEEP = torch.tensor([True, True, True])


def test_what_has_no_directions_is_refused(case: Case) -> None:
    for module, adapter in (("here", ADAPTER), (case.modules[0], "adapter_7")):
        with pytest.raises(SubjectError, match=f"{module} has no plain LoRA") as caught:
            decomposed(case.subject.weights, module, adapter)
        assert "\n" not in str(caught.value)


# One architecture is enough for these -------------------------------------------------------------


def saved(model: str, folder: Path, **options: Any) -> str:
    """A random adapter with other options, rank 3 on `q_proj`."""
    torch.manual_seed(1)
    config = LoraConfig(
        r=RANK, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    peft.save_pretrained(folder)
    return str(folder)


def opened(model: str, folder: str) -> Subject:
    return load(model, {"base": Base(), "lora": Lora(folder)}, QUERIES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("qwen3", tmp_path_factory.mktemp("qwen3") / "model")


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_an_update_that_is_no_product_is_refused(
    model: str, tmp_path: Path, options: dict[str, bool]
) -> None:
    """DoRA scales the base's columns, a bias stays where every direction goes."""
    folder = saved(model, tmp_path / "lora", **options)
    subject = opened(model, folder)
    module = next(iter(subject.weights.layers))
    with pytest.raises(SubjectError, match=f"{module} has no plain LoRA") as caught:
        decomposed(subject.weights, module, ADAPTER)
    assert "\n" not in str(caught.value)


def test_an_update_without_a_direction_at_all(model: str, tmp_path: Path) -> None:
    """B = 0, as before training: singular values are 0, and every truncation is base."""
    folder = saved(model, tmp_path / "lora")
    subject = opened(model, folder)
    batch = Batch.of(encode(map(Query, QUERIES), subject.tokenizer))
    modules = list(subject.weights.layers)
    for module in modules:
        subject.weights.layers[module].lora_B[ADAPTER].weight.data.zero_()
    base = subject.run(subject.settings["base"], batch)
    for kept in (KEEP, ~KEEP):
        with truncated(subject.weights, ADAPTER, dict.fromkeys(modules, kept)):
            assert decomposed(subject.weights, modules[0], ADAPTER).s.tolist() == [0, 0, 0]
            assert torch.equal(subject.run(subject.settings["lora"], batch), base)
