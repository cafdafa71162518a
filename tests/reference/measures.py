"""The measures per token, of one condition or of a pair, from its states."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from .numbers import (
    EPSILON,
    STILL,
    Array,
    content,
    cosine,
    entropy,
    js,
    kl_logits,
    norm,
    ratio,
    relative_l2,
    softmax,
    top1,
)
from .running import States

STATES = ("attn_out", "mixer_out", "mlp_out", "resid_post", "z")


def unmasked(scores: Array) -> Array:
    return np.nan_to_num(scores)


# --- without the sink ----------------------------------------------------------------------------


def without_sink(a: States) -> Array:
    """The pattern, 0 at the sequence's first key and, without BOS, at the query's own first."""
    pattern = a.pattern.copy()
    pattern[..., 0] = 0
    if a.own_sink:
        pattern[..., -a.length] = 0
    return pattern


def left(a: States) -> Array:
    """What the sink leaves of every row, NaN where nothing."""
    total = without_sink(a).sum(-1)
    return np.where(total > 0, total, np.nan)


def left_of_content(a: States) -> Array:
    """The same of the query's own keys, for a model without BOS."""
    total = without_sink(a)[..., -a.length :].sum(-1)
    return np.where(total > 0, total, np.nan)


def prefix_mass_no_sink(a: States) -> Array:
    return without_sink(a)[..., : -a.length].sum(-1) / left(a)


def entropy_no_sink(a: States) -> Array:
    return entropy(without_sink(a) / left(a)[..., None])


def content_no_sink(a: States) -> Array:
    return without_sink(a)[..., -a.length :] / left_of_content(a)[..., None]


# --- what changes a head -------------------------------------------------------------------------


def petrov_residual(a: States, base: States) -> Array:
    """How far the content pattern of these weights, after this prefix, is from base's where the
    inputs are base's: what no prefix can do."""
    assert a.at_base is not None
    return js(content(a.at_base[0]), base.content)


class Read(NamedTuple):
    """A head's output in parts: content mass `[..., pos, 1]`, content pattern, the query's own
    values, and what comes from the prefix."""

    mass: Array
    content: Array
    values: Array
    prefix: Array


def read(pattern: Array, values: Array) -> Read:
    own = pattern.shape[-2]
    mass = pattern[..., -own:].sum(-1)[..., None]
    prefix = pattern[..., :-own] @ values[..., :-own, :]
    return Read(mass, content(pattern), values[..., -own:, :], prefix)


def change_terms(a: States, base: States) -> dict[str, Array]:
    """Vectors `[layer, head, pos, d_head]` that sum to the change from base of what the heads mix:
    z, where nothing stands between."""
    assert a.at_base is not None
    p, b = read(*a.at_base), read(base.pattern, base.values)
    return {
        "change_pattern": p.mass * ((p.content - b.content) @ b.values),
        "change_value": p.mass * (p.content @ (p.values - b.values)),
        "change_prefix": (p.mass - b.mass) * (b.content @ b.values) + p.prefix - b.prefix,
        "change_input": a.mixed - p.mass * (p.content @ p.values) - p.prefix,
    }


def change_shares(a: States, base: States) -> tuple[dict[str, Array], Array]:
    """Numerators per term and the common denominator, per token; NaN where what the heads mix stays
    as it is."""
    change = a.mixed - base.mixed
    whole = np.where(norm(change) > STILL * norm(base.mixed), (change * change).sum(-1), np.nan)
    terms = change_terms(a, base)
    return {name: (term * change).sum(-1) + 0 * whole for name, term in terms.items()}, whole


def rewiring(a: States, base: States) -> tuple[Array, Array]:
    """Numerator and denominator per token: the weight-driven part of the content change, averaged
    over the two orders, and the whole change."""
    whole = js(a.content, base.content)
    whole = np.where(whole > STILL**2, whole, np.nan)
    if a.base_inputs is None or a.base_weights is None:
        return 0 * whole, whole
    weights_first = js(a.base_inputs, base.content)
    weights_last = whole - js(a.base_weights, base.content)
    return (weights_first + weights_last) / 2, whole


# --- changes from base ---------------------------------------------------------------------------


