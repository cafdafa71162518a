"""The arithmetic: logs are natural, arrays float64, and what is undefined is NaN."""

from __future__ import annotations

import numpy as np
import torch

Array = np.ndarray
EPSILON = 1e-6
"""Relative error of a float32 state after a few blocks."""
STILL = 1e-5
"""A change no larger than this, relative to base's own state, is none: its direction and its share
are undefined (float32)."""


def double(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def ratio(top: Array, bottom: Array) -> Array:
    """Undefined (NaN) where the denominator is 0."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom != 0)


def softmax(x: Array) -> Array:
    shifted = np.exp(x - np.nanmax(x, axis=-1, keepdims=True))
    shifted = np.nan_to_num(shifted)
    return shifted / shifted.sum(-1, keepdims=True)


def log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def plogq(p: Array, q: Array) -> Array:
    """`sum p log q` with `0 log 0 = 0`."""
    return (p * np.log(np.where(p > 0, q, 1.0))).sum(-1)


def entropy(p: Array) -> Array:
    return -plogq(p, p)


def js(p: Array, q: Array) -> Array:
    middle = (p + q) / 2
    return (plogq(p, p) - plogq(p, middle) + plogq(q, q) - plogq(q, middle)) / 2


def kl_logits(a: Array, b: Array) -> Array:
    la, lb = log_softmax(a), log_softmax(b)
    return (np.exp(la) * (la - lb)).sum(-1)


def norm(x: Array) -> Array:
    return np.sqrt((x * x).sum(-1))


def cosine(x: Array, y: Array) -> Array:
    return ratio((x * y).sum(-1), norm(x) * norm(y))


def relative_l2(x: Array, y: Array) -> Array:
    return ratio(norm(x - y), (norm(x) + norm(y)) / 2)


def top1(logits: Array) -> Array:
    return logits.argmax(-1)


def content(pattern: Array) -> Array:
    """The query's own keys (the last ones), renormalised."""
    own = pattern[..., -pattern.shape[-2] :]
    return own / own.sum(-1, keepdims=True)


def rounding_of_change(change: Array, state: Array, sure: float = STILL / 10) -> Array:
    """Relative error of a change, from that of the states it is a difference of; at most 2.
    `sure`: a change no larger is taken for none in any case."""
    return rounding(norm(change) / np.maximum(norm(state), 1e-300), sure)


def rounding_of_js(change: Array) -> Array:
    """The same for a JS divergence, which is quadratic in the change of the pattern. A row's first
    token sees only itself: its pattern is the same exactly."""
    error = rounding(np.sqrt(np.maximum(change, 0.0)), STILL / 10)
    return np.where(np.arange(change.shape[-1]) > 0, error, 0.0)


def rounding(size: Array, sure: float) -> Array:
    """Error of a change of this relative size: none where it is taken for none in any case, all
    where it may be taken for none or not."""
    error = np.where(size < 3 * STILL, 2.0, EPSILON / np.fmax(size, STILL))
    return np.where(size <= sure, 0.0, error)
