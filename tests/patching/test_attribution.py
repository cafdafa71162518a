"""First-order effects against differences of patched runs, TransformerLens, and their laws."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import tiny_models
import torch
from numpy.testing import assert_allclose, assert_array_equal
from tiny_models import CONFIGS
from torch import Tensor
from transformer_lens.tools.analysis.attribution_patching import Node, attribution_patch

from interp.capture import capture
from interp.conditions import Base, Condition, FineTuned, Lora, Prefix, Prompt, Steering
from interp.edits import Edit
from interp.engines import InProcess
from interp.errors import ConfigError
from interp.measures.output import log_odds
from interp.names import Site
from interp.patching.attribution import (
    Attribution,
    agreement,
    attribute,
    attribution_rows,
    spearman,
)
from interp.patching.effects import Effects, Resampling
from interp.patching.interchange import Sweep, partners, run_interchange
from interp.patching.job import Job
from interp.patching.patched import patched_logits
from interp.patching.sites import PatchSite
from interp.patching.stages import estimated
from interp.progress import no_progress
from interp.queries import Encoded, Query, encode
from interp.store import Store
from interp.subject import Batch, Subject, load

QUERIES = [
    Query("hot -> wide", " cold"),
    Query("up ->", " down"),
    Query("big is the opposite"),
    Query("a hill", " is"),
]
LENGTH = 8
"""More tokens than any query has."""
PLACES = tuple(map(str, range(LENGTH)))
SEGMENTS = ("query", "answer")
WHOLE = ("resid_post", "attn_out", "mlp_out", "z")
BY_HEAD = ("z", "pattern", "q", "k", "v")


class Opened(NamedTuple):
    subject: Subject
    queries: list[Encoded]
    caches: dict[str, Any]

    def attribute(self, plan: Sweep) -> dict[tuple[str, str], Attribution]:
        found = attribute(self.subject, plan, self.queries, self.caches)
        return {(own.source, own.target): own for own in found}


def opened(model: str, conditions: Mapping[str, Condition]) -> Opened:
    subject = load(model, conditions, ["big ->"], device="cpu")
    queries = encode(QUERIES, subject.tokenizer)
    assert max(len(query.ids) for query in queries) < LENGTH
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    return Opened(subject, queries, caches)


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Opened]:
    """A tiny model of an architecture under conditions of every kind."""

    @functools.cache
    def make(architecture: str) -> Opened:
        folder = tmp_path_factory.mktemp(architecture)
        model = tiny_models.save_model(architecture, folder / "model")
        targets = tiny_models.all_targets(architecture)
        lora = Lora(tiny_models.save_adapter(model, folder / "lora", targets))
        prompt = Prompt(text="hot is the")
        vector = tiny_models.save_steering(model, folder / "vector.safetensors", size=1.0)
        conditions: dict[str, Condition] = {
            "base": Base(),
            "prompt": prompt,
            "again": prompt,
            "lora": lora,
            "both": prompt + Lora(lora.adapter, scale=0.5),
            "other": Prompt(text="hot is hot") + Lora(lora.adapter, scale=0.5),
            "steered": Steering(vector=vector, layer=1),
            **{f"at {scale}": Lora(lora.adapter, scale=scale) for scale in (0.04, 0.02, 0.01)},
        }
        if architecture in ("gpt2", "qwen3"):
            tuned = tiny_models.save_model(architecture, folder / "tuned", seed=5)
            conditions["tuned"] = FineTuned(tuned)
        if architecture == "llama":
            conditions["prefix"] = Prefix(tiny_models.save_prefix(model, folder / "prefix"))
        return opened(model, conditions)

    return make


# --- against exact patched runs -------------------------------------------------------------------


def rows(query: Encoded) -> range:
    """Those that predict the answer's tokens; the last of the query without one."""
    return range(len(query.ids) - 1, len(query.ids) - 1 + max(1, len(query.answer_ids)))


