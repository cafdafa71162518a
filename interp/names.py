"""The names of places inside a transformer, parsed and printed here and nowhere else.

>>> Head.parse("L5H3")
Head(layer=5, head=3)
>>> str(Site("resid_post", 2))
'L2.resid_post'

The vocabulary is TransformerLens's; `mixer_out`, `per_layer_out` and `router` are ours. Where a
model has a site is found at load (`interp.subject.anatomy`). Torch-free.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from interp.errors import ConfigError

HOOKS = {
    "resid_pre": ("hook_in",),
    "resid_mid": ("hook_resid_mid",),
    "resid_post": ("hook_out",),
    "attn_out": ("hook_attn_out",),
    "mixer_out": tuple(f"{name}.hook_out" for name in ("linear_attn", "conv", "mamba", "mixer")),
    "mlp_out": ("hook_mlp_out",),
    "per_layer_out": ("post_per_layer_input_norm.hook_out",),
    "router": (),
    "q": ("attn.hook_q_normed", "attn.hook_q"),
    "k": ("attn.hook_k_normed", "attn.hook_k"),
    "v": ("attn.v_norm.hook_out", "attn.hook_v"),
    "z": ("attn.hook_z",),
    "attn_scores": ("attn.hook_attn_scores",),
    "pattern": ("attn.hook_pattern",),
}
"""Site name -> TransformerLens's hook in a block, the first that is there; in computing order.

`mixer_out`: what a block's linear attention, state space or convolution writes in the place of
attention; `per_layer_out`: what its per-layer embedding writes (Gemma 4); `router`: what a mixture
of experts gives to each of them, found by its modules (`interp.subject.routers`)."""

OUTPUT = "output"
"""The site of what the model says: its next-token distribution."""


@dataclass(frozen=True, order=True)
class Site:
    """One activation of one block: a name of `HOOKS` and a 0-based layer."""

    name: str
    layer: int

    def __post_init__(self) -> None:
        if self.name not in HOOKS:
            raise ConfigError(f"unknown site {self.name!r}: choose from {', '.join(HOOKS)}")

    def __str__(self) -> str:
        return f"L{self.layer}.{self.name}"


@dataclass(frozen=True, order=True)
class Head:
    """One attention head, printed and parsed as `L5H3` (0-based layer and head)."""

    layer: int
    head: int

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read `L5H3`; a ConfigError says what was expected otherwise."""
        match = re.fullmatch(r"[Ll](\d+)[Hh](\d+)", text.strip())
        if match is None:
            raise ConfigError(
                f"not a head: {text!r} (write layer and head like L5H3, counted from 0)"
            )
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


def short_name(model: str) -> str:
    """A model's name for people: its hub id, or the last two parts of its folder."""
    return "/".join(Path(model).parts[-2:])


Pair = tuple[str, str | None]
"""(condition, reference); the reference is None for a measure of one condition."""


def pair_name(pair: Pair) -> str:
    """`prompt vs lora`, or the condition alone."""
    condition, reference = pair
    return condition if reference is None else f"{condition} vs {reference}"
