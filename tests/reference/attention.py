"""Queries, keys and values of a forward pass, and pre-softmax scores computed again from them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .models import Seen, attention, blocks
from .numbers import Array, double, softmax


def scores_of(
    model: Any, layer: int, seen: Seen, pattern: Array, past: Array | None = None
) -> Array:
    """Pre-softmax scores `[head, pos, key]` as this model computes them, NaN where masked; checked
    against `pattern` `[head, pos, key]`. `past`: keys `[kv_head, key, d_head]` of a prefix."""
    inside = attention(blocks(model)[layer])
    q, k, _ = projected(model, layer, seen, len(pattern))
    if (rotary := seen["rotary", layer]) is not None:
        cos, sin = (double(part[0]) for part in rotary)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
    if past is not None:
        k = np.concatenate([past, k], axis=1)
    scores = q @ to_all_heads(k, len(q)).swapaxes(-1, -2) * inside.scaling
    if cap := getattr(inside, "attn_logit_softcapping", None):
        scores = np.tanh(scores / cap) * cap
    scores = np.where(visible(model, layer, *scores.shape[-2:]), scores, np.nan)
    np.testing.assert_allclose(softmax(scores), pattern, atol=1e-5, err_msg="scores: not the model")
    return scores


def values_of(
    model: Any, layer: int, seen: Seen, pattern: Array, past: Array | None = None
) -> Array:
    """Values `[head, key, d_head]`, repeated to all heads; checked against z."""
    n_heads = len(pattern)
    _, _, v = projected(model, layer, seen, n_heads)
    if past is not None:
        v = np.concatenate([past, v], axis=1)
    v = to_all_heads(v, n_heads)
    z = split(double(seen["z", layer]), v.shape[-1])
    error = 1e-5 * max(1.0, np.abs(z).max())
    np.testing.assert_allclose(pattern @ v, z, atol=error, err_msg="values: not the model")
    return v


def projected(model: Any, layer: int, seen: Seen, n_heads: int) -> tuple[Array, Array, Array]:
    """Queries, keys, values `[head, pos, d_head]`, before the rotary embedding; fewer heads of keys
    and values under GQA."""
    length, width = seen["z", layer].shape
    d_head = width // n_heads
    if ("query_key_value", layer) in seen:  # q, k, v of one head stand side by side
        fused = double(seen["query_key_value", layer]).reshape(length, n_heads, 3, d_head)
        q, k, v = fused.transpose(2, 1, 0, 3)
        return q, k, v
    for name in ("c_attn", "qkv_proj"):
        if (name, layer) in seen:
            fused = double(seen[name, layer])
            kv_width = (fused.shape[-1] - width) // 2
            q, k, v = np.split(fused, [width, width + kv_width], axis=-1)
            return split(q, d_head), split(k, d_head), split(v, d_head)
    q, k, v = (double(seen[name, layer]) for name in "qkv")
    if model.config.model_type == "gemma3_text":  # its head norms stand after the split
        return q, k, split(v, d_head)
    q, k = q.reshape(length, -1), k.reshape(length, -1)
    return split(q, d_head), split(k, d_head), split(v, d_head)


def split(flat: Array, d_head: int) -> Array:
    return flat.reshape(len(flat), -1, d_head).swapaxes(0, 1)


def to_all_heads(x: Array, n_heads: int) -> Array:
    return np.repeat(x, n_heads // len(x), axis=0)


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """The rotary embedding on the first `cos.shape[-1]` dimensions."""
    size = cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    half = np.concatenate([-turned[..., size // 2 :], turned[..., : size // 2]], axis=-1)
    return np.concatenate([turned * cos + half * sin, rest], axis=-1)


def visible(model: Any, layer: int, n_rows: int, n_keys: int) -> Array:
    """`[pos, key]`: the causal mask of the last rows, within the layer's sliding window where it
    has one."""
    kinds = getattr(model.config, "layer_types", None)
    window = getattr(model.config, "sliding_window", None)
    if kinds is not None and kinds[layer] != "sliding_attention":
        window = None
    distance = np.arange(n_keys - n_rows, n_keys)[:, None] - np.arange(n_keys)
    return (distance >= 0) & (distance < (window or n_keys + 1))