def values(own: Opened, name: str, sites: set[Site]) -> tuple[Tensor, dict[Site, Tensor]]:
    """A condition's logits at all answers' tokens and its values, heads before positions."""

    def read(site: Site) -> Callable[[Tensor], Tensor]:
        by_head = site.name in ("q", "k", "v", "z")
        return lambda value: (value.transpose(1, 2) if by_head else value).detach().clone()

    setting, batch = own.subject.settings[name], Batch.forced(own.queries)
    reading = {site: read(site) for site in sites}
    got = capture(own.subject, setting, batch, own.caches[name], reading)
    read_out = [x[i] for x, query in zip(got.logits, own.queries, strict=True) for i in rows(query)]
    return torch.stack(read_out), got.values


def mixed(
    cell: PatchSite, theirs: Tensor, share: float, queries: list[Encoded], width: int
) -> Edit:
    """A share of the way from the target's own value to the source's."""
    value = theirs if cell.head is None else theirs[:, cell.head]

    def mix(mine: Tensor) -> Tensor:
        new = value
        if cell.site == "pattern":
            content = value[..., -width:] / value[..., -width:].sum(-1, keepdim=True)
            content = mine[..., -width:].sum(-1, keepdim=True) * content
            new = torch.cat([mine[..., :-width], content], dim=-1)
        return mine + share * (new - mine)

    where = None
    if cell.position != "all":
        where = torch.zeros(len(queries), width, dtype=torch.bool)
        for mask, query in zip(where, queries, strict=True):
            last = len(query.ids) - 1
            segments = {"query": [*range(last)], "answer": [*rows(query)], "last": [last]}
            index = [] if cell.position in segments else [i for i in [int(cell[3])] if i <= last]
            mask[segments.get(cell.position, index)] = True
    return Edit(Site(cell.site, cell.layer), mix, cell.head, where)


def slopes(own: Opened, plan: Sweep, found: Attribution, step: float = 0.01) -> np.ndarray:
    """`[query, cell]`: how fast the answer's log-odds change when the source's values are mixed in,
    by differences of exact runs (five points: the error is of fourth order)."""
    subject, batch = own.subject, Batch.forced(own.queries)
    sites = {Site(cell.site, cell.layer) for cell in found.cells}
    theirs = values(own, found.source, sites)[1]
    entries = values(own, found.target, set(subject.sites("resid_pre")))[1]
    said = values(own, plan.b, set())[0].argmax(-1)
    given = torch.tensor([token for q in own.queries for token in q.answer_ids or (-1,)])
    answers = torch.where(given < 0, said, given)
    owner = torch.tensor([i for i, query in enumerate(own.queries) for _ in rows(query)])
    patches = [
        [mixed(cell, theirs[Site(cell.site, cell.layer)], share, own.queries, batch.ids.shape[1])]
        for cell in found.cells
        for share in (step, -step, 2 * step, -2 * step)
    ]
    odds = np.empty((len(patches), len(own.queries)))
    setting, cache = subject.settings[found.target], own.caches[found.target]
    for numbers, logits in patched_logits(
        subject, setting, batch, cache, entries, patches, rows=256
    ):
        found_odds = log_odds(logits, answers.expand(len(numbers), -1))
        for i in range(len(own.queries)):
            odds[numbers, i] = found_odds[:, owner == i].sum(-1)
    near, less, far, lesser = odds.reshape(len(found.cells), 4, -1).transpose(1, 2, 0)
    return (8 * (near - less) - (far - lesser)) / (12 * step)


@pytest.mark.parametrize(
    ("architecture", "a", "b"),
    [
        *((architecture, "prompt", "lora") for architecture in CONFIGS),
        ("gpt2", "both", "tuned"),
        ("qwen3", "both", "tuned"),
        ("llama", "prefix", "steered"),
    ],
)
def test_is_the_slope_of_exact_patched_runs(
    of: Callable[[str], Opened], architecture: str, a: str, b: str
) -> None:
    own = of(architecture)
    middle = () if architecture == "neox" else ("resid_mid",)
    plan = Sweep(a, b, "base", (*WHOLE, *middle), BY_HEAD, ("last", "1"), segments=SEGMENTS)
    for move in ((a, b), (b, a), (a, "base")):
        found = own.attribute(plan)[move]
        some = np.array([cell.layer != 1 for cell in found.cells])  # every kind of cell, fewer runs
        cells = tuple(cell for cell, keep in zip(found.cells, some, strict=True) if keep)
        found = Attribution(*move, cells, found.values[:, some])
        exact = slopes(own, plan, found)
        assert_allclose(found.values, exact, rtol=5e-3, atol=1e-3)
        assert np.mean(np.abs(exact) > 0.01) > 0.5


