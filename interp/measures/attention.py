"""Attention of one layer's heads, per query row (docs/reference/metrics.md).

    rows = read_rows(pattern)                    # inside the forward pass: [batch, head, query_pos]
    content_js(rows.content, other.content)
    content_js(without_first(rows.content), without_first(other.content))

`pattern` is `[batch, head, query_pos, prefix + query_pos]`: the last `query_pos` keys are the
query's own (content), everything before is prefix, BOS included. Divergences are nats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from interp.measures import wide
from interp.measures.output import entropy, js_of_rows

MASKED = -1e30
"""Scores below are masked keys (TransformerLens holds them at about -3.4e38, not -inf)."""

Pattern = Float[Tensor, "batch head query_pos key_pos"]
Content = Float[Tensor, "batch *layer head query_pos query_pos"]
Rows = Float[Tensor, "batch *layer head query_pos"]
"""Several layers may stand behind the batch."""


class AttentionRows(NamedTuple):
    """What is kept of a pattern; the prefix columns are not."""

    prefix_mass: Rows
    entropy: Rows
    content_entropy: Rows
    prefix_mass_no_sink: Rows
    entropy_no_sink: Rows
    content: Content
    content_mass: Rows


def read_rows(
    pattern: Pattern, first: bool = True, own_first: bool = False, sink: bool = False
) -> AttentionRows:
    """Prefix mass `[0, 1]`, entropy of the full and of the content row (nats, `[0, ln keys]`),
    and the content pattern: the query's own keys, renormalised (NaN where they have no mass).

    `_no_sink`: without the sink, the rest of the row renormalised. The sink is the sequence's first
    key, which is column 0 unless a sliding window has left it behind (`first` says so); `own_first`
    counts the query's own first token as one too: in a model without BOS it is base's sink.
    `sink`: the model has a learned one (gpt-oss), to which goes what a row's keys lack to 1. It
    counts as a key in the full row's entropy; it is neither prefix nor content.
    """
    length = pattern.shape[-2]
    own = wide(pattern[..., -length:])
    own_rest = own[..., int(own_first) :]
    content = own / own.sum(-1, keepdim=True)
    start, rest = (_summed(part) for part in pattern[..., :-length].tensor_split([1], -1))
    prefix = _Sums(start.mass + rest.mass, start.entropy + rest.entropy)
    rest = rest if first else prefix
    kept = rest.mass + own_rest.sum(-1)
    whole = entropy(own) + prefix.entropy
    content_mass = 1 - prefix.mass
    if sink:
        content_mass = own.sum(-1)
        whole = whole + entropy((1 - prefix.mass - content_mass).clamp(min=0)[..., None])
    return AttentionRows(
        prefix_mass=prefix.mass,
        entropy=whole,
        content_entropy=entropy(content),
        prefix_mass_no_sink=rest.mass / kept,
        entropy_no_sink=kept.log() + (entropy(own_rest) + rest.entropy) / kept,
        content=content,
        content_mass=content_mass,
    )


_BLOCK = 1 << 22
"""Entries of a pattern that are widened at a time: a long prefix has many keys."""


class _Sums(NamedTuple):
    mass: Rows
    entropy: Rows


def _summed(columns: Pattern) -> _Sums:
    """Mass and entropy of some of a pattern's columns, by blocks of keys."""
    mass = wide(columns.new_zeros(columns.shape[:-1]))
    spread = mass
    for block in columns.split(max(1, _BLOCK // max(1, mass.numel())), dim=-1):
        own = wide(block)
        mass, spread = mass + own.sum(-1), spread + entropy(own)
    return _Sums(mass, spread)


def without_first(content: Content) -> Content:
    """Content rows without the query's first token, renormalised; NaN in that token's own row."""
    rest = content.clone()
    rest[..., 0] = 0
    return rest / rest.sum(-1, keepdim=True)


def content_js(p: Content, q: Content, known: tuple[Content, Content] | None = None) -> Rows:
    """Jensen-Shannon divergence of two content patterns, row by row, nats, `[0, ln 2]`; `known`:
    `p_log_p` of both, where it is known."""
    return js_of_rows(p, q, known)


def read_scores(scores: Pattern) -> Content:
    """Pre-softmax scores of the query's own keys; -inf where a key is masked."""
    own = scores[..., -scores.shape[-2] :].detach()
    return own.masked_fill(own < MASKED, -torch.inf)


def sim_am(a: Content, b: Content) -> Rows:
    """Cosine of two rows of pre-softmax scores over the query's keys, `[-1, 1]` (Dai et al.
    2212.10559, sec. 4.2, SimAM); NaN where a row is all zero."""
    return row_cosine(unit_rows(unmasked(a)), unit_rows(unmasked(b)))


def sim_am_delta(a: Content, b: Content, base: Content, noise: float = 0.0) -> Rows:
    """`sim_am` of the differences from base (after Deutch et al. 2311.07772), `[-1, 1]`; NaN where
    one condition leaves the row's scores as they are, up to `noise` times their norm (as in the
    first block of a rotary model, whose scores do not depend on what precedes the query)."""
    x, y, before = (unmasked(scores) for scores in (a, b, base))
    return row_cosine(*(unit_rows(score_change(own, before, noise)) for own in (x, y)))


def unmasked(scores: Content) -> Content:
    """Scores in float64, those of masked keys 0."""
    return wide(scores).masked_fill(scores == -torch.inf, 0.0)


def score_change(scores: Content, base: Content, noise: float) -> Content:
    """The change of `unmasked` scores, 0 in rows that stay as they are up to `noise`."""
    delta = scores - base
    floor = noise * base.square().sum(-1, keepdim=True).sqrt()
    return delta.masked_fill(delta.square().sum(-1, keepdim=True).sqrt() <= floor, 0.0)


def unit_rows(rows: Content) -> Content:
    """Rows of length 1; NaN where a row is all zero."""
    return rows / rows.square().sum(-1, keepdim=True).sqrt()


def row_cosine(a: Content, b: Content) -> Rows:
    """The cosine of rows of length 1."""
    return (a * b).sum(-1).clamp(-1, 1)


def weight_driven(whole: Rows, base_inputs: Rows, base_weights: Rows) -> Rows:
    """The part of `content_js(content, base)`, `whole`, that is due to a condition's weights, in
    nats.

    `base_inputs`: the JS to base of the content pattern of the condition's weights at base's
    inputs; `base_weights`: of base's weights at the condition's inputs. The Shapley value of the
    weights over both orders: `½(base_inputs + whole - base_weights)` (Shapley 1953).
    Summed over tokens and divided by the summed `content_js`, it is `rewiring_share`: 0 for a
    prompt, which changes inputs only; about 1 where weights alone move the attention. Interactions
    are shared equally, so it can leave `[0, 1]`.
    """
    return 0.5 * (base_inputs + whole - base_weights)


class HeadRun(NamedTuple):
    """What one layer's heads did in one run, on the query rows: `content` pattern and its `mass` in
    the whole row, `values` of the query's own keys (one set per head), what the prefix's keys
    contributed to the output, and the output `z`."""

    content: Content
    mass: Rows
    values: Float[Tensor, "batch head query_pos d_head"]
    from_prefix: Float[Tensor, "batch head query_pos d_head"]
    z: Float[Tensor, "batch head query_pos d_head"]


def mixed(run: HeadRun) -> Float[Tensor, "batch head query_pos d_head"]:
    """What the heads mix: pattern times values, of the prefix's keys and of the query's own."""
    own = run.mass[..., None] * (run.content @ wide(run.values))
    return (own + wide(run.from_prefix)).to(run.values.dtype)


CHANGES = ("change_pattern", "change_value", "change_prefix", "change_input")
"""The terms of `change_shares`, in their order."""


class Changes(NamedTuple):
    """`shares`: the inner product of every term of `CHANGES` with the whole change; `whole`: the
    change's squared norm; `error`: how far the terms are from adding up to it."""

    shares: tuple[Rows, Rows, Rows, Rows]
    whole: Rows
    error: Float[Tensor, ""]


def change_shares(
    z: Float[Tensor, "batch head query_pos d_head"], pinned: HeadRun, base: HeadRun, noise: float
) -> Changes:
    """The exact split of a head's output change `z - base.z` into four terms that add up to it.

    `pinned`: the condition's own weights and prefix at base's inputs. With content mass `a`,
    content pattern `C`, values `v` and prefix part `P` of the pinned run, and `_b` for base's:

    - prefix `(a - a_b) C_b v_b + (P - P_b)`: all that a prefix can do at these inputs (Petrov et
      al. 2310.19698);
    - pattern `a (C - C_b) v_b`: re-wiring; value `a C (v - v_b)`: other values are read;
    - input `z - z_pinned`: what changed inputs do.

    A term's share is its projection on the whole change, so that shares add up to 1 (ratio of sums
    over tokens); NaN where the change is within `noise` of base's norm. `error` is the largest
    `‖sum of terms - (z - base.z)‖ / (‖z‖ + ‖base.z‖)`, of rows that have content patterns; NaN
    where something else is not a number.
    """
    a, a_b = (wide(run.mass)[..., None] for run in (pinned, base))
    v, v_b = wide(pinned.values), wide(base.values)
    read = base.content @ v_b
    rewired = pinned.content @ v_b
    terms = (
        a * (rewired - read),
        a * (pinned.content @ v - rewired),
        (a - a_b) * read + wide(pinned.from_prefix) - wide(base.from_prefix),
        wide(z) - wide(pinned.z),
    )
    change = wide(z) - wide(base.z)
    whole = change.square().sum(-1)
    before = wide(base.z).square().sum(-1)
    whole = whole.where(whole > noise**2 * before, torch.nan)
    gap = (sum(terms) - change).square().sum(-1).sqrt()
    scale = wide(z).square().sum(-1).sqrt() + before.sqrt()
    undefined = (pinned.content.sum(-1) + base.content.sum(-1)).isnan()
    error = (gap / scale.where(scale > 0, 1.0)).masked_fill(undefined, 0.0).max()
    shares = [(term * change).sum(-1) for term in terms]
    return Changes((shares[0], shares[1], shares[2], shares[3]), whole, error)
