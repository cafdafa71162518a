"""Contexts exchanged, and how far keys and values are apart, against plain Hugging Face + peft."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from tiny_models import save_adapter, save_model, save_prefix
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import Experiment, Patching, Run, diverge, load_run, patch, plots
from interp.conditions import Base, Lora, Prefix, Prompt
from interp.patching.contexts import EXCHANGED_PARTS, Contexts
from interp.report.patching_lines import patch_table
from interp.runs.view import NotMeasured
from interp.subject import Subject, load

TEXTS = ["hot is the", "big is the opposite of", "the river is wide and"]
NAMES = ("one", "two")
KEY = ["condition", "reference", "site", "layer"]


@dataclass(frozen=True)
class Case:
    """A run of two prefix tunings, patched; and the same by plain Hugging Face."""

    run: Run
    model: Any
    ids: list[list[int]]
    contexts: dict[str, Any]

    @property
    def layers(self) -> list[int]:
        return [*range(len(self.contexts["one"].layers))]

    def logits(self, context: Any) -> np.ndarray:
        """At every query's last token, float64."""
        found = []
        for ids in self.ids:
            cache = copy.deepcopy(context)
            start = cache.get_seq_length()
            with torch.no_grad():
                out = self.model(
                    torch.tensor([ids]),
                    past_key_values=cache,
                    position_ids=torch.arange(start, start + len(ids))[None],
                    attention_mask=torch.ones(1, start + len(ids)),
                )
            found.append(out.logits[0, -1].double().numpy())
        return np.stack(found)

    def mixed(self, source: str, target: str, site: str, layers: list[int]) -> Any:
        cache = copy.deepcopy(self.contexts[target])
        for layer, part in itertools.product(layers, EXCHANGED_PARTS[site]):
            setattr(cache.layers[layer], part, getattr(self.contexts[source].layers[layer], part))
        return cache


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen3", "gemma2"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    name = save_model(request.param, folder / "model")
    prefixes = {n: save_prefix(name, folder / n, seed=i) for i, n in enumerate(NAMES)}
    (folder / "queries.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    experiment = Experiment(
        model=name,
        conditions={n: {"prefix": {"adapter": where}} for n, where in prefixes.items()},
        queries=folder / "queries.jsonl",
        controls=(),
        keys_values=True,
        out=folder / "run",
        bootstrap=20,
        permutations=19,
        device="cpu",
    )
    diverge(experiment)
    patching = Patching(run=folder / "run", sites=(), head_sites=(), positions=0)
    patch(patching.model_copy(update={"attribution": False, "greedy": 0, "permutations": 19}))
    words = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="eager").eval()
    bos = words("")["input_ids"]
    contexts = {n: context(model, name, where, bos) for n, where in prefixes.items()}
    ids = [words(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    return Case(load_run(folder / "run"), model, ids, contexts)


def context(model: Any, name: str, prefix: str, bos: list[int]) -> Any:
    """The cache of what precedes the query, by plain Hugging Face and peft."""
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), prefix).eval()
    with torch.no_grad():
        cache = peft.get_prompt(1)
        if bos:
            n = cache.get_seq_length()
            model(
                torch.tensor([bos]),
                past_key_values=cache,
                position_ids=torch.arange(n, n + len(bos))[None],
                attention_mask=torch.ones(1, n + len(bos)),
                use_cache=True,
            )
    return cache


def kl(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    logs = [x - x.max(-1, keepdims=True) for x in (a, b)]
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logs)
    return (np.exp(p) * (p - q)).sum(-1)


def rows(run: Run, measure: str, **kept: Any) -> pd.DataFrame:
    table = run.table[(run.table["measure"] == measure) & (run.table["position"] == "context")]
    for name, value in kept.items():
        table = table[table[name] == value]
    return table