def test_is_the_exact_change_where_the_edit_is_small(of: Callable[[str], Opened]) -> None:
    """The error is of second order: half the LoRA, a quarter of the error."""
    own = of("qwen3")
    errors, changes = [], []
    for name in ("at 0.04", "at 0.02", "at 0.01"):
        plan = Sweep(name, "lora", "base", WHOLE[:3], BY_HEAD, ("0", "last"))
        others = [own.queries[i] for i in partners([q.key for q in own.queries], 0)]
        exact = run_interchange(own.subject, plan, own.queries, others, own.caches, rows=256)
        done = next(e for e in exact if (e.source, e.target, e.control) == (name, "base", ""))
        change = done.log_odds - done.target_odds[:, None]
        found = own.attribute(plan)[name, "base"]
        assert found.cells[: len(done.cells)] == done.cells
        errors.append(np.abs(found.values[:, : len(done.cells)] - change).max())
        changes.append(np.abs(change).max())
    assert errors[2] < 0.35 * errors[1] < 0.35**2 * errors[0]
    assert errors[2] < 0.1 * changes[2]


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "gemma3"])
def test_heads_and_positions_add_up(of: Callable[[str], Opened], architecture: str) -> None:
    own = of(architecture)
    plan = Sweep("prompt", "lora", "base", WHOLE, ("z",), (*PLACES, "last"), segments=SEGMENTS)
    for move in own.attribute(plan).values():
        by = dict(zip(move.cells, move.values.T, strict=True))

        def total(site: str, layer: int, heads: Sequence[int | None], at: Sequence[str]) -> Any:
            parts = [by[PatchSite(site, layer, head, place)] for head in heads for place in at]  # noqa: B023
            return np.nansum(parts, axis=0)

        everyone = range(own.subject.n_heads)
        for layer in range(own.subject.n_layers):
            z = by[PatchSite("z", layer, None, "all")]
            assert_allclose(total("z", layer, everyone, ["all"]), z, atol=1e-12)
            assert_allclose(total("z", layer, everyone, SEGMENTS), z, atol=1e-12)
            whole = by[PatchSite("resid_post", layer, None, "all")]
            assert_allclose(total("resid_post", layer, [None], SEGMENTS), whole, atol=1e-12)
            alone = total("resid_post", layer, [None], PLACES)
            until_last = total("resid_post", layer, [None], ("query", "last"))
            assert_allclose(alone, until_last, atol=1e-12)
            same_output_projection = "lora" not in (move.source, move.target)
            if same_output_projection and architecture != "gemma3":  # whose attn_out is normalised
                attn_out = by[PatchSite("attn_out", layer, None, "all")]
                assert_allclose(z, attn_out, rtol=1e-3, atol=1e-4)


def test_the_same_condition_attributes_nothing(of: Callable[[str], Opened]) -> None:
    found = of("gemma2").attribute(Sweep("prompt", "again", "base", WHOLE, BY_HEAD, ("0", "last")))
    for move in (("prompt", "again"), ("again", "prompt")):
        assert_array_equal(np.nan_to_num(found[move].values), 0)
    assert np.abs(found["prompt", "base"].values).max() > 0.1


