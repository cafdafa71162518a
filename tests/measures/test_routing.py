"""Routers: how far their distributions are apart, and which experts they choose."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import jensenshannon
from scipy.special import expit, softmax
from tiny_models import save_adapter
from transformers import AutoModelForCausalLM

from interp import Experiment, Run, diverge, load_run, plots
from interp.batch import Batch
from interp.capture import capture
from interp.conditions import Base
from interp.measures.routing import expert_overlap, router_js
from interp.names import Site
from interp.queries import Query, encode
from interp.runs.view import NotMeasured
from interp.subject import load
from interp.subject.routers import LINKS, link_of, routed
from interp.validation import architectures

TEXTS = ["hot is the", "big is the opposite of", "the river is wide and"]
ROUTED = {
    "mixtral": "softmax",
    "qwen2_moe": "softmax",
    "qwen3_moe": "softmax",
    "olmoe": "softmax",
    "granite_moe": "softmax",
    "gpt_oss": "softmax",
    "deepseek_v2": "softmax",
    "deepseek_v3": "sigmoid",
    "glm4_moe": "sigmoid",
    "llama4": "sigmoid",
    "gemma4_moe": "shares",
}
"""How routers make a distribution of their logits, read in transformers' code (`shares`: they hand
out the distribution itself)."""

numbers = hnp.arrays(np.float64, (2, 3, 2, 5), elements=st.floats(-9, 9))
choices = hnp.arrays(np.bool_, (2, 4, 1, 6)).map(lambda a: a | (np.arange(6) == 0))


# Measures ---------------------------------------------------------------------------------------


@given(numbers)
def test_js_is_scipys(logits: np.ndarray) -> None:
    p, q = softmax(logits, axis=-1)
    got = router_js(torch.from_numpy(p), torch.from_numpy(q)).numpy()
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(got, np.nan_to_num(jensenshannon(p, q, axis=-1) ** 2), atol=1e-9)
    assert (got >= 0).all()
    assert (got <= np.log(2) + 1e-12).all()


@given(choices)
def test_overlap_is_that_of_sets(chosen: np.ndarray) -> None:
    a, b = torch.from_numpy(chosen)
    sets = [[{*np.flatnonzero(row)} for row in each[:, 0]] for each in chosen]
    want = [len(x & y) / max(len(x), len(y)) for x, y in zip(*sets, strict=True)]
    assert expert_overlap(a, b)[:, 0].tolist() == pytest.approx(want)
    assert expert_overlap(a, b).tolist() == expert_overlap(b, a).tolist()
    assert expert_overlap(a, a)[:, 0].tolist() == [1.0] * len(a)


# Links ------------------------------------------------------------------------------------------


@given(hnp.arrays(np.float64, (6, 5), elements=st.floats(-4, 4), unique=True))
def test_a_link_is_found_by_the_weights_that_it_gives(logits: np.ndarray) -> None:
    """Over all experts or over the chosen two, as they are or made to sum to 1."""
    best = np.argsort(-logits)[:, :2]
    for link, scores in {"softmax": softmax(logits, axis=-1), "sigmoid": expit(logits)}.items():
        given_ = np.take_along_axis(scores, best, -1)
        for weights in (2.5 * given_, given_ / given_.sum(-1, keepdims=True)):
            output = tuple(map(torch.from_numpy, (logits, weights, best)))
            assert link_of([routed(output)]) == link


def test_other_weights_have_no_link() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 4)
    weights, best = logits.topk(2)
    assert link_of([routed((logits, weights.abs() ** 3, best))]) == ""
    assert link_of([routed((logits, best))]) == ""
    assert link_of([]) == ""


@pytest.mark.parametrize("name", ROUTED)
def test_a_models_routing_is_its_own(name: str, tmp_path: Path) -> None:
    """Experts and weights that the hooked model's routers hand out are those which the plain
    model's experts are called with, and its shares give these weights."""
    folder = architectures.save_architecture(name, tmp_path / "model")
    subject = load(folder, {"base": Base()}, TEXTS[:1])
    assert subject.anatomy.link == ROUTED[name]
    queries = encode([Query(TEXTS[1])], subject.tokenizer)
    batch = Batch.forced(queries, subject.device)
    sites = subject.sites("router")
    got = capture(subject, subject.settings["base"], batch, None, dict.fromkeys(sites, torch.clone))
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    seen = called(plain, torch.tensor([queries[0].ids]))
    assert len(seen) == len(sites)
    for site, weights in zip(sites, seen, strict=True):
        logits, own = got.values[site].unbind(-1)
        np.testing.assert_allclose(own.numpy(), weights.numpy(), atol=1e-5)
        shares = LINKS[ROUTED[name]](logits)
        np.testing.assert_allclose(shares.sum(-1).numpy(), 1, atol=1e-6)
        if name == "gemma4_moe":  # its experts' weights are scaled one by one
            weights = weights / plain.base_model.layers[site.layer].router.per_expert_scale.detach()
        kept = shares.where(weights != 0, 0.0)
        both = [x / x.sum(-1, keepdim=True) for x in (kept, weights)]
        np.testing.assert_allclose(*(x.numpy() for x in both), atol=1e-5)


