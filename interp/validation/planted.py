"""Adapters whose first effect is known, and the search for where two runs first differ.

    places = places_of("path/to/model")                   # every part and head that can be planted
    folder = plant("path/to/model", out, {places[7]: 1.0})
    found = first_difference(subject, "base", "planted", batch)
    is_located(found, [places[7]])                           # the very site, and the very head

Whatever is computed before a planted place, must be the same bits in both runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interp.capture import capture, keep
from interp.errors import SubjectError
from interp.names import Site
from interp.subject import Batch, Subject
from interp.subject.loading import without_weights
from interp.weights.slices import OUTPUTS, RECURRENT, SEPARATE, Piece, heads_of_module, pieces

_RANK = 2
FIRST = {
    "q": "q", "k": "k", "v": "v", "o": "attn_out", "mixer": "mixer_out", "mlp": "mlp_out",
    "per_layer": "per_layer_out",
}  # fmt: skip
"""Part -> the site at which an adapter on it is first seen. `mixer`: a recurrence or convolution;
`per_layer`: Gemma's per-layer inputs."""

_LATENTS = {"q_a_proj": "q", "kv_a_proj_with_mqa": "k"}
"""Projections to latents, of which all heads are made; keys come before values."""

_PER_LAYER = ("per_layer_input_gate", "per_layer_projection")

_MLPS = ("ffn", "feed_forward")
"""Names of MLPs that do not contain "mlp"."""

_OF_EXPERTS = (".gate_proj", ".up_proj", ".down_proj")
"""Where experts are stacked tensors, peft puts adapters on modules of these names on them."""

_ORDER = (
    "resid_pre", "q", "k", "v", "pattern", "z", "attn_out", "mixer_out", "resid_mid", "mlp_out",
    "per_layer_out", "resid_post",
)  # fmt: skip
"""Sites of a block in the order in which it computes them."""


class PlantedPlace(NamedTuple):
    """A part of one block (one of `FIRST`), one head's slice of it or (None) all of it, and the
    block of a module's matrix `[d_out, d_in]` that this is."""

    layer: int
    part: str
    head: int | None
    module: str
    shape: tuple[int, int]
    piece: Piece

    @property
    def key(self) -> tuple[int, int]:
        """When it is computed: layer and site."""
        return self.layer, _ORDER.index(FIRST[self.part])

    def __str__(self) -> str:
        return f"L{self.layer}.{self.part}" + ("" if self.head is None else f".{self.head}")


def places_of(model: str, **hub: Any) -> list[PlantedPlace]:
    """Everything in a model's blocks that can be planted; its weights are not read."""
    hf = without_weights(model, hub)
    decoder = set(hf.get_decoder().modules())
    stacked = any(p.ndim == 3 and n.endswith("gate_up_proj") for n, p in hf.named_parameters())
    modules = [
        (name, module)
        for name, module in hf.named_modules()
        if module in decoder and not (stacked and name.endswith(_OF_EXPERTS))
    ]
    found = [place for name, module in modules for place in _places(name, module, hf)]
    if not found:
        raise SubjectError(
            f"{model}: none of its projections has a known name, nothing to plant on"
        )
    return found


def _places(name: str, module: nn.Module, hf: Any) -> Iterator[PlantedPlace]:
    numbered = re.search(r"\.(\d+)\.", name)
    if numbered is None or not isinstance(module, nn.Linear | Conv1D):
        return
    rows, columns = module.weight.shape
    shape = (columns, rows) if isinstance(module, Conv1D) else (rows, columns)
    for piece in pieces(heads_of_module(hf, name), name, shape):
        if part := _part(name, piece):
            yield PlantedPlace(int(numbered[1]), part, piece.head, name, shape, piece)


def _part(name: str, piece: Piece) -> str:
    """Which of `FIRST` a piece belongs to; "" where it is of several, or unknown."""
    parent, last = name.split(".")[-2:]
    if piece.part:
        return piece.part if piece.part in FIRST else ""
    if parent in RECURRENT:
        return "mixer"
    if "mlp" in parent or parent in _MLPS or last in ("fc1", "fc2"):
        return "mlp"
    if last in _PER_LAYER:
        return "per_layer"
    if not any(word in parent for word in ("attn", "attention")):
        return ""
    return (SEPARATE | _LATENTS).get(last) or ("o" if last in OUTPUTS else "")


def plant(model: str, folder: Path, sizes: Mapping[PlantedPlace, float], seed: int = 0) -> str:
    """A random LoRA on these places (one per module), saved; returns the folder.

    Before a layer whose input has root mean square 1, a size is that of the change it makes.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for place, size in sizes.items():
        down, up = _factors(place, generator)
        prefix = f"base_model.model.{place.module}"
        tensors[f"{prefix}.lora_A.weight"], tensors[f"{prefix}.lora_B.weight"] = down, size * up
    if len(tensors) < 2 * len(sizes):
        raise ValueError("two places are of the same module")
    folder.mkdir(parents=True)
    LoraConfig(
        r=_RANK,
        lora_alpha=_RANK,
        target_modules=[place.module for place in sizes],
        task_type="CAUSAL_LM",
        base_model_name_or_path=model,
    ).save_pretrained(str(folder))
    save_file(tensors, folder / "adapter_model.safetensors")
    return str(folder)


def _factors(place: PlantedPlace, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """`A [rank, d_in]` and `B [d_out, rank]`, 0 outside the place's columns and rows."""
    d_out, d_in = place.shape
    columns = torch.arange(d_in) if place.piece.columns is None else place.piece.columns
    rows = torch.arange(d_out) if place.piece.rows is None else place.piece.rows
    down, up = torch.zeros(_RANK, d_in), torch.zeros(d_out, _RANK)
    drawn = torch.randn(_RANK, len(columns), generator=generator)
    down[:, columns] = drawn / len(columns) ** 0.5
    up[rows] = torch.randn(len(rows), _RANK, generator=generator) / _RANK**0.5
    return down, up


class Difference(NamedTuple):
    """The first site that is not the same to the bit, and its heads that are not (q, k, v)."""

    site: Site | None
    heads: tuple[int, ...] = ()


def site_states(subject: Subject, condition: str, batch: Batch) -> dict[Site, Tensor]:
    """Every site of `_ORDER` that the architecture has, in computing order."""
    points, layers = subject.anatomy.points, range(subject.n_layers)
    every = [Site(name, layer) for layer in layers for name in _ORDER]
    sites = [site for site in every if site in points]
    setting = subject.settings[condition]
    read = dict.fromkeys(sites, keep)
    values = capture(subject, setting, batch, subject.prefill(setting), read).values
    return {site: values[site] for site in sites}


def first_difference(a: Mapping[Site, Tensor], b: Mapping[Site, Tensor]) -> Difference:
    """Where two conditions' `site_states` first differ in any bit."""
    for site, value in a.items():
        if not torch.equal(value, b[site]):
            if site.name not in "qkv":
                return Difference(site)
            moved = (value != b[site]).movedim(1, 0).flatten(1).any(1)
            return Difference(site, tuple(moved.nonzero().flatten().tolist()))
    return Difference(None)


def is_located(found: Difference, planted: Collection[PlantedPlace]) -> bool:
    """Whether a difference is exactly where the earliest of these places is.

    Places of one site (another head's slice, another of the MLP's matrices) count together.
    """
    first = min(place.key for place in planted)
    here = [place for place in planted if place.key == first]
    if found.site != Site(FIRST[here[0].part], here[0].layer):
        return False
    heads = {place.head for place in here}
    return not found.heads or None in heads or set(found.heads) == heads
