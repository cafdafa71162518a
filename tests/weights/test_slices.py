"""A head's slice of a module is what the model computes that head with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from tiny_models import D_HEAD, D_MODEL, N_HEADS, N_KV_HEADS
from torch import Tensor

from interp.capture import capture, keep
from interp.conditions import Base, Condition, Lora
from interp.names import Site
from interp.queries import Query, encode
from interp.subject import Batch, Subject, load
from interp.weights.slices import Piece, heads_of_module, pieces
from interp.weights.updates import update_of, weight_matrices

LAYER = 1
WITH_HEADS = {
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "gpt2": ("attn.c_attn", "attn.c_proj"),
    "neox": ("query_key_value", "attention.dense"),
    "phi3": ("qkv_proj", "o_proj"),
}
FUSED = ("attn.c_attn", "query_key_value", "qkv_proj")
TEXTS = ("the", "up is the opposite of", "lily said: yes")


class Case(NamedTuple):
    """A model with an adapter for every block of its attention's matrices."""

    subject: Subject
    planted: dict[str, tuple[str, Piece]]

    def states(self, condition: str, *names: str) -> dict[str, Tensor]:
        """Everything at these sites of the layer."""
        batch = Batch.of(encode(map(Query, TEXTS), self.subject.tokenizer))
        setting = self.subject.settings[condition]
        sites = {Site(name, LAYER): keep for name in names}
        found = capture(self.subject, setting, batch, self.subject.prefill(setting), sites)
        return {site.name: value for site, value in found.values.items()}


