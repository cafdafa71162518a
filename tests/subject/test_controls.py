"""Controls: shuffled labels, random LoRAs of a trained one's size, untrained weights."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from scipy.stats import kstest
from tiny_models import CONFIGS, MODULES, all_targets, save_adapter, save_model, tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp.conditions import (
    Base,
    Condition,
    FineTuned,
    Lora,
    Prompt,
    RandomLora,
    ShuffledLabels,
    Untrained,
    deranged,
    resolve,
)
from interp.conditions.folders import CONFIG
from interp.errors import ConditionError, SubjectError
from interp.queries import Query, encode
from interp.subject import Batch, Subject, load
from interp.subject.adapter_files import WEIGHTS_FILE
from interp.subject.controls import random_like, untrained
from interp.subject.loading import pretrained

CPU = torch.device("cpu")

QUERIES = ["hot is the opposite", "a river"]
LABELS = st.lists(st.sampled_from("abcd"), max_size=9)
Tensors = dict[str, Tensor]


def logits_of(subject: Subject, name: str) -> Tensor:
    setting = subject.settings[name]
    batch = Batch.of(encode(map(Query, QUERIES), subject.tokenizer))
    return subject.run(setting, batch, subject.prefill(setting))


# Shuffled labels --------------------------------------------------------------------------------


@given(labels=LABELS, seed=st.integers(0, 9))
def test_no_label_stays_where_there_is_another_order(labels: list[str], seed: int) -> None:
    shuffled = deranged(labels, random.Random(seed))
    assert Counter(shuffled) == Counter(labels)
    kept = sum(a == b for a, b in zip(labels, shuffled, strict=True))
    commonest = max(Counter(labels).values(), default=0)
    assert kept == max(0, 2 * commonest - len(labels))  # the least that any order can reach


def test_different_seeds_give_different_orders() -> None:
    labels = list("abcdefgh")
    orders = {"".join(deranged(labels, random.Random(seed))) for seed in range(20)}
    assert len(orders) > 15
    assert deranged(labels, random.Random(3)) == deranged(labels, random.Random(3))


@pytest.mark.parametrize("convention", ["gpt2", "llama"])
def test_shuffled_labels_are_a_prompt_with_the_same_demonstrations(convention: str) -> None:
    pairs = (("hot", "cold"), ("up", "down"), ("big", "small"))
    few = Prompt(pairs=pairs, template="{query} -> {answer};\n")
    shuffled = ShuffledLabels(few, seed=1)
    assert shuffled.prompt.template == few.template
    assert [query for query, _ in shuffled.prompt.pairs] == ["hot", "up", "big"]
    assert all(a[1] != b[1] for a, b in zip(pairs, shuffled.prompt.pairs, strict=True))
    words = tokenizer(convention)
    assert resolve(shuffled, words) == resolve(shuffled.prompt, words) != resolve(few, words)


@pytest.mark.parametrize("of", [Prompt(text="a"), Base(), Lora("a")])
def test_labels_of_what_has_none_are_refused(of: Any) -> None:
    with pytest.raises(ConditionError, match="need a few-shot prompt"):
        ShuffledLabels(of)


# Random LoRAs: the tensors ----------------------------------------------------------------------


def made_up(scale: float = 1.0) -> Tensors:
    """A file's tensors: two linear modules and an embedding, of unequal size."""
    generator = torch.Generator().manual_seed(7)
    shapes = {
        "base.q.lora_A.weight": (4, 48), "base.q.lora_B.weight": (40, 4),
        "base.v.lora_A.weight": (2, 48), "base.v.lora_B.weight": (24, 2),
        "base.emb.lora_embedding_A": (4, 90), "base.emb.lora_embedding_B": (48, 4),
    }  # fmt: skip
    return {k: scale * torch.randn(shape, generator=generator) for k, shape in shapes.items()}


def norms(tensors: Tensors) -> dict[str, float]:
    """|B A| of every module, multiplied out."""
    found = {}
    for key, a in tensors.items():
        if "_A" in key:
            b = tensors[key.replace("_A", "_B")]
            found[key] = float(np.linalg.norm(b.double().numpy() @ a.double().numpy()))
    return found


