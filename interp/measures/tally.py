"""From one chunk's captured values, in all conditions, to accumulators.

    tally = measure(chunk, pairs, base="base", scale=scale)
    absorb_(total, tally)

The only place that knows which measure is made of which sites; the arithmetic is in the other
files of this room. Measures receive tensors, never a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from interp.measures import NOISE, attention, output, state
from interp.measures.attention import AttentionRows
from interp.names import OUTPUT
from interp.statistics import Accumulator, Ratio

STATE_SITES = ("resid_post", "attn_out", "mlp_out", "z")
"""Sites whose states are compared by default."""


class Key(NamedTuple):
    """What an accumulator holds."""

    measure: str
    condition: str
    reference: str
    site: str


Tally = dict[Key, Accumulator]


@dataclass(frozen=True)
class Observed:
    """One condition's values on one chunk, every list by layer.

    `states`: site name -> `[batch, (head,) query_pos, d]`. `rows`, `scores`: attention.
    `base_inputs`, `base_weights`: content patterns of the two pinned runs, only where the
    condition has weights of its own.
    """

    logits: Tensor
    states: dict[str, list[Tensor]]
    rows: list[AttentionRows]
    scores: list[Tensor]
    base_inputs: list[Tensor] = field(default_factory=list)
    base_weights: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Scale:
    """How tokens are summed: bootstrap `weights` `[query, replicate]`, `positions`
    `[query, query_pos, label]`, and `answers`, the first answer token of each query (or -1)."""

    weights: np.ndarray
    positions: np.ndarray
    answers: Tensor


Values = tuple[Key, Tensor, Tensor | float]


def measure(
    observed: Mapping[str, Observed], pairs: Sequence[tuple[str, str]], base: str, scale: Scale
) -> Tally:
    """Every measure of every condition and pair on one chunk."""
    tally: Tally = {}
    grams = dict(site_grams(observed))
    for key, numerator, denominator in values(observed, grams, pairs, base, scale):
        below = denominator.cpu().numpy() if isinstance(denominator, Tensor) else denominator
        above = numerator.to(torch.float64).cpu().numpy()
        tally[key] = Ratio.of(above, below, scale.weights, scale.positions)
    for site, g in grams.items():
        tally[Key("gram", "", "", site)] = _mean_gram(g, scale)
    return tally


def absorb_(total: Tally, part: Tally) -> None:
    """Move the queries of `part`, which is empty afterwards, into `total`.

    One accumulator at a time: a whole third tally beside the two would be the run's largest memory.
    """
    if total and total.keys() != part.keys():
        different = sorted(total.keys() ^ part.keys())
        raise ValueError(f"tallies of different measures: {different[0]}")
    for key in list(part):
        added = part.pop(key)
        total[key] = total[key].merge(added) if key in total else added  # type: ignore[arg-type]


def values(
    observed: Mapping[str, Observed],
    grams: Mapping[str, Tensor],
    pairs: Sequence[tuple[str, str]],
    base: str,
    scale: Scale,
) -> Iterator[Values]:
    """(key, numerator, denominator) per token, `[batch, (layer,) (head,) query_pos]`."""
    yield from _outputs(observed, pairs, base, scale)
    yield from _states(list(observed), grams, pairs, base, NOISE[observed[base].logits.dtype])
    yield from _attention(observed, pairs, base)


def _outputs(
    observed: Mapping[str, Observed], pairs: Sequence[tuple[str, str]], base: str, scale: Scale
) -> Iterator[Values]:
    answers = scale.answers[:, None]
    last = torch.from_numpy(scale.positions[..., 0]).to(answers.device) > 0
    known = torch.where((answers >= 0) & last, 0.0, torch.nan)
    right = {name: seen.logits.argmax(-1) == answers for name, seen in observed.items()}
    for name in observed:
        yield Key("accuracy", name, "", OUTPUT), right[name] + known, 1.0
    for a, b in pairs:
        p, q = observed[a].logits, observed[b].logits
        yield Key("kl_divergence", a, b, OUTPUT), output.kl_divergence(p, q), 1.0
        yield Key("js_divergence", a, b, OUTPUT), output.js_divergence(p, q), 1.0
        yield Key("top1_agreement", a, b, OUTPUT), output.top1_agreement(p, q), 1.0
        if base not in (a, b):
            gained = ~right[base] & right[b]
            yield Key("rec2ftp", a, b, OUTPUT), (gained & right[a]) + known, gained + known


def _states(
    names: Sequence[str],
    grams: Mapping[str, Tensor],
    pairs: Sequence[tuple[str, str]],
    base: str,
    noise: float,
) -> Iterator[Values]:
    index = {name: i for i, name in enumerate(names)}
    for site, g in grams.items():
        for a, b in pairs:
            i, j = index[a], index[b]
            yield Key("relative_l2", a, b, site), state.relative_l2(g, i, j), 1.0
            yield Key("cosine", a, b, site), state.cosine(g, i, j), 1.0
            if base not in (a, b):
                aligned = state.delta_alignment(g, i, j, index[base], noise)
                yield Key("delta_alignment", a, b, site), aligned, 1.0
                longer = state.delta_norm_ratio(g, i, j, index[base], noise)
                yield Key("delta_norm_ratio", a, b, site), longer, 1.0


def site_grams(observed: Mapping[str, Observed]) -> Iterator[tuple[str, Tensor]]:
    """Site name and its condition Gram, `[batch, layer, (head,) query_pos, cond, cond]`."""
    conditions = list(observed.values())
    for site in conditions[0].states:
        by_layer = zip(*(c.states[site] for c in conditions), strict=True)
        yield site, torch.stack([state.gram(torch.stack(states)) for states in by_layer], dim=1)


def _mean_gram(g: Tensor, scale: Scale) -> Ratio:
    """The mean over all query tokens, without replicates, `[cond, cond, layer, (head,) 1]`."""
    everywhere, once = scale.positions[..., 1:2], scale.weights[:, :1]
    by_pair = g.movedim((-2, -1), (1, 2)).cpu().numpy()
    return Ratio.of(by_pair, 1.0, once, everywhere)


def _attention(
    observed: Mapping[str, Observed], pairs: Sequence[tuple[str, str]], base: str
) -> Iterator[Values]:
    for name, seen in observed.items():
        for measure_name in ("prefix_mass", "entropy", "content_entropy"):
            rows = torch.stack([getattr(r, measure_name) for r in seen.rows], dim=1)
            yield Key(measure_name, name, "", "pattern"), rows, 1.0
        if name != base:
            yield _rewiring(name, observed, base)
    for a, b in pairs:
        x, y = observed[a], observed[b]
        js = _by_layer(
            attention.content_js, [r.content for r in x.rows], [r.content for r in y.rows]
        )
        yield Key("content_js", a, b, "pattern"), js, 1.0
        yield (
            Key("sim_am", a, b, "attn_scores"),
            _by_layer(attention.sim_am, x.scores, y.scores),
            1.0,
        )
        if base not in (a, b):
            noise = NOISE[x.logits.dtype]
            delta = _by_layer(
                partial(attention.sim_am_delta, noise=noise),
                x.scores,
                y.scores,
                observed[base].scores,
            )
            yield Key("sim_am_delta", a, b, "attn_scores"), delta, 1.0


def _rewiring(name: str, observed: Mapping[str, Observed], base: str) -> Values:
    """Without weights of its own, a condition's change of attention is all input-driven.

    A row that changes by rounding alone (a JS of the square of its size) has no share.
    """
    seen = observed[name]
    content, before = ([r.content for r in o.rows] for o in (seen, observed[base]))
    total = _by_layer(attention.content_js, content, before)
    total = total.where(total > NOISE[seen.logits.dtype] ** 2, torch.nan)
    if not seen.base_inputs:
        return Key("rewiring_share", name, base, "pattern"), torch.zeros_like(total), total
    part = _by_layer(attention.weight_driven, content, before, seen.base_inputs, seen.base_weights)
    return Key("rewiring_share", name, base, "pattern"), part, total


def _by_layer(function: object, *layers: Sequence[Tensor]) -> Tensor:
    """`function` of every layer's tensors, stacked as `[batch, layer, head, query_pos]`."""
    return torch.stack([function(*tensors) for tensors in zip(*layers, strict=True)], dim=1)  # type: ignore[operator]
