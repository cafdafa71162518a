"""Where a booted model's sites are, and how its blocks and its head are put together.

    anatomy = Anatomy.of(bridge)
    anatomy.layers("z")                       # the layers that have heads
    anatomy.points[Site("v", 3)].hook         # "blocks.3.attn.hook_v"

What differs between architectures is found by looking at the modules, or by asking them
(`ask`), not by the name of the architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.conditions import Setting
from interp.names import HOOKS, Site
from interp.subject import routers

if TYPE_CHECKING:
    from interp.subject import Batch, Subject

_WRITES = ("attn_out", "mixer_out", "mlp_out", "per_layer_out")
"""What a block adds to the residual stream."""

_View = Callable[[Any], Tensor]


@dataclass(frozen=True)
class _Point:
    """A site's hook, and how its value is turned to `[batch, query_pos, head, d_head]` and back,
    where the model has it otherwise. `module`: whose output is read instead of a hook's value."""

    hook: str
    inward: _View | None = None
    outward: _View | None = None
    module: nn.Module | None = None

    def seen(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor | None]:
        """The hook, on the value turned; what it returns is turned back."""
        if self.inward is None:
            return hook
        inward, outward = self.inward, self.outward

        def turned(value: Tensor) -> Tensor | None:
            new = hook(inward(value))
            return new if new is None or outward is None else outward(new)

        return turned


@dataclass(frozen=True)
class Anatomy:
    """The sites of a booted model, and how its parts go together.

    `value_layers`: layer -> the layer whose values its heads mix, where that is another one.
    `stream`: by layer, the factor of what enters a block in what leaves it; `written`: the factor
    of what it adds, where that is not 1 (of z: of the output projection's output in `attn_out`);
    `logits`: of the unembedding's output in the logits. `sinks`: attention rows sum to less than 1,
    the rest being a learned sink's. `mixed`: z is what the heads mix, pattern times values;
    otherwise a gate or a norm stands between. `wrapped`: blocks return their output in a tuple.
    `plain_mlps`: every block has an MLP that returns a tensor of the shape of what it is given.
    `link`: how routers' logits become shares of experts (a name of `routers.LINKS`); "" where they
    are not understood.
    """

    points: Mapping[Site, _Point]
    value_layers: Mapping[int, int] = field(default_factory=dict)
    stream: tuple[float, ...] = ()
    written: Mapping[Site, float] = field(default_factory=dict)
    logits: float = 1.0
    sinks: bool = False
    mixed: bool = True
    wrapped: bool = False
    plain_mlps: bool = False
    link: str = ""

    @classmethod
    def of(cls, bridge: Any) -> Anatomy:
        """Looks for every site in every block."""
        points = {}
        for layer, block in enumerate(bridge.blocks):
            heads = getattr(block, "attn", None)
            for name, hooks in HOOKS.items():
                if name == "mixer_out" and heads is not None:
                    continue
                known = (f"blocks.{layer}.{hook}" for hook in hooks if _called(hook, heads))
                if found := next((hook for hook in known if hook in bridge.hook_dict), None):
                    views = _views(name, found, heads, bridge.cfg)
                    points[Site(name, layer)] = _Point(found, *views)
            if router := routers.router_of(block):
                points[Site("router", layer)] = _Point("", routers.routed, module=router)
        shared = _value_layers(bridge)
        read = {
            site: p
            for site, p in points.items()
            if site.name not in "kv" or site.layer not in shared
        }
        return cls(read, shared)

    def sites(self, name: str) -> list[Site]:
        """The site `name` of every layer that has it."""
        return [site for site in self.points if site.name == name]

    def layers(self, name: str) -> tuple[int, ...]:
        """The layers that have a site of this name."""
        return tuple(site.layer for site in self.sites(name))

    def values_of(self, layer: int) -> Site:
        """The values that a layer's heads mix."""
        return Site("v", self.value_layers.get(layer, layer))

    def reads_below(self, layer: int) -> bool:
        """Whether a block from this one on reads keys and values of a block below it."""
        return any(source < layer <= reader for reader, source in self.value_layers.items())

    def reaching(self, layer: int, name: str | None = None) -> float:
        """The factor with which the last block's output has what a block adds at a site (without
        one: what leaves it)."""
        names = {"z": ("z", "attn_out"), None: ()}.get(name, (name,))
        own = math.prod(self.written.get(Site(str(n), layer), 1.0) for n in names)
        return math.prod(self.stream[layer + 1 :], start=own)


def _called(hook: str, attention: Any) -> bool:
    """Hooks behind the norms of queries and keys are there without any norm, too."""
    return not hook.endswith("_normed") or _norm_of(hook, attention) is not None


def _norm_of(hook: str, attention: Any) -> Any:
    """The norm of the queries or keys of which a hook shows the result."""
    return getattr(attention, f"{hook.removesuffix('_normed')[-1]}_norm", None)


def _views(name: str, hook: str, attention: Any, cfg: Any) -> tuple[_View, _View] | tuple[()]:
    """Latent attention (DeepSeek) has heads before positions, and z in rows of another width. So
    have norms of every head's query and key by itself; norms of all together see rows."""
    from transformer_lens.model_bridge.generalized_components.mla_attention import (
        MLAAttentionBridge,
    )

    if hook.endswith("_normed"):
        by_head = _norm_of(hook, attention).original_component.weight.shape[-1] == cfg.d_head
        rows = (
            (lambda value: value.unflatten(2, (-1, cfg.d_head))),
            (lambda value: value.flatten(2)),
        )
        return (_turned, _turned) if by_head else rows
    if not isinstance(attention, MLAAttentionBridge):
        return ()
    if name in ("q", "k", "v"):
        return _turned, _turned
    if name == "z":
        return _rows_of(cfg.n_heads), lambda z: z.flatten(2).unflatten(2, (-1, cfg.d_head))
    return ()


