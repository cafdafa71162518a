"""Which rows and columns of a module's matrix belong to q, k, v, o, gate, up and to their heads.

    module = "transformer.h.0.attn.c_attn"
    for piece in pieces(heads_of_module(subject.hf_model, module), module, (96, 32)):
        update.part(piece.rows, piece.columns)

Queries are split by head (with its gate, where it has one), keys and values by key/value head
(fewer under grouped queries), the output projection by the head whose z it reads. Fused projections
split as the model splits them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from interp.subject.fused import MLP_SPLITS, attention_splits

SEPARATE = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "q_b_proj": "q"}
"""Projections that are a module of their own."""

RECURRENT = ("linear_attn", "conv", "mamba")
"""Names of what mixes tokens without heads; its projections have no parts."""

OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense")
"""Names of the attention's output projection (of one inside an attention module)."""


class Piece(NamedTuple):
    """A block of a matrix `[d_out, d_in]`: the part's name, its head (None: all of them), and which
    rows and columns are its own (None: all)."""

    part: str
    head: int | None = None
    rows: Tensor | None = None
    columns: Tensor | None = None

    def of(self, matrix: Tensor) -> Tensor:
        """This block of a matrix."""
        matrix = matrix if self.rows is None else matrix[self.rows]
        return matrix if self.columns is None else matrix[:, self.columns]


class _Heads(NamedTuple):
    """How one attention's matrices are divided. `latent`: the widths of a head's key, as far as it
    comes of the latent, and of its value (DeepSeek)."""

    n_heads: int
    d_head: int
    n_key_value_heads: int
    latent: tuple[int, int] | None = None


def heads_of_module(hf: Any, module: str) -> _Heads:
    """Those of the attention that a module of a model belongs to; they may differ by layer."""
    config = hf.config.get_text_config()
    attention = hf.get_submodule(module.rpartition(".")[0])
    n_heads = int(config.num_attention_heads)
    d_head = int(getattr(attention, "head_dim", 0) or config.hidden_size // n_heads)
    if groups := getattr(attention, "num_key_value_groups", None):
        n_keys = n_heads // groups
    elif (fused := getattr(attention, "query_key_value", None)) is not None:
        n_keys = (fused.out_features // d_head - n_heads) // 2
    else:
        n_keys = vars(config).get("num_key_value_heads") or n_heads
    key, value = (getattr(attention, name, None) for name in ("qk_nope_head_dim", "v_head_dim"))
    latent = None if key is None or value is None else (int(key), int(value))
    return _Heads(n_heads, d_head, int(n_keys), latent)


def pieces(cfg: Any, module: str, shape: tuple[int, int], heads: bool = True) -> list[Piece]:
    """The matrix itself (`part` is ""), the parts of a fused one, and (`heads`) their heads.

    `cfg` has the fields of `_Heads`. A matrix whose size is not what its name promises has no
    parts.
    """
    *_, parent, name = ["", "", *module.split(".")]
    found = [Piece("")]
    if parent in RECURRENT:
        return found
    if name in MLP_SPLITS:
        parts = zip(("gate", "up"), MLP_SPLITS[name](torch.arange(shape[0])), strict=True)
        found += [Piece(part, rows=rows) for part, rows in parts]
    elif "attn" in parent or "attention" in parent:
        for part, rows in _fused(cfg, name, shape[0]).items():
            found.append(Piece(part, rows=rows))
            found += _by_head(cfg, part, rows) if heads else ()
        if heads and name in SEPARATE:
            own = _by_head(cfg, SEPARATE[name], torch.arange(shape[0]))
            found += (piece._replace(part="") for piece in own)
        if heads and name in OUTPUTS and shape[1] % cfg.n_heads == 0:
            columns = torch.arange(shape[1]).view(cfg.n_heads, -1)
            found += [Piece("", head, columns=its) for head, its in enumerate(columns)]
    return found


def _fused(cfg: Any, name: str, d_out: int) -> dict[str, Tensor]:
    """Part -> its rows, ordered by head, of a fused projection; none of any other module."""
    if name == "kv_b_proj" and cfg.latent is not None:
        by_head = torch.arange(d_out).view(cfg.n_heads, -1)
        key, value = (rows.flatten() for rows in by_head.split(cfg.latent, dim=1))
        return {"k": key, "v": value}
    split = attention_splits(cfg).get(name)
    size = (cfg.n_heads + 2 * _kv_heads(cfg)) * cfg.d_head
    if split is None or d_out != size:
        return {}
    return dict(zip("qkv", split(torch.arange(d_out)), strict=True))


def _by_head(cfg: Any, part: str, rows: Tensor) -> Iterator[Piece]:
    n = cfg.n_heads if part == "q" else _kv_heads(cfg)
    if len(rows) % n == 0:
        for head, own in enumerate(rows.view(n, -1)):
            yield Piece(part, head, own)


def _kv_heads(cfg: Any) -> int:
    return int(cfg.n_key_value_heads or cfg.n_heads)