def one_block(source: Path, target: Path, piece: Piece) -> str:
    """A copy of an adapter that changes this block of its module alone."""
    target.mkdir()
    (target / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    tensors = load_file(source / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if piece.rows is not None and "lora_B" in name:
            kept = torch.zeros_like(tensor)
            kept[piece.rows] = tensor[piece.rows]
            tensors[name] = kept
        if piece.columns is not None and "lora_A" in name:
            kept = torch.zeros_like(tensor)
            kept[:, piece.columns] = tensor[:, piece.columns]
            tensors[name] = kept
    save_file(tensors, target / "adapter_model.safetensors")
    return str(target)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @functools.cache
    def make(architecture: str) -> Case:
        root = tmp_path_factory.mktemp(f"slices-{architecture}")
        model = tiny_models.save_model(architecture, root / "model")
        kinds = WITH_HEADS[architecture]
        whole = {
            kind: tiny_models.save_adapter(model, root / kind, [kind], [LAYER]) for kind in kinds
        }
        conditions: dict[str, Condition] = {"base": Base()}
        conditions |= {kind: Lora(folder) for kind, folder in whole.items()}
        probe = load(model, conditions, [TEXTS[1]], device="cpu")
        planted = {}
        for kind, folder in whole.items():
            module = probe.weights.adapted(probe.settings[kind])[0]
            weight = weight_matrices(probe)[module].weight
            for piece in pieces(
                heads_of_module(probe.bridge.original_model, module), module, tuple(weight.shape)
            ):
                name = f"{kind} {piece.part} {piece.head}"
                planted[name] = (module, piece)
                conditions[name] = Lora(one_block(Path(folder), root / name, piece))
        return Case(load(model, conditions, [TEXTS[1]], device="cpu"), planted)

    return make


def site_of(module: str, piece: Piece) -> str:
    """Where a block of rows is seen first."""
    return piece.part or module.split(".")[-1].partition("_")[0]


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_a_slice_of_rows_moves_its_own_head_alone(
    cases: Callable[[str], Case], architecture: str
) -> None:
    case = cases(architecture)
    base, seen = case.states("base", "q", "k", "v"), set()
    for name, (module, piece) in case.planted.items():
        if piece.rows is None:
            continue
        own = case.states(name, "q", "k", "v")
        moved = {s: (own[s] != base[s]).transpose(0, 1).flatten(1).any(1) for s in own}
        part = site_of(module, piece)
        n = len(moved[part])
        wanted = [h == piece.head or piece.head is None for h in range(n)]
        assert moved[part].tolist() == wanted, name
        assert not any(moved[other].any() for other in moved if other != part), name
        seen.add((part, piece.head))
    heads = {"q": N_HEADS, "k": N_KV_HEADS, "v": N_KV_HEADS}
    if architecture in ("gpt2", "neox"):
        heads |= {"k": N_HEADS, "v": N_HEADS}
    assert {(p, h) for p, n in heads.items() for h in range(n)} <= seen


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_a_slice_of_columns_is_what_the_head_writes(
    cases: Callable[[str], Case], architecture: str
) -> None:
    """What the attention's output gains is the slice of the update times that head's z."""
    case = cases(architecture)
    subject, base = case.subject, case.states("base", "z", "attn_out")
    seen = []
    for name, (module, piece) in case.planted.items():
        if piece.columns is None:
            continue
        own = case.states(name, "z", "attn_out")
        assert torch.equal(own["z"], base["z"])
        whole = update_of(
            subject, subject.settings[name.split()[0]], weight_matrices(subject)[module]
        )
        block = whole.part(piece.rows, piece.columns)
        assert block.matrix.shape == (D_MODEL, D_HEAD)
        gained = own["attn_out"] - base["attn_out"]
        wanted = base["z"][:, piece.head].double() @ block.matrix.T
        torch.testing.assert_close(gained.double(), wanted, atol=1e-5, rtol=1e-4)
        seen.append(piece.head)
    assert seen == list(range(N_HEADS))


@pytest.mark.parametrize("architecture", WITH_HEADS)
def test_heads_make_up_their_part_and_parts_their_module(
    cases: Callable[[str], Case], architecture: str
) -> None:
    """Every row, or column, of a module is in one head; squared norms add up."""
    case = cases(architecture)
    subject = case.subject
    for kind in WITH_HEADS[architecture]:
        module = subject.weights.adapted(subject.settings[kind])[0]
        update = update_of(subject, subject.settings[kind], weight_matrices(subject)[module])
        cfg = heads_of_module(subject.bridge.original_model, module)
        found = pieces(cfg, module, tuple(update.matrix.shape))
        norms = {(p.part, p.head): update.part(p.rows, p.columns).norm ** 2 for p in found}
        total = sum(value for (_, head), value in norms.items() if head is not None)
        assert total == pytest.approx(update.norm**2, rel=1e-9)
        parts = {part for part, _ in norms} - {""}
        assert parts == (set("qkv") if kind in FUSED else set())
        for part in parts:
            heads = sum(v for (p, head), v in norms.items() if p == part and head is not None)
            assert heads == pytest.approx(norms[part, None], rel=1e-9)
        rows = [p.rows if p.rows is not None else p.columns for p in found if p.head is not None]
        side = update.matrix.shape[0 if found[-1].rows is not None else 1]
        assert torch.cat(rows).sort().values.tolist() == list(range(side))


def test_gate_and_up_split_as_the_mlp_does() -> None:
    cfg = _Config()
    found = {p.part: p for p in pieces(cfg, "model.layers.0.mlp.gate_up_proj", (96, 32))}
    assert list(found) == ["", "gate", "up"]
    assert found["gate"].rows.tolist() == list(range(48))
    assert found["up"].rows.tolist() == list(range(48, 96))


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        ("transformer.h.0.mlp.c_proj", (32, 32)),
        ("model.layers.0.mlp.dense", (32, 32)),
        ("model.layers.0.self_attn.q_proj", (65, 32)),
        ("model.layers.0.linear_attn.out_proj", (32, 32)),
        ("model.layers.0.self_attn.qkv_proj", (96, 32)),
        ("model.layers.0.self_attn.o_proj", (32, 49)),
        ("lm_head", (363, 32)),
        ("transformer.wte", (32, 363)),
    ],
)
def test_what_is_not_split_by_head_stays_whole(module: str, shape: tuple[int, int]) -> None:
    assert [(p.part, p.head) for p in pieces(_Config(), module, shape)] == [("", None)]


def test_a_gate_belongs_to_its_head() -> None:
    """Qwen 3.5's queries have one each."""
    found = pieces(_Config(), "model.layers.0.self_attn.q_proj", (2 * N_HEADS * D_HEAD, D_MODEL))
    assert [len(p.rows) for p in found if p.head is not None] == [2 * D_HEAD] * N_HEADS


class _Config:
    n_heads, n_key_value_heads, d_head, latent = N_HEADS, N_KV_HEADS, D_HEAD, None


def test_without_heads_only_parts_are_left() -> None:
    found = pieces(_Config(), "model.layers.0.self_attn.qkv_proj", (64, 32), heads=False)
    assert [(p.part, p.head) for p in found] == [("", None), ("q", None), ("k", None), ("v", None)]