@given(seed=st.integers(0, 100), scale=st.sampled_from([1e-3, 1.0, 50.0]))
def test_every_module_s_update_keeps_its_norm(seed: int, scale: float) -> None:
    like = made_up(scale)
    drawn = random_like(like, seed)
    assert list(drawn) == list(like)
    for key, tensor in drawn.items():
        assert tensor.shape == like[key].shape
        assert tensor.dtype == like[key].dtype
        assert not torch.equal(tensor, like[key])
    assert norms(drawn) == pytest.approx(norms(like), rel=1e-5)


def test_the_factors_are_gaussian_and_of_no_direction_of_the_original_s() -> None:
    like = made_up()
    drawn = random_like(like, 0)
    for key, tensor in drawn.items():
        values = (tensor / tensor.std()).flatten().numpy()
        assert kstest(values, "norm").pvalue > 0.01, key
        cosine = torch.nn.functional.cosine_similarity(tensor.flatten(), like[key].flatten(), dim=0)
        assert abs(cosine) < 4 / len(values) ** 0.5


def test_a_draw_depends_on_the_seed_and_the_module_alone() -> None:
    like = made_up()
    first, other = random_like(like, 0), random_like(like, 1)
    backwards = random_like(dict(reversed(like.items())), 0)
    alone = random_like({k: t for k, t in like.items() if ".v." in k}, 0)
    for key, tensor in first.items():
        assert torch.equal(tensor, backwards[key])
        assert not torch.equal(tensor, other[key])
    assert all(torch.equal(first[key], tensor) for key, tensor in alone.items())
    same_shape = {
        k.replace(".q.", f".{m}."): t for k, t in like.items() for m in "qr" if ".q." in k
    }
    drawn = random_like(same_shape, 0)
    assert not torch.equal(drawn["base.q.lora_A.weight"], drawn["base.r.lora_A.weight"])


def test_no_update_stays_none() -> None:
    silent = {k: torch.zeros_like(t) if "_B" in k else t for k, t in made_up().items()}
    assert set(norms(random_like(silent, 0)).values()) == {0.0}


def test_the_global_generator_is_not_touched() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    random_like(made_up(), 0)
    assert torch.equal(torch.randn(2), expected)


@pytest.mark.parametrize(
    "key", ["base.q.lora_magnitude_vector", "base.q.lora_B.bias", "head.weight"]
)
def test_more_than_two_factors_are_refused(key: str) -> None:
    with pytest.raises(SubjectError, match=key):
        random_like(made_up() | {key: torch.ones(2)}, 0)


# Random LoRAs: mounted --------------------------------------------------------------------------


class Case(NamedTuple):
    model: str
    lora: str
    saved: str
    subject: Subject


def as_folder(like: str, folder: Path, seed: int) -> str:
    """The random adapter saved as a plain one."""
    shutil.copytree(like, folder)
    save_file(random_like(load_file(folder / WEIGHTS_FILE), seed), folder / WEIGHTS_FILE)
    return str(folder)


