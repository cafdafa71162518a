"""The names of places inside a transformer, parsed and printed here and nowhere else.

>>> Head.parse("L5H3")
Head(layer=5, head=3)
>>> str(Site("resid_post", 2)), Site("z", 0).hook
('L2.resid_post', 'blocks.0.attn.hook_z')

The vocabulary is TransformerLens's. Torch-free.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from interp.errors import ConfigError

HOOKS = {
    "resid_pre": "blocks.{layer}.hook_in",
    "resid_mid": "blocks.{layer}.hook_resid_mid",
    "resid_post": "blocks.{layer}.hook_out",
    "attn_out": "blocks.{layer}.hook_attn_out",
    "mlp_out": "blocks.{layer}.hook_mlp_out",
    "q": "blocks.{layer}.attn.hook_q",
    "k": "blocks.{layer}.attn.hook_k",
    "v": "blocks.{layer}.attn.hook_v",
    "z": "blocks.{layer}.attn.hook_z",
    "attn_scores": "blocks.{layer}.attn.hook_attn_scores",
    "pattern": "blocks.{layer}.attn.hook_pattern",
}
"""Site name -> hook name, in the order in which a block computes them (k and v beside q)."""

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

    @property
    def hook(self) -> str:
        """The TransformerLens hook name, e.g. `blocks.5.attn.hook_pattern`."""
        return HOOKS[self.name].format(layer=self.layer)

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