def called(model: torch.nn.Module, ids: torch.Tensor) -> list[torch.Tensor]:
    """What every layer's experts of a plain model are called with: weights `[token, expert]`."""
    found = []

    def hook(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        _, index, weights = args
        found.append(torch.zeros(len(index), 4).scatter(-1, index, weights))

    def scaled(_module: torch.nn.Module, _args: object, output: tuple[torch.Tensor, ...]) -> None:
        found.append(output[0])  # Llama 4 scales its experts' input by them

    for module_name, module in model.named_modules():
        if type(module).__name__ == "Llama4Router":
            module.register_forward_hook(scaled)
        elif module_name.endswith(".experts") and "Llama4" not in type(module).__name__:
            module.register_forward_pre_hook(hook)
    with torch.no_grad():
        model(ids)
    return found


# Runs -------------------------------------------------------------------------------------------


def test_a_router_is_read_and_not_edited(tmp_path: Path) -> None:
    subject = load(
        architectures.save_architecture("mixtral", tmp_path), {"base": Base()}, TEXTS[:1]
    )
    batch = Batch.forced(encode([Query(TEXTS[1])], subject.tokenizer), subject.device)
    with pytest.raises(ValueError, match="read, not edited"):
        subject.run(subject.settings["base"], batch, hooks={Site("router", 1): torch.zeros_like})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A LoRA on the attention of the second of three blocks, against neutral text."""
    folder = tmp_path_factory.mktemp("routing")
    model = architectures.save_architecture("mixtral", folder / "model")
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    (folder / "prompt.txt").write_text("hot is the opposite of cold. ")
    experiment = Experiment(
        model=model,
        adapter=(save_adapter(model, folder / "lora", ["q_proj", "v_proj"], layers=[1]),),
        prompt_file=(folder / "prompt.txt",),
        queries=folder / "queries.jsonl",
        controls=("neutral",),
        out=folder / "run",
        bootstrap=20,
        permutations=19,
        device="cpu",
    )
    return load_run(diverge(experiment))


def test_routing_changes_where_the_lora_sits_and_not_below(run: Run) -> None:
    table = run.table[(run.table["site"] == "router") & (run.table["condition"] == "lora")]
    assert {*table["measure"]} == {"router_js", "expert_overlap"}
    apart = table[table["measure"] == "router_js"]
    assert (apart.loc[apart["layer"] == 0, "value"] == 0).all()
    assert (apart.loc[apart["layer"] >= 1, "value"] > 0).any()
    same = table[table["measure"] == "expert_overlap"]
    assert (same.loc[same["layer"] == 0, "value"] == 1).all()
    assert (same["value"] < 1).any()


def test_routing_is_tested_against_the_neutral_prompt(run: Run) -> None:
    table = run.table[(run.table["site"] == "router") & (run.table["position"] == "last")]
    pairs = {*zip(table["condition"], table["reference"], strict=True)}
    assert {("prompt", "lora"), ("neutral", "lora")} <= pairs
    tested = table[(table["condition"] == "prompt") & (table["reference"] == "lora")]
    assert tested["p_adjusted"].notna().all()


def test_the_figure_shows_both_by_layer(run: Run) -> None:
    figure = plots.routing(run)
    titles = [axis.title.text for axis in figure.select_yaxes()]
    assert titles == ["router JS divergence [nats]", "overlap of chosen experts [share]"]
    lines = [t for t in figure.data if t.name == "prompt vs lora (headline)"]
    rows = run.table[(run.table["site"] == "router") & (run.table["position"] == "last")]
    rows = rows[(rows["condition"] == "prompt") & (rows["reference"] == "lora")]
    for line, measure in zip(lines, ("router_js", "expert_overlap"), strict=True):
        want = rows[rows["measure"] == measure].sort_values("layer")["value"]
        np.testing.assert_allclose(np.asarray(line.y, float), want)
    table = run.table[run.table["site"] != "router"]
    without = Run(run.path, table, run.arrays, run.manifest)
    with pytest.raises(NotMeasured):
        plots.routing(without)
