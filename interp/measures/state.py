"""Distances of states (docs/reference/metrics.md), all functions of the condition Gram.

    g = gram(torch.stack([x_base, x_prompt, x_lora]))     # [*token, cond, cond]
    relative_l2(g, 1, 2)
    delta_alignment(g, 1, 2, base=0)

The Gram holds what any per-token ratio between conditions needs, in float64 and without the states.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.measures import wide

Gram = Float[Tensor, "*token cond cond"]


def gram(
    states: Float[Tensor, "cond *token d_model"] | Sequence[Float[Tensor, "*token d_model"]],
) -> Gram:
    """`g[token, c, c'] = <x[c], x[c']>` in float64; the tokens of a pair lie together in memory.

    Each product is summed in the same order, so that equal states give equal entries and their
    distance is exactly 0 (a matrix product rounds differently from entry to entry).
    """
    x = [wide(own) for own in states]
    g = x[0].new_empty(len(x), len(x), *x[0].shape[:-1])
    for i, a in enumerate(x):
        for j, b in enumerate(x[: i + 1]):
            g[i, j] = g[j, i] = (a * b).sum(-1)
    return g.movedim((0, 1), (-2, -1))


def relative_l2(g: Gram, a: int, b: int) -> Float[Tensor, "*token"]:
    """`‖x_a - x_b‖ / (½(‖x_a‖ + ‖x_b‖))`, `[0, 2]`; NaN where both states are zero."""
    scale = 0.5 * (_norm(g, a) + _norm(g, b))
    return _ratio(_squared_distance(g, a, b).sqrt(), scale)


def cosine(g: Gram, a: int, b: int) -> Float[Tensor, "*token"]:
    """`<x_a, x_b> / (‖x_a‖‖x_b‖)`, `[-1, 1]`; NaN where a state is zero."""
    return _ratio(g[..., a, b], _norm(g, a) * _norm(g, b)).clamp(-1, 1)


def delta_alignment(
    g: Gram, a: int, b: int, base: int, noise: float = 0.0
) -> Float[Tensor, "*token"]:
    """`cos(x_a - x_base, x_b - x_base)`, `[-1, 1]`: do both push the same way?

    NaN where one does not push at all, by no more than `noise` times `‖x_base‖`."""
    inner = g[..., a, b] - g[..., a, base] - g[..., b, base] + g[..., base, base]
    pushes = _push(g, a, base, noise) * _push(g, b, base, noise)
    return _ratio(inner, pushes).clamp(-1, 1)


def sim_aou(g: Gram, a: int, b: int, base: int, noise: float = 0.0) -> Float[Tensor, "*token"]:
    """`cos(x_a/‖x_a‖ - x_base/‖x_base‖, x_b/‖x_b‖ - x_base/‖x_base‖)`, `[-1, 1]`: the similarity of
    attention output updates (SimAOU, Dai et al. 2212.10559, sec. 4.2). NaN where a state is zero,
    or moves on the unit sphere by no more than `noise`."""
    three = [a, b, base]
    inner = g[..., three, :][..., three]
    lengths = inner.diagonal(dim1=-2, dim2=-1).sqrt()
    unit = _ratio(inner, lengths[..., :, None] * lengths[..., None, :])
    return delta_alignment(unit, 0, 1, 2, noise)


def delta_norm_ratio(
    g: Gram, a: int, b: int, base: int, noise: float = 0.0
) -> Float[Tensor, "*token"]:
    """`‖x_a - x_base‖ / ‖x_b - x_base‖`, `[0, inf)`; NaN where b equals base, up to `noise` times
    `‖x_base‖`."""
    return _ratio(_squared_distance(g, a, base).sqrt(), _push(g, b, base, noise))


def _norm(g: Tensor, a: int) -> Tensor:
    return g[..., a, a].sqrt()


def _push(g: Tensor, a: int, base: int, noise: float) -> Tensor:
    """`‖x_a - x_base‖`, 0 where it is no more than rounding."""
    length = _squared_distance(g, a, base).sqrt()
    return length.masked_fill(length <= noise * _norm(g, base), 0.0)


def _squared_distance(g: Tensor, a: int, b: int) -> Tensor:
    return (g[..., a, a] + g[..., b, b] - 2 * g[..., a, b]).clamp(min=0)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    undefined = denominator == 0
    return torch.where(undefined, torch.nan, numerator / denominator.where(~undefined, 1.0))