def _rows_of(n: int) -> _View:
    return lambda value: value.flatten(2).unflatten(2, (n, -1))


def _turned(value: Tensor) -> Tensor:
    return value.transpose(1, 2)


def _value_layers(bridge: Any) -> dict[int, int]:
    """Gemma's last layers read the keys and values of the last layer of their type that has its
    own: their hooks are there, but never called."""
    kept: dict[str, int] = {}
    shared = {}
    for layer, block in enumerate(bridge.blocks):
        attention = getattr(getattr(block, "attn", None), "original_component", None)
        kind = str(getattr(attention, "layer_type", ""))
        if getattr(attention, "is_kv_shared_layer", False) and kind in kept:
            shared[layer] = kept[kind]
        else:
            kept[kind] = layer
    return shared


def ask(subject: Subject, batch: Batch) -> Anatomy:
    """What a run of the bare base on one query tells of how its parts go together."""
    anatomy, bare = subject.anatomy, Setting()
    values: dict[Site, Tensor] = {}

    def keeping(site: Site) -> Callable[[Tensor], None]:
        def keep(value: Tensor) -> None:
            turned = value.transpose(1, 2) if site.name in ("v", "z") else value
            values[site] = turned.detach().clone()

        return keep

    asked = ("resid_pre", "resid_post", *_WRITES, "v", "z", "pattern", "router")
    hooks = {site: keeping(site) for site in anatomy.points if site.name in asked}
    returned: list[Any] = []
    mlps = [block.mlp for block in subject.blocks if getattr(block, "mlp", None) is not None]
    plain: list[bool] = []
    handles = [
        subject.blocks[0].register_forward_hook(lambda *seen: returned.append(seen[2])),
        *(mlp.register_forward_hook(lambda *seen: plain.append(_alike(*seen[1:]))) for mlp in mlps),
    ]
    try:
        logits = subject.run(bare, batch, hooks=hooks)
    finally:
        for handle in handles:
            handle.remove()
    end = values[Site("resid_post", subject.n_layers - 1)]
    with torch.no_grad(), subject.weights.of(bare):
        said = subject.unembed(subject.final_norm(end))
    if subject.cap is not None:
        logits = subject.cap * torch.atanh(logits / subject.cap)
    stream: list[float] = []
    written: dict[Site, float] = {}
    for layer in range(subject.n_layers):
        adding = [Site(name, layer) for name in _WRITES if Site(name, layer) in values]
        parts = [values[Site("resid_pre", layer)], *(values[site] for site in adding)]
        first, *rest = _factors(parts, values[Site("resid_post", layer)])
        stream.append(first)
        written |= {site: by for site, by in zip(adding, rest, strict=True) if by != 1}
    written |= _of_heads(subject, values)
    patterns, routed = (
        [value for site, value in values.items() if site.name == name]
        for name in ("pattern", "router")
    )
    return replace(
        anatomy,
        stream=tuple(stream),
        written=written,
        logits=_factors([said], logits)[0],
        sinks=any(bool((pattern.sum(-1) < _SUM).any()) for pattern in patterns),
        mixed=all(_mixes(anatomy, values, layer) for layer in anatomy.layers("pattern")),
        wrapped=isinstance(returned[0], tuple),
        plain_mlps=len(plain) == subject.n_layers and all(plain),
        link=routers.link_of(routed),
    )


def _of_heads(subject: Subject, values: Mapping[Site, Tensor]) -> dict[Site, float]:
    """The factor of the output projection's output in `attn_out`, where it is not 1."""
    written: dict[Site, float] = {}
    for layer in subject.anatomy.layers("z"):
        block = subject.blocks[layer]
        if getattr(block, "ln1_post", None) is None:
            with torch.no_grad(), subject.weights.of(Setting()):
                out = block.attn.o.original_component(_flat(values[Site("z", layer)]))
            [by] = _factors([out], values[Site("attn_out", layer)])
            written |= {Site("z", layer): by} if by != 1 else {}
    return written


def _alike(given: tuple[Any, ...], returned: Any) -> bool:
    """Whether a module returns one tensor of the shape of the one that it is given."""
    return len(given) == 1 and torch.is_tensor(returned) and returned.shape == given[0].shape


def _flat(z: Float[Tensor, "batch head query_pos d_head"]) -> Tensor:
    """What the output projection reads."""
    return z.transpose(1, 2).flatten(2)


_SUM = 0.98
"""Attention rows that sum to less have a learned sink: no rounding takes so much from 1."""


def _factors(parts: Sequence[Tensor], whole: Tensor) -> list[float]:
    """The factors with which parts add up to a whole (least squares); 1 where the number format
    cannot tell it from 1."""
    slack = torch.finfo(whole.dtype).eps ** 0.5 / 3
    columns = torch.stack([part.double().flatten() for part in parts], dim=1)
    found = torch.linalg.lstsq(columns, whole.double().flatten()[:, None]).solution[:, 0].tolist()
    return [1.0 if abs(by - 1) < slack else by for by in found]


def _mixes(anatomy: Anatomy, values: Mapping[Site, Tensor], layer: int) -> bool:
    """Whether z is pattern times values, up to the number format's rounding."""
    pattern, z = values[Site("pattern", layer)], values[Site("z", layer)]
    own = values[anatomy.values_of(layer)]
    mixed = pattern @ own.repeat_interleave(z.shape[1] // own.shape[1], dim=1)
    bound = torch.finfo(z.dtype).eps ** 0.5 * z.float().square().mean().sqrt()
    return mixed.shape == z.shape and bool((mixed - z).abs().max() <= bound)
