"""Modules by the names people use: `L3 up` for `model.layers.3.mlp.up_proj`.

    named(rows)[["name", "kind"]]

`c_attn:q` is the part of a fused module that makes the queries.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_ORDER: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn")
_ORDER += ("o_proj", "out_proj", "dense", "gate_proj", "up_proj", "c_fc", "fc1", "down_proj", "fc2")


def labelled(parts: pd.DataFrame) -> pd.DataFrame:
    """Rows whose `site` is a module's path, with columns `name` (`L3 up`), `kind` (`up`), `group`
    (`mlp`, its place in the block) and `order` (of the kinds, as they are computed)."""
    paths = parts["site"].astype(str).tolist()
    short = _short(list(dict.fromkeys(paths)))
    kinds = [short[path] for path in paths]
    whole = [kind.partition(":")[0] for kind in kinds]
    order = [_ORDER.index(kind) if kind in _ORDER else len(_ORDER) for kind in whole]
    kinds = [kind if "." in kind else kind.removesuffix("_proj") for kind in kinds]
    layers = parts["layer"].to_numpy(dtype=float, na_value=np.nan)
    names = [
        kind if np.isnan(layer) else f"L{layer:.0f} {kind}"
        for layer, kind in zip(layers, kinds, strict=True)
    ]
    groups = [["", *_inside(path).split(".")][-2] for path in paths]
    return parts.assign(name=names, kind=kinds, group=groups, order=order)


def _inside(path: str) -> str:
    """A module's path within its block: `self_attn.q_proj`."""
    return re.split(r"\.\d+\.", path, maxsplit=1)[-1]


def _short(paths: Sequence[str]) -> dict[str, str]:
    """The shortest end of each path that tells the modules of a block apart."""
    inside = {path: _inside(path).split(".") for path in paths}
    own = {tuple(parts) for parts in inside.values()}

    def end(parts: Sequence[str]) -> str:
        for size in range(1, len(parts)):
            if sum(tuple(parts[-size:]) == other[-size:] for other in own) == 1:
                return ".".join(parts[-size:])
        return ".".join(parts)

    return {path: end(parts) for path, parts in inside.items()}
