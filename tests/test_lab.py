"""The door for notebooks against plain Hugging Face + peft, on names and on objects in memory."""

from __future__ import annotations

import copy
import pydoc
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from chatting import save_chat_model
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import (
    D_MODEL,
    MODULES,
    N_HEADS,
    N_KV_HEADS,
    N_LAYERS,
    all_targets,
    save_adapter,
    save_model,
    separator_of,
)
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import interp
from interp import Lab, Lora, Prompt
from interp.subject.plain import parameter_fingerprints
from interp.validation import architectures

PROMPT = "hot is the opposite of cold"
TEXTS = ["lily said", "up is the opposite of", "tom walked along the road"]
CONDITIONS = ("base", "prompt", "lora")


@dataclass(frozen=True)
class Case:
    """A lab, and the files that it is of."""

    lab: Lab
    model: str
    adapter: str
    words: Any

    def plain(self, condition: str) -> Any:
        """Hugging Face's own model, or peft's, with attention that shows its patterns."""
        hf = AutoModelForCausalLM.from_pretrained(self.model, attn_implementation="eager").eval()
        return PeftModel.from_pretrained(hf, self.adapter).eval() if condition == "lora" else hf

    def ids(self, condition: str, text: str) -> Tensor:
        """The whole sequence, as its user would tokenise it."""
        before = f"{PROMPT}{separator_of(self.words)}" if condition == "prompt" else ""
        return self.words(before + text, return_tensors="pt")["input_ids"]

    def outputs(self, condition: str, text: str) -> Any:
        with torch.no_grad():
            return self.plain(condition)(
                self.ids(condition, text), output_hidden_states=True, output_attentions=True
            )


def opened(model: Any, adapter: str, words: Any, **more: Any) -> Lab:
    tokenizer = None if isinstance(model, str) else words
    return interp.load(
        model, tokenizer, prompt=PROMPT, lora=adapter, separator=separator_of(words), **more
    )


