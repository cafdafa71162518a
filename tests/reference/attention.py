"""Queries, keys and values of a forward pass, and pre-softmax scores computed again from them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from .models import Seen, attention, blocks, by_function, head_layers, norm_of
from .numbers import Array, double, softmax

MASKED = -1e30
"""What a mask adds to the score of a masked key, or less."""


class Given(NamedTuple):
    """What a model's own attention function is given for a layer, rotary embedding and head norms
    behind it, and the pattern and the mix of values that it makes of it; without the batch."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor
    scale: float
    mixed: torch.Tensor
    pattern: torch.Tensor


@contextmanager
def overheard(model: Any, seen: Seen) -> Iterator[None]:
    """Note what the attention function of a model `by_function` is given and gives."""
    if not by_function(model):
        yield
        return
    code = sys.modules[type(model).__module__]
    own = code.eager_attention_forward

    def noting(
        module: Any, q: Any, k: Any, v: Any, mask: Any, *, scaling: float, **more: Any
    ) -> Any:
        mixed, pattern = own(module, q, k, v, mask, scaling=scaling, **more)
        tensors = (q[0], k[0], v[0], mask[0, 0])
        seen["given", module.layer_idx] = Given(*tensors, scaling, mixed[0], pattern[0])
        return mixed, pattern

    code.eager_attention_forward = noting
    try:
        yield
    finally:
        code.eager_attention_forward = own


def patterns(model: Any, seen: Seen, shown: Any) -> list[Array]:
    """Of every layer that has heads; `shown`: what the model shows of its own accord."""
    if by_function(model):
        return [double(seen["given", layer].pattern) for layer in head_layers(model)]
    return [double(pattern[0]) for pattern in shown]


def scores_given(model: Any, layer: int, given: Given) -> Array:
    """As `scores_of`, from what the attention function is given; a learned sink is one more score
    in every row."""
    q, k, mask = double(given.q), double(given.k), double(given.mask)
    scores = q @ to_all_heads(k, len(q)).swapaxes(-1, -2) * given.scale
    scores = np.where(mask < MASKED, np.nan, scores)
    whole = scores
    if (sinks := getattr(attention(blocks(model)[layer]), "sinks", None)) is not None:
        column = np.broadcast_to(double(sinks)[:, None, None], (*scores.shape[:-1], 1))
        whole = np.concatenate([scores, column], axis=-1)
    pattern, found = double(given.pattern), softmax(whole)[..., : scores.shape[-1]]
    np.testing.assert_allclose(found, pattern, atol=1e-5, err_msg="scores: not the model")
    return scores


def values_given(model: Any, layer: int, seen: Seen) -> Array:
    """As `values_of`; also checked against what the heads mix, before a gate or a norm."""
    given = seen["given", layer]
    pattern, v = double(given.pattern), double(given.v)
    v = to_all_heads(v, len(pattern))
    mixed = pattern @ v
    z = split(double(seen["z", layer]), v.shape[-1])
    for found, wanted in (
        (mixed, double(given.mixed).swapaxes(0, 1)),
        (behind(model, layer, seen, mixed), z),
    ):
        error = 1e-5 * max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(found, wanted, atol=error, err_msg="values: not the model")
    return v


def behind(model: Any, layer: int, seen: Seen, mixed: Array) -> Array:
    """What the output projection reads of what the heads mix `[head, pos, d_head]`."""
    inside, d_head = attention(blocks(model)[layer]), mixed.shape[-1]
    if hasattr(inside, "attn_sub_norm"):  # BitNet
        flat = mixed.swapaxes(0, 1).reshape(mixed.shape[1], -1)
        return split(norm_of(inside.attn_sub_norm)(flat), d_head)
    if model.config.model_type == "qwen3_5_text":  # a head's gate stands behind its query
        gate = split(double(seen["q", layer]), 2 * d_head)[..., d_head:]
        return mixed / (1 + np.exp(-gate))
    return mixed


def scores_of(
    model: Any, layer: int, seen: Seen, pattern: Array, past: Array | None = None
) -> Array:
    """Pre-softmax scores `[head, pos, key]` as this model computes them, NaN where masked; checked
    against `pattern` `[head, pos, key]`. `past`: keys `[kv_head, key, d_head]` of a prefix."""
    if by_function(model):
        return scores_given(model, layer, seen["given", layer])
    inside = attention(blocks(model)[layer])
    q, k, _ = projected(model, layer, seen, len(pattern))
    if (rotary := seen["rotary", layer]) is not None:
        cos, sin = (double(part[0]) for part in rotary)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
    if past is not None:
        k = np.concatenate([past, k], axis=1)
    scale = getattr(inside, "scaling", q.shape[-1] ** -0.5)
    scores = q @ to_all_heads(k, len(q)).swapaxes(-1, -2) * scale
    if cap := getattr(inside, "attn_logit_softcapping", None):
        scores = np.tanh(scores / cap) * cap
    scores = np.where(visible(model, layer, *scores.shape[-2:]), scores, np.nan)
    np.testing.assert_allclose(softmax(scores), pattern, atol=1e-5, err_msg="scores: not the model")
    return scores


def values_of(
    model: Any, layer: int, seen: Seen, pattern: Array, past: Array | None = None
) -> Array:
    """Values `[head, key, d_head]`, repeated to all heads; checked against z."""
    if by_function(model):
        return values_given(model, layer, seen)
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
    if ("query_key_value", layer) in seen:  # the queries of a key, it and its value side by side
        n_keys = getattr(attention(blocks(model)[layer]), "num_kv_heads", n_heads)
        fused = double(seen["query_key_value", layer]).reshape(length, n_keys, -1, d_head)
        q, k, v = np.split(fused.transpose(1, 2, 0, 3), [-2, -1], axis=1)
        return q.reshape(n_heads, length, d_head), k[:, 0], v[:, 0]
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
