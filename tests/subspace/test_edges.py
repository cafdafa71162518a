"""Edges against plain hooks and finite differences, the laws of their sums, what is planted."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny_models
import torch
from numpy.testing import assert_allclose
from peft import PeftModel
from subspace.plain_swap import Plainly, blocks_of
from tiny_models import D_HEAD, D_MODEL
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from interp.conditions import Base, Condition, Lora, Prompt, Steering
from interp.edges.findings import (
    ExactEdges,
    edge_agreement,
    edge_overlap,
    strongest_edges,
)
from interp.edges.nodes import Edge, InputNode, Sender, edges_between
from interp.edges.reading import receivers_of
from interp.edges.tracing import EdgeJob, patch_edges, trace
from interp.edges.writing import senders_of, what_is_written
from interp.errors import SubjectError
from interp.patching.attribution import attribute
from interp.patching.interchange import PatchMove, Sweep
from interp.queries import Query, encode
from interp.subject import Batch, load

QUERIES = [
    Query("hot -> wide", " cold is"),
    Query("up ->", " down"),
    Query("big is the opposite"),
]
ARCHITECTURES = ("gpt2", "neox", "qwen3", "gemma2", "phi3")


class Opened(NamedTuple):
    job: EdgeJob
    model: str
    adapters: dict[str, str]

    @property
    def numbers(self) -> dict[str, int]:
        return {str(edge): i for i, edge in enumerate(self.job.edges)}


def opened(model: str, conditions: Mapping[str, Condition], adapters: dict[str, str]) -> Opened:
    subject = load(model, {"base": Base(), **conditions}, ["big ->"], device="cpu")
    queries = encode(QUERIES, subject.tokenizer)
    names = list(conditions)
    moves = [PatchMove(name, "base") for name in names]
    moves += [PatchMove("base", name) for name in names]
    job = EdgeJob(
        subject,
        moves,
        names[-1],
        queries,
        {name: subject.prefill(setting) for name, setting in subject.settings.items()},
        senders_of(subject, list(subject.settings.values())),
        receivers_of(subject),
        rows=64,
        chunk=8,
    )
    return Opened(job, model, adapters)


@pytest.fixture(scope="module")
def of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Opened]:
    """A tiny model under a prompt, a LoRA on all modules, the LoRA nearly off, and a vector."""

    @functools.cache
    def make(architecture: str) -> Opened:
        folder = tmp_path_factory.mktemp(architecture)
        model = tiny_models.save_model(architecture, folder / "model")
        targets = tiny_models.all_targets(architecture)
        lora = tiny_models.save_adapter(model, folder / "lora", targets)
        vector = tiny_models.save_steering(model, folder / "vector.safetensors", size=1.0)
        conditions: dict[str, Condition] = {
            "prompt": Prompt(text="hot is the opposite of"),
            "steered": Steering(vector=vector, layer=1),
            "faint": Lora(lora, scale=0.01),
            "lora": Lora(lora),
        }
        return opened(model, conditions, {"lora": lora})

    return make


# --- what nodes write, and where it is read ------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_written_adds_up_to_the_last_state(
    of: Callable[[str], Opened], architecture: str
) -> None:
    job = of(architecture).job
    batch = Batch.forced(job.queries)
    for name in job.conditions:
        setting = job.subject.settings[name]
        found = what_is_written(job.subject, setting, batch, job.caches[name], job.senders)
        assert found.error < 1e-5


def test_an_edge_goes_forward() -> None:
    senders = [Sender("embed"), Sender("head", 0, 1), Sender("mlp", 0), Sender("head", 1, 0)]
    inputs = [
        InputNode("q", 0, 0),
        InputNode("mlp", 0),
        InputNode("mlp", 0, None, True),
        InputNode("k", 1, 0),
        InputNode("logits", 2),
    ]
    assert list(map(str, edges_between(senders, inputs))) == [
        "embed > L0H0.q",
        "embed > L0.mlp",
        "L0H1 > L0.mlp",
        "embed > L0.mlp",
        *(f"{sender} > L1H0.k" for sender in ("embed", "L0H1", "L0.mlp")),
        *(f"{sender} > logits" for sender in ("embed", "L0H1", "L0.mlp", "L1H0")),
    ]


# --- sums -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_nodes_edges_add_up_to_its_attribution(
    of: Callable[[str], Opened], architecture: str
) -> None:
    """What leaves a head, summed over everything that reads it, is what attribution patching says
    of the head: another gradient, at its z. Both conditions have the same output projections."""
    job = of(architecture).job
    found = trace(job, job.queries)["prompt", "base"]
    plan = Sweep("prompt", "lora", "base", whole=("mlp_out",), by_head=("z",), positions=())
    nodes = attribute(job.subject, plan, job.queries, job.caches)
    [nodes] = [own for own in nodes if (own.source, own.target) == ("prompt", "base")]
    sums: dict[Sender, np.ndarray] = {}
    for edge, values in zip(job.edges, found.T, strict=True):
        sums[edge.sender] = sums.get(edge.sender, 0) + values
    exact = "gemma2" not in architecture  # whose norm behind attention is held fixed
    for cell, values in zip(nodes.cells, nodes.values.T, strict=True):
        if cell.site == "mlp_out":
            assert_allclose(sums[Sender("mlp", cell.layer)], values, atol=2e-4, rtol=1e-3)
        elif exact:
            sender = Sender("head", cell.layer, cell.head)
            assert_allclose(sums[sender], values, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_faint_difference_is_first_order(of: Callable[[str], Opened], architecture: str) -> None:
    """Where the two conditions are near each other, an exactly patched edge does what its estimate
    says: heads, MLPs, biases and the embedding into every kind of input."""
    own = of(architecture)
    job, move = own.job, PatchMove("faint", "base")
    scores = trace(job, job.queries)["faint", "base"]
    chosen = _various(job, scores)
    effects = patch_edges(job, move, [job.edges[i] for i in chosen], job.queries)
    largest = np.abs(scores[:, chosen]).max()
    assert_allclose(effects, scores[:, chosen], atol=0.06 * largest)
    assert largest > 1e-4


def _various(job: EdgeJob, scores: np.ndarray) -> list[int]:
    """The strongest edge of every pair of parts."""
    best: dict[tuple[str, str], int] = {}
    for i in np.argsort(-np.abs(scores.mean(0))):
        edge = job.edges[i]
        best.setdefault((edge.sender.part, edge.receiver.part), int(i))
    return [i for i in best.values() if np.abs(scores[:, i]).max() > 1e-4]


# --- plain hooks ----------------------------------------------------------------------------------


def test_a_patched_edge_is_that_of_plain_hooks(of: Callable[[str], Opened]) -> None:
    """Prompt into the LoRA's run, a head into another's queries, keys and values and an MLP."""
    own = of("qwen3")
    job = own.job
    moves = [PatchMove("prompt", "base"), PatchMove("base", "lora")]
    names = ("L0H1 > L2H3.q", "L1H2 > L2H1.k", "L0H0 > L1H1.v", "L1H3 > L1.mlp", "L0H2 > logits")
    edges = [job.edges[own.numbers[name]] for name in names]
    for move in moves:
        found = patch_edges(job, move, edges, job.queries)
        for row, query in zip(found, job.queries, strict=True):
            speaker = _plain(own, job.speaker)
            said = _Run(speaker, query).logits.argmax(-1)
            targets = torch.tensor(query.answer_ids) if query.answer_ids else said
            source, target = (_Run(_plain(own, name), query) for name in move[:2])
            before = _odds(target.logits, targets)
            for edge, value in zip(edges, row, strict=True):
                step = source.write(edge.sender) - target.write(edge.sender)
                after = _odds(_Run(_plain(own, move.target), query, edge, step).logits, targets)
                assert value == pytest.approx(float(after - before), abs=2e-4), str(edge)
        assert np.abs(found).max() > 1e-2


def _plain(own: Opened, name: str) -> Plainly:
    prefix = tuple(own.job.subject.settings[name].prefix)
    return Plainly(own.model, own.adapters.get(name), prefix)


def _odds(logits: Tensor, targets: Tensor) -> Tensor:
    p = logits.softmax(-1).gather(-1, targets[:, None])[:, 0]
    return (p.log() - (1 - p).log()).sum()


class _Run:
    """A query's run of plain Qwen3, whole, with one receiver's input changed on the query's rows:
    the norm and the projection are called again on the changed input."""

    def __init__(
        self, plain: Plainly, query: Any, edge: Edge | None = None, step: Tensor | None = None
    ) -> None:
        self.start = len(plain.prefix)
        self.hf = plain.opened()
        self.z: dict[int, Tensor] = {}
        handles = [
            block.self_attn.o_proj.register_forward_pre_hook(self._keep(layer))
            for layer, block in enumerate(blocks_of(self.hf))
        ]
        if edge is not None and step is not None:
            handles += self._changed(edge, step)
        with torch.no_grad():
            ids = torch.tensor([[*plain.prefix, *query.forced]])
            logits = self.hf(input_ids=ids).logits[0]
        for handle in handles:
            handle.remove()
        self.logits = logits[self.start + len(query.ids) - 1 :].double()

    def _keep(self, layer: int) -> Any:
        def hook(module: Any, args: Any) -> None:
            self.z[layer] = args[0][0, self.start :].detach()

        return hook

    def write(self, sender: Sender) -> Tensor:
        """A head's write: its columns of what the output projection takes in."""
        assert sender.head is not None
        alone = torch.zeros_like(self.z[sender.layer])
        mine = slice(sender.head * D_HEAD, (sender.head + 1) * D_HEAD)
        alone[:, mine] = self.z[sender.layer][:, mine]
        with torch.no_grad():
            return blocks_of(self.hf)[sender.layer].self_attn.o_proj(alone)

    def _changed(self, edge: Edge, step: Tensor) -> list[Any]:
        receiver = edge.receiver
        if receiver.part == "logits":
            norm = self.hf.get_base_model().model.norm if isinstance(self.hf, PeftModel) else (
                self.hf.model.norm
            )  # fmt: skip
            return [norm.register_forward_pre_hook(lambda _, args: (self._added(args[0], step),))]
        block = blocks_of(self.hf)[receiver.layer]
        if receiver.part == "mlp":
            norm, module = block.post_attention_layernorm, block.mlp
            columns = slice(None)
        else:
            norm, module = block.input_layernorm, getattr(block.self_attn, f"{receiver.part}_proj")
            assert receiver.head is not None
            columns = slice(receiver.head * D_HEAD, (receiver.head + 1) * D_HEAD)
        seen: list[Tensor] = []

        def keep(_: Any, args: Any) -> None:
            if not seen:
                seen.append(args[0])

        def change(_: Any, __: Any, output: Tensor) -> Tensor:
            """From its output: the module has run on what the norm made of the unchanged input."""
            if len(seen) != 1:
                return output  # its own second call
            seen.append(seen[0])
            new = module(norm(self._added(seen[0], step)))
            output = output.clone()
            output[..., columns] = new[..., columns]
            return output

        return [norm.register_forward_pre_hook(keep), module.register_forward_hook(change)]

    def _added(self, hidden: Tensor, step: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[0, self.start :] += step
        return hidden


# --- what is planted ------------------------------------------------------------------------------


def test_the_one_edge_that_carries_it_is_found_first(tmp_path: Path) -> None:
    """A LoRA on what L0H1 writes, along a direction that only L2H2's queries read: this edge, and
    what this head then says to the logits, are all there is."""
    model = planted_model(tmp_path / "model")
    lora = planted_lora(model, tmp_path / "lora")
    own = opened(model, {"lora": Lora(lora)}, {"lora": lora})
    job = own.job
    for move in (("lora", "base"), ("base", "lora")):
        scores = trace(job, job.queries)[move]
        chain = [own.numbers[name] for name in ("L0H1 > L2H2.q", "L2H2 > logits")]
        order, sizes = strongest_edges(scores, 3), np.abs(scores.mean(0))
        assert {*order[:2]} == {*chain}
        assert sizes[order[2]] < 0.1 * sizes[order[:2]].min()  # norms see it a little
        exact = patch_edges(job, PatchMove(*move), [job.edges[i] for i in chain], job.queries)
        assert np.abs(exact).mean(0).min() > 1e-3


def planted_model(folder: Path) -> str:
    """Qwen3 whose last coordinate of the stream is written by L0H1 and read by L2H2's queries
    alone. The norms' scale sees every coordinate, but this one is small beside the others."""
    config = dict(tiny_models.CONFIGS["qwen3"][1])
    model = tiny_models.save_random_model(
        Qwen3Config, {**config, "tie_word_embeddings": False}, folder
    )
    hf = AutoModelForCausalLM.from_pretrained(model)
    last, h = D_MODEL - 1, slice(D_HEAD, 2 * D_HEAD)
    with torch.no_grad():
        hf.model.embed_tokens.weight *= 30  # the scale of a norm hardly sees what is planted
        hf.model.embed_tokens.weight[:, last] = 0
        hf.lm_head.weight[:, last] = 0
        for layer, block in enumerate(hf.model.layers):
            attention, mlp = block.self_attn, block.mlp
            for part in (attention.q_proj, attention.k_proj, attention.v_proj):
                part.weight[:, last] = 0
            for part in (mlp.gate_proj, mlp.up_proj):
                part.weight[:, last] = 0
            attention.o_proj.weight[last] = 0
            mlp.down_proj.weight[last] = 0
            if layer == 0:
                attention.o_proj.weight[:, h] = 0
                attention.o_proj.weight[last, h] = 1
            if layer == 2:
                mlp.down_proj.weight[:] = 0
                mine = slice(2 * D_HEAD, 3 * D_HEAD)
                attention.q_proj.weight[mine, last] = 20 * torch.randn(D_HEAD)
    hf.save_pretrained(folder)
    return model


def planted_lora(model: str, folder: Path) -> str:
    """On the output projection of layer 0: what it adds is along the planted coordinate alone,
    and comes from L0H1 alone."""
    folder = Path(tiny_models.save_adapter(model, folder, ["o_proj"], layers=[0]))
    hf = AutoModelForCausalLM.from_pretrained(model)
    peft = PeftModel.from_pretrained(hf, str(folder))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_A" in name:
                parameter[:, :D_HEAD] = 0
                parameter[:, 2 * D_HEAD :] = 0
            if "lora_B" in name:
                parameter[: D_MODEL - 1] = 0
    peft.save_pretrained(str(folder))
    return str(folder)


# --- findings -------------------------------------------------------------------------------------


def some_edges(layers: int = 4, heads: int = 4) -> list[Edge]:
    senders = [Sender("head", layer, h) for layer in range(layers) for h in range(heads)]
    receivers = [InputNode("q", layer, h) for layer in range(1, layers) for h in range(heads)]
    return edges_between(senders, receivers)


def test_the_same_edges_overlap_and_others_do_not() -> None:
    edges, rng = some_edges(), np.random.default_rng(0)
    own = rng.normal(size=(1, len(edges))) ** 3
    scores = {
        ("prompt", "base"): np.repeat(own, 3, 0),
        ("lora", "base"): np.repeat(own * 1.1, 3, 0),
        ("neutral", "base"): np.repeat(rng.permutation(own[0])[None], 3, 0),
    }
    found = edge_overlap(scores, edges, "base", top=10, permutations=99, seed=0)
    by_pair = {(e["condition"], e["reference"]): e for e in found}
    assert by_pair["prompt", "lora"]["share"] == 1
    assert by_pair["prompt", "lora"]["p"] == pytest.approx(0.01)
    assert by_pair["prompt", "neutral"]["p"] > 0.05


def test_layers_alone_are_no_evidence() -> None:
    """Edges whose sizes say only between which layers they are."""
    edges, rng = some_edges(), np.random.default_rng(1)
    size = np.array([10.0**edge.receiver.layer for edge in edges])
    scores = {
        (name, "base"): (size * rng.uniform(1, 2, len(edges)))[None] for name in ("prompt", "lora")
    }
    [found] = edge_overlap(scores, edges, "base", top=20, permutations=199, seed=0)
    assert found["rank_correlation"] > 0.7
    assert found["rank_p"] > 0.05


def test_agreement_counts_signs_and_ranks() -> None:
    scores = {("lora", "base"): np.array([[1.0, -2.0, 3.0, 0.5]])}
    exact = {("lora", "base"): ExactEdges(np.array([0, 1, 2]), np.array([[0.5, 1.0, 2.0]]))}
    [found] = edge_agreement(scores, exact)
    assert found["same_sign"] == pytest.approx(2 / 3)
    assert found["spearman"] == pytest.approx(0.5)


def test_what_cannot_be_reached_is_refused_by_name(of: Callable[[str], Opened]) -> None:
    from dataclasses import replace

    subject = of("qwen3").job.subject
    gated = replace(subject, anatomy=replace(subject.anatomy, mixed=False))
    with pytest.raises(SubjectError, match=r"cannot be traced, a gate .*`interp patch`"):
        receivers_of(gated)
    scaled = replace(subject, anatomy=replace(subject.anatomy, stream=(1.0, 0.5, 1.0)))
    with pytest.raises(SubjectError, match="scale the residual stream"):
        receivers_of(scaled)


def test_a_reader_that_is_left_out_is_noticed(of: Callable[[str], Opened]) -> None:
    job = of("qwen3").job
    fewer = [r for r in job.receivers if (r.part, r.layer, r.head) != ("v", 1, 0)]
    with pytest.raises(SubjectError, match=r"not all that reads L1\.resid_pre"):
        trace(job._replace(receivers=fewer), job.queries)