def test_every_exchange_is_the_reference(case: Case) -> None:
    said = {name: case.logits(case.contexts[name]) for name in NAMES}
    damage, recovery = (rows(case.run, measure) for measure in ("damage", "recovery"))
    assert len(damage) == len(recovery) == 2 * 3 * (len(case.layers) + 1)
    for (_, d), (_, r) in zip(damage.iterrows(), recovery.iterrows(), strict=True):
        assert d[KEY].astype(str).tolist() == r[KEY].astype(str).tolist()
        source, target = d["condition"], d["reference"]
        layers = case.layers if d["layer"] is pd.NA else [int(d["layer"])]
        patched = case.logits(case.mixed(source, target, d["site"], layers))
        assert d["value"] == pytest.approx(kl(said[target], patched).mean(), abs=1e-5)
        apart = kl(said[source], said[target]).sum()
        want = 1 - kl(said[source], patched).sum() / apart
        assert r["value"] == pytest.approx(want, abs=1e-4)
        assert d["n"] == len(TEXTS)


def test_a_whole_context_under_the_same_weights_is_the_source(case: Case) -> None:
    whole = rows(case.run, "recovery", site="kv")
    whole = whole[whole["layer"].isna()]
    assert whole["value"].tolist() == pytest.approx([1, 1], abs=1e-6)
    assert rows(case.run, "damage")["value"].max() > 0.01


def test_an_exchange_is_tested_against_its_random_difference(case: Case) -> None:
    assert rows(case.run, "damage")["p_adjusted"].notna().all()
    for control in ("random_direction", "random_difference"):
        assert len(rows(case.run, f"damage_{control}")) == len(rows(case.run, "damage"))


def test_distances_of_contexts_are_the_reference(case: Case) -> None:
    found = rows(case.run, "relative_l2", condition="one", reference="two")
    assert len(found) > 0
    assert found["n"].isna().all()
    assert found["ci_low"].isna().all()
    for _, row in found.iterrows():
        part = {"k": "keys", "v": "values"}[row["site"]]
        x, y = (
            getattr(case.contexts[name].layers[row["layer"]], part)[0, row["head"]].double().numpy()
            for name in NAMES
        )
        norms = [np.linalg.norm(each, axis=-1) for each in (x, y)]
        want = np.linalg.norm(x - y, axis=-1) / (sum(norms) / 2)
        assert row["value"] == pytest.approx(want.mean(), abs=1e-5)


def test_distances_of_the_querys_keys_and_values_are_the_reference(case: Case) -> None:
    """Keys behind the norm of a head and before the rotary embedding."""
    states = {name: list(query_states(case, name)) for name in NAMES}
    table = case.run.table[case.run.table["site"].isin(["k", "v"])]
    table = table[(table["condition"] == "one") & (table["reference"] == "two")]
    table = table[(table["measure"] == "relative_l2") & table["position"].isin(["last", "mean"])]
    assert {*table["site"]} == {"k", "v"}
    for _, row in table.iterrows():
        values = []
        for one, two in zip(*states.values(), strict=True):
            x, y = (s[row["site"], row["layer"]][:, row["head"]] for s in (one, two))
            norms = np.linalg.norm(x, axis=-1) + np.linalg.norm(y, axis=-1)
            apart = np.linalg.norm(x - y, axis=-1) / (norms / 2)
            values += [apart[-1]] if row["position"] == "last" else [*apart]
        assert row["value"] == pytest.approx(np.mean(values), abs=1e-4)


def query_states(case: Case, name: str) -> Iterator[dict[tuple[str, int], np.ndarray]]:
    """Of every query: (site, layer) -> `[pos, kv_head, d_head]`, by hooks on plain modules."""
    seen: dict[tuple[str, int], np.ndarray] = {}
    config = case.model.config
    n = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    d = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def hook(site: str, layer: int, column: int = 0) -> Any:
        def keep(_module: Any, _args: Any, out: torch.Tensor) -> None:
            rows = out[0].reshape(out.shape[1], -1).double().numpy()
            seen[site, layer] = rows[:, column : column + n * d].reshape(len(rows), n, d)

        return keep

    handles = []
    blocks = getattr(case.model.base_model, "layers", None) or case.model.base_model.h
    for layer, block in enumerate(blocks):
        if hasattr(block, "attn"):  # GPT-2: queries, keys, values side by side
            for place, site in enumerate("kv", 1):
                hooked = hook(site, layer, place * n * d)
                handles.append(block.attn.c_attn.register_forward_hook(hooked))
            continue
        attention = block.self_attn
        keys = getattr(attention, "k_norm", None) or attention.k_proj
        handles.append(keys.register_forward_hook(hook("k", layer)))
        handles.append(attention.v_proj.register_forward_hook(hook("v", layer)))
    single = Case(case.run, case.model, [], case.contexts)
    try:
        for ids in case.ids:
            seen.clear()
            Case(single.run, single.model, [ids], single.contexts).logits(case.contexts[name])
            yield dict(seen)
    finally:
        for handle in handles:
            handle.remove()