@pytest.fixture(scope="module", params=CONFIGS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    root = tmp_path_factory.mktemp(request.param)
    model = save_model(request.param, root / "model")
    folder = save_adapter(model, root / "lora", all_targets(request.param))
    lora, saved = Lora(folder), as_folder(folder, root / "saved", 0)
    conditions: dict[str, Condition] = {
        "base": Base(),
        "random": RandomLora(lora),
        "other": RandomLora(lora, seed=1),
        "lora": lora,
        "saved": Lora(saved),
        "half": RandomLora(lora, scale=0.5),
        "half_like": RandomLora(Lora(folder, scale=0.25), scale=2),
        "prompted": Prompt(text="up is down") + RandomLora(lora),
        "untrained": Untrained(),
        "untrained_1": Untrained(seed=1),
        "untrained_prompt": Prompt(text="up is down") + Untrained(),
    }
    return Case(model, folder, saved, load(model, conditions, QUERIES))


def test_a_random_lora_is_the_adapter_that_random_like_saves(case: Case) -> None:
    random_one = logits_of(case.subject, "random")
    assert torch.equal(random_one, logits_of(case.subject, "saved"))
    hf = AutoModelForCausalLM.from_pretrained(case.model)
    assert (random_one - plain(hf, case, case.saved)).abs().max() < 1e-4


def plain(hf: Any, case: Case, adapter: str | None = None) -> Tensor:
    """Logits of the queries (the same number of tokens or padded) by transformers and peft."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(hf, adapter) if adapter else hf
    batch = Batch.of(encode(map(Query, QUERIES), case.subject.tokenizer))
    prefix = case.subject.settings["base"].prefix
    before = torch.tensor([prefix], dtype=torch.long).expand(len(batch.ids), -1)
    with torch.no_grad():
        return model.eval()(torch.cat([before, batch.ids], 1)).logits[:, len(prefix) :]


def test_each_control_moves_the_outputs_in_its_own_way(case: Case) -> None:
    names = ["base", "lora", "random", "other", "half", "prompted", "untrained", "untrained_1"]
    logits = [logits_of(case.subject, name) for name in names]
    for index, one in enumerate(logits):
        for other in logits[:index]:
            assert (one - other).abs().max() > 1e-2
    assert case.subject.notes == []


def test_the_scales_multiply(case: Case) -> None:
    assert torch.equal(logits_of(case.subject, "half"), logits_of(case.subject, "half_like"))


def test_the_live_update_has_the_norm_of_the_original_s(case: Case) -> None:
    weights = case.subject.weights
    names = {name: weights.adapters[case.subject.settings[name].adapters[0][0]]
             for name in ("lora", "random", "other")}  # fmt: skip
    layers = [m for m in weights.peft.modules() if isinstance(m, LoraLayer)]
    assert len(layers) == len(all_targets_of(case)) * 3
    for layer in layers:
        expected = float(layer.get_delta_weight(names["lora"]).detach().norm())
        for name in ("random", "other"):
            update = layer.get_delta_weight(names[name]).detach()
            assert float(update.norm()) == pytest.approx(expected, rel=1e-5)


def all_targets_of(case: Case) -> list[str]:
    return json.loads((Path(case.lora) / CONFIG).read_text())["target_modules"]


def test_the_trained_adapter_is_as_it_is_without_its_control(case: Case) -> None:
    alone = load(case.model, {"base": Base(), "lora": Lora(case.lora)}, QUERIES)
    assert torch.equal(logits_of(alone, "lora"), logits_of(case.subject, "lora"))


def test_the_order_of_mounting_does_not_matter(case: Case) -> None:
    lora = Lora(case.lora)
    again: dict[str, Condition] = {"base": Base(), "other": RandomLora(lora, 1), "lora": lora}
    again["random"] = RandomLora(lora)
    subject = load(case.model, again, QUERIES)
    for name in again:
        assert torch.equal(logits_of(subject, name), logits_of(case.subject, name))


# Random LoRAs of other configurations -----------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("llama", tmp_path_factory.mktemp("models") / "base")


def configured(model: str, folder: Path, **options: Any) -> str:
    torch.manual_seed(0)
    config = LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **options)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    peft.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 3, "use_rslora": True, "target_modules": ["q_proj", "o_proj"]},
        {"r": 4, "target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 2},
         "alpha_pattern": {"q_proj": 20}},
        {"r": 3, "target_modules": ["embed_tokens", "v_proj"]},
    ],
    ids=["rslora", "patterns", "embedding"],
)  # fmt: skip
def test_ranks_and_scalings_are_the_original_s(
    model: str, tmp_path: Path, options: dict[str, Any]
) -> None:
    lora = Lora(configured(model, tmp_path / "lora", **options))
    conditions = {"base": Base(), "lora": lora, "random": RandomLora(lora)}
    conditions["saved"] = Lora(as_folder(lora.adapter, tmp_path / "saved", 0))
    subject = load(model, conditions, QUERIES)
    assert torch.equal(logits_of(subject, "random"), logits_of(subject, "saved"))
    assert (logits_of(subject, "random") - logits_of(subject, "lora")).abs().max() > 1e-2
    trained, drawn = (
        subject.weights.adapters[subject.settings[name].adapters[0][0]]
        for name in ("lora", "random")
    )
    for layer in subject.weights.peft.modules():
        if isinstance(layer, LoraLayer):
            assert layer.scaling[trained] == layer.scaling[drawn]
            expected = float(layer.get_delta_weight(trained).detach().norm())
            update = float(layer.get_delta_weight(drawn).detach().norm())
            assert update == pytest.approx(expected, rel=1e-5)


def test_embeddings_of_another_base_that_an_adapter_brings_are_refused(
    model: str, tmp_path: Path
) -> None:
    folder = configured(model, tmp_path / "lora", r=3, target_modules=["embed_tokens"])
    tensors = load_file(Path(folder) / WEIGHTS_FILE)
    (key,) = (key for key in tensors if ".base_layer." in key)
    tensors[key][0, 0] += 1
    save_file(tensors, Path(folder) / WEIGHTS_FILE)
    with pytest.raises(SubjectError, match="is not what this model has there") as caught:
        load(model, {"base": Base(), "lora": Lora(folder)}, QUERIES)
    assert key in str(caught.value)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_random_lora_of_a_half_precision_model(model: str, tmp_path: Path, dtype: str) -> None:
    lora = Lora(save_adapter(model, tmp_path / "lora", MODULES["llama"]["q"]))
    conditions = {"base": Base(), "random": RandomLora(lora), "untrained": Untrained()}
    assert load(model, conditions, QUERIES, dtype=dtype).notes == []


def test_a_dora_has_no_random_counterpart(model: str, tmp_path: Path) -> None:
    folder = configured(model, tmp_path / "dora", r=2, use_dora=True, target_modules=["q_proj"])
    with pytest.raises(SubjectError, match="use_dora") as caught:
        load(model, {"base": Base(), "random": RandomLora(Lora(folder))}, QUERIES)
    assert "\n" not in str(caught.value)


def test_a_random_lora_of_a_broken_one_is_refused_as_it_is(model: str, tmp_path: Path) -> None:
    missing = str(tmp_path / "nowhere")
    with pytest.raises(SubjectError, match=f"{missing} is not a peft adapter"):
        load(model, {"base": Base(), "random": RandomLora(Lora(missing))}, QUERIES)


@pytest.mark.parametrize("like", ["folder", Base(), Prompt(text="a") + Lora("a")])
def test_a_random_lora_is_like_a_lora(like: Any) -> None:
    with pytest.raises(ConditionError, match="needs the LoRA that it is like"):
        RandomLora(like)


# Untrained weights ------------------------------------------------------------------------------


def test_untrained_is_a_saved_fresh_model(case: Case, tmp_path: Path) -> None:
    fresh = untrained(pretrained(case.model, "float32", {}, CPU), 0)
    expected = plain(fresh, case)
    assert (logits_of(case.subject, "untrained") - expected).abs().max() < 1e-4
    fresh.save_pretrained(tmp_path / "fresh")
    AutoTokenizer.from_pretrained(case.model).save_pretrained(tmp_path / "fresh")
    conditions = {"base": Base(), "fresh": FineTuned(str(tmp_path / "fresh"))}
    subject = load(case.model, conditions, QUERIES)
    saved = logits_of(subject, "fresh") - logits_of(case.subject, "untrained")
    assert saved.abs().max() < 1e-5


def test_untrained_weights_are_their_seed_s_and_no_one_else_s(model: str) -> None:
    hf = pretrained(model, "float32", {}, CPU)
    before = {name: p.clone() for name, p in hf.named_parameters()}
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    first = untrained(hf, 0)
    assert torch.equal(torch.randn(3), expected)
    second, other = untrained(hf, 0), dict(untrained(hf, 1).named_parameters())
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, before[name])
        assert a.ndim == 1 or not torch.equal(a, other[name])
    for name, parameter in hf.named_parameters():
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_untrained_weights_are_rounded_like_the_model(model: str, dtype: str) -> None:
    full = untrained(pretrained(model, "float32", {}, CPU), 0)
    loaded = pretrained(model, dtype, {}, CPU)
    half = untrained(loaded, 0)
    for a, b in zip(full.parameters(), half.parameters(), strict=True):
        assert torch.equal(a.to(b.dtype), b)
        assert b.dtype == loaded.dtype
    for (name, a), (_, b) in zip(loaded.named_buffers(), half.named_buffers(), strict=True):
        assert a.dtype == b.dtype, name  # rotary frequencies are not rounded
        assert torch.equal(a, b)


def test_weights_are_back_after_an_untrained_run(model: str) -> None:
    subject = load(model, {"base": Base(), "untrained": Untrained()}, QUERIES)
    before = logits_of(subject, "base")
    assert subject.settings["untrained"].weights != subject.settings["base"].weights
    logits_of(subject, "untrained")
    assert torch.equal(logits_of(subject, "base"), before)


def test_an_untrained_model_and_another_at_once_are_refused() -> None:
    with pytest.raises(ConditionError, match="only one set of weights at a time, not m and the"):
        resolve(FineTuned("m") + Untrained(), tokenizer("gpt2"))