def test_undefined_where_a_query_has_no_token(of: Callable[[str], Opened]) -> None:
    own = of("qwen3")
    found = own.attribute(Sweep("prompt", "lora", "base", ("resid_post",), (), PLACES))
    lengths = np.array([len(query.ids) for query in own.queries])
    for move in found.values():
        for cell, column in zip(move.cells, move.values.T, strict=True):
            absent = cell.position != "all" and int(cell.position) >= lengths
            assert_array_equal(np.isnan(column), np.broadcast_to(absent, len(lengths)))
    assert {cell.site for cell in move.cells} == {
        "resid_post",
        "z",
    }  # heads without a sweep of them


def test_a_query_has_its_own_gradient_whatever_stands_beside_it(
    of: Callable[[str], Opened], tmp_path: Path
) -> None:
    """Alone, in one batch, and in the shards of a run (also those of an earlier attempt)."""
    own = of("phi3")
    plan = Sweep("both", "lora", "base", WHOLE[:3], BY_HEAD, ("0", "last"))
    together = own.attribute(plan)
    job = Job(own.subject, plan, own.queries, own.caches, rows=own.subject.n_layers)
    assert job.backward_chunk == 1
    with Store.open(tmp_path, {}) as store:
        first = estimated(job, InProcess(job), store, no_progress)
        emptied = job._replace(caches={})
        again = estimated(emptied, InProcess(emptied), store, no_progress)
    for alone, kept in zip(first, again, strict=True):
        whole = together.pop((alone.source, alone.target))
        assert whole.cells == alone.cells == kept.cells
        assert_allclose(alone.values, whole.values, rtol=1e-3, atol=1e-4)
        assert_array_equal(kept.values, alone.values)
    assert not together


def test_leaves_nothing_behind(of: Callable[[str], Opened], tmp_path: Path) -> None:
    own = of("gpt2")
    trainable = opened(
        tiny_models.save_model("gpt2", tmp_path / "model"),
        {"base": Base(), "prompt": Prompt(text="hot"), "other": Prompt(text="hot is the")},
    )
    assert any(p.requires_grad for p in trainable.subject.weights.parameters.values())
    for each, a, b in ((own, "tuned", "lora"), (trainable, "prompt", "other")):
        before = values(each, b, set())[0]
        each.attribute(Sweep(a, b, "base", WHOLE, BY_HEAD, ("0",)))
        rows = Sweep("prompt", b, "base", (), ("pattern",), (), pattern="row")
        with pytest.raises(ConfigError, match="as many keys"):
            each.attribute(rows)
        assert_array_equal(values(each, b, set())[0], before)
        assert all(p.grad is None for p in each.subject.bridge.parameters())
        assert not any(point.fwd_hooks for point in each.subject.bridge.hook_dict.values())
        assert not any(point.bwd_hooks for point in each.subject.bridge.hook_dict.values())
        assert torch.is_grad_enabled()


# --- against TransformerLens ----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_equals_transformer_lens_under_one_lora(
    of: Callable[[str], Opened], architecture: str
) -> None:
    """Two prompts of one length, one state of the weights: its nodes are our cells. It needs a
    parameter that asks for gradients, which a model under peft has not."""
    own = of(architecture)
    subject = own.subject
    subject.bridge.original_model.get_input_embeddings().weight.requires_grad_(True)
    before = {name: subject.settings[name].prefix for name in ("both", "other")}
    n_prefix = len(before["both"])
    assert n_prefix == len(before["other"])
    own = own._replace(queries=[query for query in own.queries if query.answer_ids])
    found = own.attribute(Sweep("both", "other", "base", ("mlp_out",), (), PLACES))["both", "other"]
    by = dict(zip(found.cells, found.values.T, strict=True))
    for number, query in enumerate(own.queries):
        answer = torch.tensor(query.answer_ids)
        clean, corrupt = (torch.tensor([[*ids, *query.forced]]) for ids in before.values())
        with subject.weights.of(subject.settings["both"]):
            scores = attribution_patch(
                subject.bridge,
                clean,
                corrupt,
                lambda logits, answer=answer: log_odds(logits[0, -len(answer) :], answer).sum(),
            ).node_scores
        for layer in range(subject.n_layers):
            for place in range(len(query.ids)):
                for head in range(subject.n_heads):
                    node = Node("attn_head_out", n_prefix + place, layer, head)
                    here = by[PatchSite("z", layer, head, str(place))][number]
                    assert here == pytest.approx(scores[node], rel=1e-3, abs=1e-4)
            mlp = [scores[Node("mlp_out", n_prefix + i, layer)] for i in range(len(query.forced))]
            here = by[PatchSite("mlp_out", layer, None, "all")][number]
            assert here == pytest.approx(sum(mlp), rel=1e-3, abs=1e-4)