def test_what_was_found_is_said_and_drawn(case: Case) -> None:
    console = Console(width=500)
    with console.capture() as captured:
        console.print(patch_table(case.run))
    words = " ".join(captured.get().split())
    for source, target in (NAMES, NAMES[::-1]):
        found = rows(case.run, "damage", condition=source, reference=target)
        found = found[found["layer"].isna()].set_index("site")["value"]
        assert f"Context, {source} → {target}, exchanged in all layers" in words
        assert f"keys {found['k']:.3g}"[:9] in words
    figure = plots.interchange_contexts(case.run)
    drawn = [t for t in figure.data if t.name == "values"]
    assert [len(t.x) for t in drawn] == 2 * [len(case.layers), 1]
    assert drawn[1].x[0] == len(case.layers)


# What cannot be exchanged ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("contexts")
    model = save_model("qwen3", folder / "model")
    conditions = {
        "base": Base(),
        "short": Prompt(text="hot is the opposite"),
        "long": Prompt(text="hot is the opposite of cold and"),
        "lora": Lora(save_adapter(model, folder / "lora", ["k_proj", "v_proj"], layers=[0])),
        "prefix": Prefix(save_prefix(model, folder / "prefix")),
    }
    conditions["both"] = conditions["short"] + conditions["lora"]
    return load(model, conditions, TEXTS[:1])


@pytest.mark.parametrize(
    ("a", "b", "possible"),
    [
        ("short", "long", False),
        ("short", "lora", False),
        ("short", "short", False),
        ("lora", "base", False),
        ("short", "both", True),
    ],
)
def test_contexts_of_as_many_tokens_that_differ_are_exchanged(
    subject: Subject, a: str, b: str, possible: bool
) -> None:
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    plan = Contexts.of(subject, a, b, caches)
    assert (plan is not None) == possible


def test_only_what_a_cell_names_is_exchanged_and_controls_go_as_far(subject: Subject) -> None:
    caches = {name: subject.prefill(subject.settings[name]) for name in ("short", "both")}
    plan = Contexts.of(subject, "short", "both", caches)
    assert plan is not None
    for move, cell in itertools.product(plan.moves, plan.cells):
        target, source = caches[move.target].layers, caches[move.source].layers
        mixed = plan.cache(move, cell, caches).layers
        named = [cell.layer] if cell.position == "context" else plan.every
        for layer, part in itertools.product(range(3), ("keys", "values")):
            now, before, there = (getattr(c[layer], part) for c in (mixed, target, source))
            if layer not in named or part not in EXCHANGED_PARTS[cell.site]:
                assert torch.equal(now, before)
            elif not move.control:
                assert torch.equal(now, there)
            else:
                moved, far = ((x - before).norm(dim=-1) for x in (now, there))
                torch.testing.assert_close(moved, far, atol=1e-5, rtol=1e-4)


def test_every_so_many_layers(subject: Subject) -> None:
    caches = {name: subject.prefill(subject.settings[name]) for name in ("short", "both")}
    plan = Contexts.of(subject, "short", "both", caches, every=2)
    assert plan is not None
    assert (plan.layers, plan.every) == ((0, 2), (0, 1, 2))


def test_a_run_without_exchanged_contexts_has_no_such_figure(case: Case) -> None:
    table = case.run.table[case.run.table["position"] != "context"]
    with pytest.raises(NotMeasured):
        plots.interchange_contexts(Run(case.run.path, table, case.run.arrays, case.run.manifest))