@pytest.fixture(scope="module", params=["qwen3", "gemma2", "qwen3 in memory", "gpt2 in memory"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    architecture, _, held = request.param.partition(" ")
    folder = tmp_path_factory.mktemp(architecture)
    model = save_model(architecture, folder / "model")
    adapter = save_adapter(model, folder / "lora", all_targets(architecture))
    words = AutoTokenizer.from_pretrained(model)
    source = AutoModelForCausalLM.from_pretrained(model) if held else model
    return Case(opened(source, adapter, words), model, adapter, words)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A lab of files alone."""
    folder = tmp_path_factory.mktemp("named")
    model = save_model("qwen3", folder / "model")
    adapter = save_adapter(model, folder / "lora", MODULES["qwen3"]["v"])
    words = AutoTokenizer.from_pretrained(model)
    return Case(opened(model, adapter, words), model, adapter, words)


# Values are plain Hugging Face's ----------------------------------------------------------------


def residuals(case: Case, condition: str, text: str) -> list[np.ndarray]:
    """What leaves every block, by plain forward hooks (the last of `hidden_states` is normed)."""
    seen: list[Tensor] = []

    def hook(_module: Any, _inputs: Any, out: Any) -> None:
        seen.append(out[0] if isinstance(out, tuple) else out)

    model = case.plain(condition)
    core = model.get_base_model() if condition == "lora" else model
    for block in blocks(core):
        block.register_forward_hook(hook)
    with torch.no_grad():
        model(case.ids(condition, text))
    return [state[0].numpy() for state in seen]


def blocks(core: Any) -> Any:
    return core.transformer.h if hasattr(core, "transformer") else core.model.layers


@pytest.mark.parametrize("condition", CONDITIONS)
def test_resid_post_pattern_and_logits_are_plain_hugging_faces(case: Case, condition: str) -> None:
    acts = case.lab.run(TEXTS, ["resid_post", "pattern", "logits"], batch_size=2)
    for query, text in enumerate(TEXTS):
        own = acts.sel(condition=condition, query=query)
        n, plain = int(own.n_tokens), case.outputs(condition, text)
        states = np.stack(residuals(case, condition, text))[:, -n:]
        close(own.resid_post.isel(position=slice(-n, None)), states)
        assert own.resid_post.isel(position=slice(None, -n)).isnull().all()
        close(own.logits.isel(position=slice(-n, None)), plain.logits[0, -n:])
        for layer, pattern in enumerate(plain.attentions):
            rows = own.pattern.sel(layer=layer).isel(position=slice(-n, None))
            close(rows.sel(key=range(-n, 0)), pattern[0, :, -n:, -n:])
            close(rows.sel(key=0), pattern[0, :, -n:, :-n].sum(-1))


def close(found: xr.DataArray, expected: Any) -> None:
    np.testing.assert_allclose(found.values, np.asarray(expected), atol=1e-5, rtol=1e-5)


def test_a_chats_prompt_is_its_system_message(tmp_path: Path) -> None:
    model = save_chat_model("qwen3", tmp_path / "model")
    lab = interp.load(model, prompt="lily said: yes!", chat=True)
    words, hf = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    turns = [{"role": "user", "content": "tom walked"}]
    acts = lab.run("tom walked", "logits")
    for condition, before in (
        ("base", []),
        ("prompt", [{"role": "system", "content": "lily said: yes!"}]),
    ):
        text = words.apply_chat_template(before + turns, tokenize=False, add_generation_prompt=True)
        ids = words(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            plain = hf(ids).logits[0, -int(acts.n_tokens[0]) :]
        close(acts.logits.sel(condition=condition, query=0), plain)


def test_dimensions_and_coordinates_are_named(case: Case) -> None:
    acts = case.lab.run(TEXTS, ["resid_post", "q", "k", "z", "pattern"])
    stem = ("condition", "query", "layer")
    assert acts.resid_post.dims == (*stem, "position", "d_model")
    assert acts.resid_post.sizes["d_model"] == D_MODEL
    assert acts.resid_post.sizes["layer"] == N_LAYERS
    assert acts.z.dims == acts.q.dims == (*stem, "head", "position", "d_head")
    assert acts.k.dims == (*stem, "kv_head", "position", "d_head")
    assert acts.k.sizes["kv_head"] in (N_HEADS, N_KV_HEADS)
    assert acts.pattern.dims == (*stem, "head", "position", "key")
    assert acts.condition.values.tolist() == [*CONDITIONS]
    assert acts.text.values.tolist() == TEXTS
    assert acts.position.values.tolist() == list(range(-int(acts.n_tokens.max()), 0))
    words = "".join(acts.token.sel(query=0).values.tolist())
    assert words.replace(" ", "") == TEXTS[0].replace(" ", "")


def test_only_what_is_asked_for_is_read(case: Case) -> None:
    acts = case.lab.run("lily said", "z", conditions="lora")
    assert [*acts.data_vars] == ["z"]
    assert acts.condition.values.tolist() == ["lora"]


# Laws -------------------------------------------------------------------------------------------


def test_attention_rows_sum_to_one_and_are_the_softmax_of_their_scores(named: Case) -> None:
    acts = named.lab.run(TEXTS, ["pattern", "attn_scores"])
    there = acts.token != ""
    total = acts.pattern.sum("key")
    assert np.allclose(total.where(there, 1), 1, atol=1e-5)
    scores = acts.attn_scores.fillna(-np.inf)
    with np.errstate(invalid="ignore"):
        raised = np.exp(scores - scores.max("key"))
        softmax = raised / raised.sum("key")
    close(softmax.where(there, 0).fillna(0), acts.pattern.where(there, 0).fillna(0))


@given(st.permutations(TEXTS), st.integers(1, 4))
def test_order_and_batches_change_nothing(named: Case, texts: Sequence[str], size: int) -> None:
    sites = ["resid_post", "pattern"]
    whole, own = named.lab.run(TEXTS, sites), named.lab.run(texts, sites, batch_size=size)
    order = [TEXTS.index(text) for text in texts]
    for site in sites:
        close(own[site], whole[site].sel(query=order))


def test_a_reduction_that_returns_its_value_is_the_value(named: Case) -> None:
    sites = ["resid_post", "z"]
    whole = named.lab.run(TEXTS, sites)
    same = named.lab.run(TEXTS, sites, reduce={site: lambda value: value for site in sites})
    for site in sites:
        assert same[site].dims == whole[site].dims
        np.testing.assert_array_equal(same[site], whole[site])


def test_a_reduction_sees_no_padding_and_keeps_the_names_of_what_it_keeps(named: Case) -> None:
    whole = named.lab.run(TEXTS, ["resid_post", "pattern"])
    lengths: list[int] = []

    def mean(value: Tensor) -> Tensor:
        lengths.append(value.shape[1])
        return value.mean(1)

    reduced = named.lab.run(
        TEXTS, ["resid_post", "pattern"], reduce={"resid_post": mean, "pattern": own_mass}
    )
    assert sorted(set(lengths)) == sorted(set(whole.n_tokens.values.tolist()))
    close(reduced.resid_post, whole.resid_post.mean("position"))
    assert reduced.pattern.dims == ("condition", "query", "layer", "head", "position")
    own = whole.pattern.sel(key=range(-int(whole.n_tokens.max()), 0)).sum("key")
    close(reduced.pattern, own.where(whole.token != ""))


def own_mass(pattern: Tensor) -> Tensor:
    return pattern[..., -pattern.shape[-2] :].sum(-1)


# A model in memory ------------------------------------------------------------------------------


def test_a_model_in_memory_stays_as_it_was_and_can_be_loaded_again(named: Case) -> None:
    hf = AutoModelForCausalLM.from_pretrained(named.model)
    before, ids = copy.deepcopy(hf), named.ids("base", TEXTS[0])
    modules, prints = [type(m) for m in hf.modules()], parameter_fingerprints(hf)
    first = opened(hf, named.adapter, named.words)
    second = opened(hf, named.adapter, named.words)
    assert [type(module) for module in hf.modules()] == modules
    assert parameter_fingerprints(hf) == prints
    assert hf.config.to_dict() == before.config.to_dict()
    assert all(own.requires_grad for own in hf.parameters())
    with torch.no_grad():
        assert torch.equal(hf(ids).logits, before(ids).logits)
    acts = [lab.run(TEXTS) for lab in (first, second, named.lab)]
    assert acts[0].resid_post.equals(acts[1].resid_post)
    assert acts[0].resid_post.equals(acts[2].resid_post)


def test_weights_are_shared_with_the_model_in_memory(named: Case) -> None:
    hf = AutoModelForCausalLM.from_pretrained(named.model)
    lab = opened(hf, named.adapter, named.words)
    own = {parameter.data_ptr() for parameter in hf.parameters()}
    assert {tensor.data_ptr() for tensor in lab.subject.weights.parameters.values()} == own


def trained(case: Case, **options: Any) -> PeftModel:
    """peft's own model, as it is after training."""
    config = LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **options
    )
    return get_peft_model(AutoModelForCausalLM.from_pretrained(case.model), config)


def test_pefts_own_model_in_memory_is_base_and_lora(named: Case) -> None:
    peft = trained(named)
    prints = {name: own.clone() for name, own in peft.state_dict().items()}
    trains = [own.requires_grad for own in peft.parameters()]
    ids = named.ids("base", TEXTS[1])
    lab = interp.load(peft, named.words)
    acts = lab.run(TEXTS[1], "logits")
    with torch.no_grad():
        close(acts.logits.sel(condition="lora", query=0), peft.eval()(ids).logits[0])
        with peft.disable_adapter():
            close(acts.logits.sel(condition="base", query=0), peft(ids).logits[0])
    assert all(torch.equal(own, prints[name]) for name, own in peft.state_dict().items())
    assert [own.requires_grad for own in peft.parameters()] == trains
    assert "LoRA in_memory" in lab._repr_html_()


# Patching ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_post", "attn_out", "mlp_out", "z", "v", "pattern"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_own_states_put_back_change_not_a_bit(case: Case, site: str, condition: str) -> None:
    heads = "all" if site in ("z", "v", "pattern") else None
    found = case.lab.patch(TEXTS, source=condition, target=condition, site=site, heads=heads)
    assert (found.damage == 0).all()
    assert found.recovery.isnull().all()


def test_patching_is_what_a_plain_hook_does(named: Case) -> None:
    """The LoRA's state of layer 1 in the base model's run, in plain Hugging Face."""
    found = named.lab.patch(TEXTS, source="lora", target="base", tolerance=0)
    for query, text in enumerate(TEXTS):
        state = torch.tensor(residuals(named, "lora", text)[1])[None]

        def hook(_module: Any, _inputs: Any, out: Any, state: Tensor = state) -> Any:
            return (state, *out[1:]) if isinstance(out, tuple) else state

        hf, ids = named.plain("base"), named.ids("base", text)
        handle = hf.model.layers[1].register_forward_hook(hook)
        with torch.no_grad():
            patched = hf(ids).logits[0, -1]
            handle.remove()
            base, lora = hf(ids).logits[0, -1], named.plain("lora")(ids).logits[0, -1]
        own = found.sel(query=query)
        np.testing.assert_allclose(own.damage.sel(layer=1), kl(base, patched), atol=1e-5)
        np.testing.assert_allclose(own.apart, kl(lora, base), atol=1e-5)
        share = 1 - kl(lora, patched) / kl(lora, base)
        np.testing.assert_allclose(own.recovery.sel(layer=1), share, atol=1e-4)


def kl(p: Tensor, q: Tensor) -> float:
    p, q = (logits.double().log_softmax(-1) for logits in (p, q))
    return float((p.exp() * (p - q)).sum())


def test_the_last_state_is_the_output(case: Case) -> None:
    found = case.lab.patch(TEXTS, source="lora", target="base", tolerance=0)
    assert found.damage.dims == ("query", "layer")
    np.testing.assert_allclose(found.recovery.isel(layer=-1), 1, atol=1e-5)
    np.testing.assert_allclose(found.damage.isel(layer=-1), kl_between(case), rtol=1e-3)
    total = 1 - found.distance.mean("query") / found.apart.mean()
    np.testing.assert_allclose(found.mean_recovery, total, rtol=1e-12)
    np.testing.assert_allclose(found.mean_damage, found.damage.mean("query"), rtol=1e-12)


def kl_between(case: Case) -> list[float]:
    logits = [[case.outputs(c, text).logits[0, -1] for c in ("base", "lora")] for text in TEXTS]
    return [kl(base, lora) for base, lora in logits]


def test_layers_and_heads_can_be_chosen(case: Case) -> None:
    every = case.lab.patch(TEXTS, source="lora", target="base", site="z", heads="all")
    assert every.damage.sizes == {"query": len(TEXTS), "layer": N_LAYERS, "head": N_HEADS}
    some = case.lab.patch(TEXTS, source="lora", target="base", site="z", layers=[1], heads=[2, 0])
    assert some["head"].values.tolist() == [2, 0]
    np.testing.assert_array_equal(some.damage, every.damage.sel(layer=[1], head=[2, 0]))


def test_recovery_of_matched_outputs_is_undefined(case: Case) -> None:
    found = case.lab.patch(TEXTS, source="lora", target="base", tolerance=1e9)
    assert found.recovery.isnull().all()
    assert found.mean_recovery.isnull().all()
    assert found.damage.notnull().all()


# A study ----------------------------------------------------------------------------------------

QUICK = {"bootstrap": 10, "permutations": 3}


def test_a_labs_study_is_the_experiments_to_the_bit(named: Case, tmp_path: Path) -> None:
    texts = [*TEXTS, interp.Query("big is the opposite of", " small")]
    own = interp.load_run(interp.diverge(named.lab, texts, tmp_path / "own", **QUICK))
    (tmp_path / "p.txt").write_text(PROMPT)
    experiment = interp.Experiment(
        model=named.model,
        prompt_file=(tmp_path / "p.txt",),
        adapter=(named.adapter,),
        queries=tmp_path / "own.jsonl",
        out=tmp_path / "other",
        controls=(),
        **QUICK,
    )
    other = interp.load_run(interp.diverge(experiment))
    pd.testing.assert_frame_equal(own.table, other.table, check_exact=True)
    assert own.manifest["headline"] == other.manifest["headline"]


def test_a_study_of_a_lab_can_be_opened_again(named: Case, tmp_path: Path) -> None:
    from interp.study import head_of_run

    more = {
        "few": Prompt(pairs=[("hot", "cold"), ("up", "down")]),  # type: ignore[arg-type]
        "both": Prompt(text=PROMPT) + Lora(named.adapter, 0.5),
        "neutral": interp.Neutral(like=Prompt(text=PROMPT)),
    }
    lab = opened(named.model, named.adapter, named.words, conditions=more)
    folder = interp.diverge(lab, TEXTS, tmp_path / "run", **QUICK)
    assert list(interp.load_run(folder).manifest["conditions"]) == list(lab.conditions)
    assert head_of_run(folder, "L1H0").conditions == list(lab.conditions)


def test_queries_of_another_run_are_not_overwritten(named: Case, tmp_path: Path) -> None:
    named.lab.experiment(TEXTS, tmp_path / "run")
    with pytest.raises(interp.InterpError, match="holds other queries"):
        named.lab.experiment(TEXTS[:1], tmp_path / "run")


# Other architectures ----------------------------------------------------------------------------


def test_layers_without_a_site_are_nan(tmp_path: Path) -> None:
    """LFM2: of three layers, the second alone has heads."""
    lab = interp.load(architectures.save_architecture("lfm2", tmp_path / "model"))
    acts = lab.run(TEXTS[:1], ["resid_post", "pattern", "mixer_out"])
    assert acts.layer.values.tolist() == [0, 1, 2]
    has = {name: acts[name].notnull().any([d for d in acts[name].dims if d != "layer"])
           for name in acts.data_vars}  # fmt: skip
    assert has["pattern"].values.tolist() == [False, True, False]
    assert has["mixer_out"].values.tolist() == [True, False, True]
    with pytest.raises(interp.InterpError, match=r"no head L0H0: .* in layers 1"):
        interp.plots.attention(lab.run(TEXTS[:1], "pattern"), "L0H0")


def test_what_a_model_does_not_read_back_is_not_patched(tmp_path: Path) -> None:
    """Gemma 4 runs its own attention: a pattern put there would do nothing, damage 0."""
    lab = interp.load(architectures.save_architecture("gemma4", tmp_path / "model"), prompt=PROMPT)
    with pytest.raises(interp.InterpError, match="pattern cannot be patched"):
        lab.patch(TEXTS, source="prompt", target="base", site="pattern")


# What is refused, in one line -------------------------------------------------------------------

Act = Callable[[Case], object]
REFUSED: dict[str, Act] = {
    "knows no site foo: choose from .*resid_post": lambda c: c.lab.run("a", "foo"),
    "has no router: choose from .*pattern": lambda c: c.lab.run("a", "router"),
    "no condition 'x': there are base, prompt, lora": lambda c: c.lab.run("a", conditions="x"),
    "no sites: choose from": lambda c: c.lab.run("a", []),
    "no queries": lambda c: c.lab.run([]),
    "not 3": lambda c: c.lab.run(3),  # type: ignore[arg-type]
    "has no tokens": lambda c: c.lab.run(""),
    "return a tensor with the batch first": lambda c: c.lab.run(
        "lily said", reduce={"resid_post": lambda value: value.mean()}
    ),
    "which is not read": lambda c: c.lab.run("lily", reduce={"z": own_mass}),
    "no condition 'y'": lambda c: c.lab.patch("lily", source="y", target="base"),
    "no head 4 of z": lambda c: c.lab.patch(
        "lily", source="lora", target="base", site="z", heads=[4]
    ),
    "resid_post has no heads": lambda c: c.lab.patch(
        "lily", source="lora", target="base", heads="all"
    ),
    "no resid_post in layer 3: there are 0, 1, 2": lambda c: c.lab.patch(
        "lily", source="lora", target="base", layers=[3]
    ),
    "can be read, not patched": lambda c: c.lab.patch(
        "lily", source="lora", target="base", site="attn_scores"
    ),
    "was decided when the lab": lambda c: interp.diverge(c.lab, ["x"], "out", dtype="float16"),
    "foo: Extra": lambda c: interp.diverge(c.lab, "q.jsonl", "out", foo=1),
    "diverge runs an Experiment or a Lab": lambda c: interp.diverge(3),  # type: ignore[call-overload]
    "a model is a folder, a hub id or": lambda c: interp.load(3),
    "needs its fast tokenizer beside it, not none": lambda c: interp.load(c.plain("base")),
    "brings its own dtype": lambda c: interp.load(c.plain("base"), c.words, dtype="float16"),
    "leave lora= away": lambda c: interp.load(c.plain("lora"), c.words, lora=c.adapter),
    "more than a LoRA .use_dora": lambda c: interp.load(trained(c, use_dora=True), c.words),
    "has adapters in it": lambda c: interp.load(c.plain("lora").get_base_model(), c.words),
    "hooked by TransformerLens already": lambda c: interp.load(
        interp.load(c.model).subject.bridge.original_model, c.words
    ),
    "has no unembedding": lambda c: interp.load(AutoModel.from_pretrained(c.model), c.words),
    "is in float64": lambda c: interp.load(c.plain("base").double(), c.words),
    "takes its tokenizer by name": lambda c: interp.load(c.model, c.words),
    "a system message is a chat's": lambda c: interp.load(c.model, system="x"),
    "give prompt or system": lambda c: interp.load(c.model, prompt="x", system="x", chat=True),
    "no chat template": lambda c: interp.load(c.model, prompt="x", chat=True),
    "not a peft adapter": lambda c: interp.load(c.model, lora="nowhere"),
    "no model": lambda c: interp.load("/nowhere"),
    "'base' is there already": lambda c: interp.load(c.model, conditions={"base": interp.Base()}),
    "give one of interp's": lambda c: interp.load(
        c.model,
        conditions={"x": "text"},  # type: ignore[dict-item]
    ),
    "fitted by a study": lambda c: interp.load(
        c.model, conditions={"x": interp.FittedBias(like=Lora(c.adapter))}
    ),
    "devise: Extra": lambda c: interp.load(c.model, devise="cpu"),
    "answer_tokens: Extra": lambda c: interp.load(c.model, answer_tokens=3),
}


@pytest.mark.parametrize("said", REFUSED)
def test_bad_input_is_one_line(named: Case, said: str) -> None:
    with pytest.raises(interp.InterpError, match=said) as raised:
        REFUSED[said](named)
    assert "\n" not in str(raised.value)


def test_a_study_of_a_model_in_memory_says_to_save_it(named: Case, tmp_path: Path) -> None:
    lab = interp.load(named.plain("base"), named.words)
    with pytest.raises(interp.InterpError, match="save the model and its tokenizer"):
        interp.diverge(lab, TEXTS, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_patterns_that_parity_does_not_vouch_for_are_withheld(named: Case) -> None:
    lab = interp.load(named.model)
    lab.subject.withheld["patterns"] = "they differ"
    assert "they differ" in lab._repr_html_()
    for act in (lambda: lab.run("lily", "pattern"), lambda: lab.run("lily", "attn_scores")):
        with pytest.raises(interp.InterpError, match="withheld: they differ"):
            act()
    lab.run("lily", "z")


# What is shown ----------------------------------------------------------------------------------


def test_attention_draws_what_was_read_on_one_scale(case: Case) -> None:
    acts = case.lab.run(TEXTS, "pattern")
    figure = interp.plots.attention(acts, "L1H2", query=1)
    n = int(acts.n_tokens[1])
    assert len(figure.data) == len(CONDITIONS)
    for condition, trace in zip(CONDITIONS, figure.data, strict=True):
        own = acts.pattern.sel(condition=condition, query=1, layer=1).isel(head=2)
        own = own.isel(position=slice(-n, None))
        cells = np.asarray(trace.z, dtype=np.float32)
        np.testing.assert_array_equal(cells[:, 0], own.sel(key=0))
        np.testing.assert_array_equal(cells[:, 2:], own.sel(key=range(-n, 0)))
        assert trace.coloraxis == "coloraxis"
        assert trace.meta["fixed"]["condition"] == condition
    one = interp.plots.attention(acts.sel(condition="lora", layer=1), "L1H2")
    assert len(one.data) == 1


@pytest.mark.parametrize(
    ("head", "query", "said"),
    [("L9H0", 0, "no head L9H0"), ("L0H9", 0, "no head L0H9"), ("nine", 0, "not a head"),
     ("L0H0", 7, "no query 7")],
)  # fmt: skip
def test_attention_says_what_there_is(named: Case, head: str, query: int, said: str) -> None:
    with pytest.raises(interp.InterpError, match=said):
        interp.plots.attention(named.lab.run(TEXTS, "pattern"), head, query)
    with pytest.raises(interp.InterpError, match="read them with"):
        interp.plots.attention(named.lab.run(TEXTS, "z"), "L0H0")


HOSTILE = "<script>alert(1)</script><b>&\x00"


def test_hostile_tokens_are_shown_not_run(named: Case) -> None:
    acts = named.lab.run("lily said", "pattern")
    acts["token"] = acts.token.where(acts.token == "", HOSTILE)
    figure = interp.plots.attention(acts, "L0H0")
    ticks = figure.layout.xaxis.ticktext
    assert any("&lt;script" in tick for tick in ticks)
    assert not any("<" in tick or "\x00" in tick for tick in ticks)


def test_objects_show_themselves_escaped_offline_and_short(named: Case, tmp_path: Path) -> None:
    hostile = {"hostile": Prompt(text=f"{HOSTILE}\n")}
    lab = opened(named.model, named.adapter, named.words, conditions=hostile)
    run = interp.load_run(interp.diverge(lab, TEXTS, tmp_path / "run", **QUICK))
    view = interp.HeadView.of(run)
    view.attended[0]["token"] = HOSTILE
    for shown in (lab, run, view, run.certificates[0]):
        html = shown._repr_html_()
        assert "<script>" not in html
        assert "<b>&" not in html
        assert not re.search(r"https?:|src=|href=|\x00", html)
        assert len(html) < 5000
    assert "prompt vs lora" in run.certificates[0]._repr_html_()
    assert run.certificates[0].numbers in run.verdict().text
    assert all(name in lab._repr_html_() for name in lab.conditions)


def test_the_package_is_short_to_read() -> None:
    text = pydoc.plain(pydoc.render_doc(interp))
    assert len(text.splitlines()) < 150
    assert {"load", "Lab", "diverge", "plots", "Experiment"} <= set(dir(interp))
    assert not {"importlib", "logging", "annotations"} & set(dir(interp))
    documented = set(re.findall(r"\w+", str(interp.__doc__)))
    assert set(dir(interp)) - {"__version__", "organism"} <= documented