# --- what comes of it -----------------------------------------------------------------------------

CELLS = (
    *(PatchSite("resid_post", layer, None, "all") for layer in range(4)),
    *(PatchSite("resid_post", layer, None, at) for layer in range(4) for at in ("0", "1")),
    *(PatchSite("z", layer, head, "all") for layer in range(4) for head in range(3)),
)


def exact(change: np.ndarray) -> Effects:
    """Effects of a move from a to b that changed the log-odds so."""
    nothing = np.zeros(len(change))
    odds = nothing + 0.7
    return Effects("a", "b", "", CELLS, change, change, change + 0.7, nothing, odds, odds)


def test_agreement_is_spearmans_correlation_of_means_by_site() -> None:
    draw = np.random.default_rng(0)
    change = draw.standard_normal((6, len(CELLS)))
    change[3:, [5, 7]] = np.nan  # queries without this position
    estimate = change + draw.standard_normal(change.shape)
    more = (*CELLS, PatchSite("z", 0, 0, "last"))  # what was not swept has nothing to agree with
    found = Attribution("a", "b", more, np.column_stack([estimate, estimate[:, 0]]))
    records = agreement([found], [exact(change)])
    assert [(r["site"], r["by"], r["cells"]) for r in records] == [
        ("resid_post", "layer", 4),
        ("resid_post", "position", 8),
        ("z", "head", 12),
    ]
    x, y = np.nanmean(estimate, axis=0), np.nanmean(change, axis=0)
    for record, place in zip(records, (slice(0, 4), slice(4, 12), slice(12, 24)), strict=True):
        assert (record["source"], record["target"]) == ("a", "b")
        want = scipy.stats.spearmanr(x[place], y[place]).statistic
        assert record["spearman"] == pytest.approx(want)
    turned = Attribution("a", "b", CELLS, -(change**3)[[0]])
    assert all(
        record["spearman"] == pytest.approx(-1)
        for record in agreement([turned], [exact(change[[0]])])
    )


def test_a_flat_ranking_agrees_with_nothing() -> None:
    change = np.random.default_rng(1).standard_normal((5, len(CELLS)))
    flat = Attribution("a", "b", CELLS, np.ones_like(change))
    assert {r["spearman"] for r in agreement([flat], [exact(change)])} == {None}
    assert np.isnan(spearman([1.0, 2.0], [1.0, 2.0]))
    assert np.isnan(spearman([1.0, 2.0, np.nan], [1.0, 2.0, 3.0]))
    assert spearman([1.0, 2.0, 2.0, 5.0], [0.0, 7.0, 7.0, 8.0]) == pytest.approx(1)


def test_rows_are_means_over_the_queries_that_have_the_place() -> None:
    draw = np.random.default_rng(2)
    values = draw.standard_normal((40, len(CELLS)))
    values[30:, 4] = np.nan
    scale = Resampling.of([str(i) for i in range(40)], 200, 0, seed=0, tolerance=0.02)
    table = attribution_rows([Attribution("a", "b", CELLS, values)], scale)
    assert set(table["measure"]) == {"attribution"}
    assert set(table["units"]) == {"nats"}
    assert set(zip(table["condition"], table["reference"], strict=True)) == {("a", "b")}
    assert_allclose(table["value"], np.nanmean(values, axis=0))
    assert table["n"].tolist() == [40] * 4 + [30] + [40] * 19
    inside = (table["ci_low"] < table["value"]) & (table["value"] < table["ci_high"])
    assert inside.all()
    assert table["head"].isna().sum() == 12