def deltas(a: States, b: States, base: States, site: str) -> tuple[Array, Array, Array]:
    """Both changes from base, and base's own state."""
    if site == "attn_scores":
        x, y, zero = (unmasked(each.scores) for each in (a, b, base))
    else:
        x, y, zero = (getattr(each, site) for each in (a, b, base))
    return x - zero, y - zero, zero


def moved(change: Array, zero: Array) -> Array:
    """A change from base, 0 where it is rounding."""
    return np.where((norm(change) > STILL * norm(zero))[..., None], change, 0.0)


def unit(x: Array) -> Array:
    return x / norm(x)[..., None]


def turned(change: Array, zero: Array) -> Array:
    """The change of the direction of a state, 0 where the state stays as it is."""
    changed = (norm(change) > 0)[..., None]
    return np.where(changed, unit(zero + change) - unit(zero), 0.0)


# --- tables of measures --------------------------------------------------------------------------

ALONE: dict[tuple[str, str], Callable[[States], Array]] = {
    ("prefix_mass", "pattern"): lambda a: a.pattern[..., : -a.length].sum(-1),
    ("entropy", "pattern"): lambda a: entropy(a.pattern) + entropy(a.sink[..., None]),
    ("content_entropy", "pattern"): lambda a: entropy(a.content),
    ("prefix_mass_no_sink", "pattern"): prefix_mass_no_sink,
    ("entropy_no_sink", "pattern"): entropy_no_sink,
}
"""Measures of one condition."""

PAIRED: dict[tuple[str, str], Callable[[States, States], Array]] = {
    ("kl_divergence", "output"): lambda a, b: kl_logits(a.logits, b.logits),
    ("js_divergence", "output"): lambda a, b: js(softmax(a.logits), softmax(b.logits)),
    ("top1_agreement", "output"): lambda a, b: (top1(a.logits) == top1(b.logits)).astype(float),
    ("content_js", "pattern"): lambda a, b: js(a.content, b.content),
    ("sim_am", "attn_scores"): lambda a, b: cosine(unmasked(a.scores), unmasked(b.scores)),
}
ROUTED: dict[tuple[str, str], Callable[[States, States], Array]] = {
    ("router_js", "router"): lambda a, b: js(a.shares, b.shares),
    ("expert_overlap", "router"): lambda a, b: (a.chosen & b.chosen).sum(-1) / a.chosen.sum(-1),
}
"""For models with a mixture of experts."""

for _site in STATES:
    PAIRED["cosine", _site] = lambda a, b, s=_site: cosine(getattr(a, s), getattr(b, s))
    PAIRED["relative_l2", _site] = lambda a, b, s=_site: relative_l2(getattr(a, s), getattr(b, s))

ALONE_WITHOUT_BOS: dict[tuple[str, str], Callable[[States], Array]] = {
    ("content_entropy_no_sink", "pattern"): lambda a: entropy(content_no_sink(a)),
}
PAIRED_WITHOUT_BOS: dict[tuple[str, str], Callable[[States, States], Array]] = {
    ("content_js_no_sink", "pattern"): lambda a, b: js(content_no_sink(a), content_no_sink(b)),
}

CHANGED: dict[tuple[str, str], Callable[[Array, Array, Array], Array]] = {
    ("sim_am_delta", "attn_scores"): lambda x, y, _: cosine(x, y),
    ("sim_aou", "attn_out"): lambda x, y, zero: cosine(turned(x, zero), turned(y, zero)),
    **{("delta_alignment", site): (lambda x, y, _: cosine(x, y)) for site in STATES},
    **{("delta_norm_ratio", site): (lambda x, y, _: ratio(norm(x), norm(y))) for site in STATES},
}
"""Measures of two changes from base (and base's state), for pairs whose reference is not base."""


def rounding_without_sink(name: str, a: States) -> Array:
    """How far rounding may move a number that is divided by what the sink leaves."""
    if not name.endswith("_no_sink"):
        return np.zeros(a.pattern.shape[:-1])
    kept = left_of_content(a) if name.startswith("content") else left(a)
    return np.nan_to_num(np.minimum(2.0, EPSILON / kept))
