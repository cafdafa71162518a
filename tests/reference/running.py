"""Run plain models: every state of one query at a time under one condition, the whole sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from . import readout
from .attention import overheard, patterns, scores_of, values_of
from .conditions import Condition
from .models import (
    Seen,
    blocks,
    head_layers,
    learned_prompt,
    merged,
    mixer_layers,
    open_model,
    pinned,
    route,
    router_layers,
    steered,
    watched,
)
from .numbers import Array, content, double, softmax

SUM = 1e-5
"""Rows of attention that lack less to 1 have no learned sink."""


@dataclass(frozen=True)
class States:
    """One query under one condition, query rows only (float64).

    `logits` `[pos, vocab]`; residual-sized states `[layer, pos, d_model]`; `z`
    `[layer, head, pos, d_head]`; `pattern` `[layer, head, pos, key]` and `values`
    `[layer, head, key, d_head]` over all keys, virtual ones first; `scores`
    `[layer, head, pos, pos]` before the softmax, over the query's own keys, NaN where masked.
    Narrower heads than others are filled up with zeros, which no measure sees. What belongs to
    heads has `heads`, the layers that have some, and `mixer_out` those that have a recurrence
    instead; `per_layer_out` is of all layers or none. `shares` and `chosen` `[layer, pos, expert]`
    are of `routers`, the layers with a mixture of experts. `z` is what the output projection reads,
    `mixed` what the heads mix; between them may stand a gate or a norm.
    `end`: how many tokens stand before the answer; the rows that predict it begin one before.
    `own_sink`: the model has no BOS, so the query's first token is base's sink.

    `base_inputs`: content patterns of these weights at base's inputs; `base_weights`: of base's
    weights at these inputs; None for a condition without weights of its own. `at_base`: pattern
    and values after the condition's own prefix, with its weights, the query's rows at base's
    inputs. `lens` and `said` `[layer, row, vocab]`, `terms`: see `readout`; `kept`: of which token
    per answer row these alone speak.
    """

    logits: Array
    resid_pre: Array
    attn_out: Array
    mlp_out: Array
    resid_post: Array
    z: Array
    pattern: Array
    values: Array
    scores: Array
    end: int
    heads: tuple[int, ...]
    mixers: tuple[int, ...]
    mixer_out: Array
    per_layer_out: Array
    routers: tuple[int, ...] = ()
    shares: Array | None = None
    chosen: Array | None = None
    own_sink: bool = False
    base_inputs: Array | None = None
    base_weights: Array | None = None
    at_base: tuple[Array, Array] | None = None
    lens: Array | None = None
    said: Array | None = None
    terms: Mapping[str, Array] | None = None
    kept: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        return self.logits.shape[0]

    @property
    def answer(self) -> slice:
        """The rows that predict the answer's tokens."""
        return slice(self.end - 1, self.length)

    @cached_property
    def mixed(self) -> Array:
        """`[layer, head, pos, d_head]`."""
        return self.pattern @ self.values

    @cached_property
    def sink(self) -> Array:
        """What a learned sink takes of every row."""
        rest = 1 - self.pattern.sum(-1)
        return np.where(rest > SUM, rest, 0.0)

    def layers(self, site: str) -> tuple[int, ...]:
        """The layers that have a site."""
        if site == "mixer_out":
            return self.mixers
        if site == "router":
            return self.routers
        if site in ("attn_out", "attn_bias", "attn_scores", "pattern", "z"):
            return self.heads
        return tuple(range(len(self.resid_post)))

    @cached_property
    def content(self) -> Array:
        return content(self.pattern)

    @cached_property
    def lens_shares(self) -> Array:
        """The lens as distributions."""
        return softmax(self.lens)


@dataclass(frozen=True)
class Virtual:
    """What a peft prompt puts before everything: embeddings `[n, d_model]`, or a cache with its
    keys and values `[kv_head, n, d_head]` per layer, fresh at every call."""

    embeddings: torch.Tensor | None = None
    cache: Any = None
    keys: tuple[Array | None, ...] = ()
    values: tuple[Array | None, ...] = ()
    length: int = 0


def virtual(base: str | None, condition: Condition, n_layers: int) -> Virtual:
    none = (None,) * n_layers
    folder = condition.soft or condition.keys
    if not folder:
        return Virtual(None, None, none, none)
    peft = learned_prompt(base, folder)
    length = peft.active_peft_config.num_virtual_tokens
    with torch.no_grad():
        made = peft.get_prompt(1)
    if condition.soft:
        return Virtual(made[0], None, none, none, length)
    keys, values = (
        tuple(double(getattr(layer, name)[0]) for layer in made.layers)
        for name in ("keys", "values")
    )
    return Virtual(None, made, keys, values, length)


@dataclass(frozen=True)
class Pass:
    """A forward pass: what came out, what hooks saw, pattern and values over all keys, and the keys
    of a prefix tuning."""

    out: Any
    seen: Seen
    pattern: Array
    values: Array
    past: tuple[Array | None, ...]

    def scores(self, model: Any) -> Array:
        """Pre-softmax scores `[layer, head, pos, key]`, checked against the pattern."""
        shown = patterns(model, self.seen, self.out.attentions)
        items = zip(head_layers(model), shown, strict=True)
        found = [scores_of(model, i, self.seen, p, self.past[i]) for i, p in items]
        n_keys = self.pattern.shape[-1]
        return np.stack([left_padded(each, n_keys, -1, np.nan) for each in found])


def forward(
    model: Any,
    condition: Condition,
    query: Sequence[int],
    inputs: Array | None = None,
    base: str | None = None,
) -> Pass:
    """The whole sequence at once; `inputs` `[layer, pos, d_model]` pins the query's rows."""
    seen, before = Seen(), virtual(base, condition, len(blocks(model)))
    start = first_row(condition, before)
    with (
        torch.no_grad(),
        pinned(model, start, inputs),
        steered(model, start, condition.steering),
        watched(model, seen),
        overheard(model, seen),
    ):
        out = model(**arguments(model, condition, query, before))
    n_keys = before.length + len(condition.prefix) + len(query)
    shown = patterns(model, seen, out.attentions)
    parts = zip(head_layers(model), shown, strict=True)
    values = [values_of(model, i, seen, pattern, before.values[i]) for i, pattern in parts]
    return Pass(
        out,
        seen,
        np.stack([left_padded(pattern, n_keys, -1, 0.0) for pattern in shown]),
        filled([left_padded(v, n_keys, -2, 0.0) for v in values]),
        before.keys,
    )


def first_row(condition: Condition, before: Virtual) -> int:
    """Of the query, among the rows that the model computes."""
    return len(condition.prefix) + (before.length if condition.soft else 0)


def filled(layers: Sequence[Array]) -> Array:
    """Layers of heads stacked, the narrower ones filled up with zeros."""
    widest = max(x.shape[-1] for x in layers)
    return np.stack(
        [np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, widest - x.shape[-1])]) for x in layers]
    )


def arguments(
    model: Any, condition: Condition, query: Sequence[int], before: Virtual
) -> dict[str, Any]:
    """What the model is called with, as peft does it."""
    tokens = torch.tensor([[*condition.prefix, *query]])
    start = before.length + len(condition.prefix)
    places = [*range(start), *range(start + condition.shift, start + condition.shift + len(query))]
    asked: dict[str, Any] = {"input_ids": tokens}
    if before.embeddings is not None:
        embedded = model.get_input_embeddings()(tokens)
        asked = {"inputs_embeds": torch.cat([before.embeddings[None], embedded], dim=1)}
    if before.cache is not None:
        asked["past_key_values"] = before.cache
        places = places[before.length :]
    return asked | {
        "position_ids": torch.tensor([places]),
        "attention_mask": torch.ones(1, start + len(query), dtype=torch.long),
        "output_attentions": True,
        "use_cache": False,
    }


def left_padded(x: Array, length: int, axis: int, fill: float) -> Array:
    """A cache that a sliding window has cut lacks the first keys: they have no weight."""
    width = [(0, 0)] * x.ndim
    width[axis] = (length - x.shape[axis], 0)
    return np.pad(x, width, constant_values=fill)


# --- one query under one condition ---------------------------------------------------------------


def run(
    model: Any,
    condition: Condition,
    query: Sequence[int],
    base: str | None = None,
    end: int | None = None,
) -> States:
    """Every state of the query's rows; `base`: the folder that a learned prompt was made for;
    `end`: tokens before the answer (none: all)."""
    done = forward(model, condition, query, base=base)
    length, n_heads = len(query), done.pattern.shape[1]
    every, heads = range(len(blocks(model))), head_layers(model)

    def stacked(name: str, layers: Sequence[int] = every) -> Array:
        found = [double(done.seen[name, i])[-length:] for i in layers if (name, i) in done.seen]
        return np.stack(found) if found else np.zeros((0, length, 1))

    z = [double(done.seen["z", layer])[-length:].reshape(length, n_heads, -1) for layer in heads]
    return States(
        logits=biased(double(done.out.logits[0])[-length:], condition, end),
        resid_pre=stacked("resid_pre"),
        attn_out=stacked("attn_out", heads),
        mlp_out=stacked("mlp_out"),
        resid_post=stacked("resid_post"),
        z=filled([each.swapaxes(0, 1) for each in z]),
        pattern=done.pattern[:, :, -length:],
        values=done.values,
        scores=done.scores(model)[:, :, -length:, -length:],
        end=end or length,
        heads=heads,
        mixers=mixer_layers(model),
        mixer_out=stacked("mixer_out"),
        per_layer_out=stacked("per_layer_out"),
        **routing(model, done.seen, length),
    )


def routing(model: Any, seen: Seen, length: int) -> dict[str, Any]:
    """What routers make of the rows, computed anew from what enters the experts' layers."""
    layers = router_layers(model)
    if not layers:
        return {}
    entering = [double(seen["mlp_in", i]).reshape(-1, seen["mlp_in", i].shape[-1]) for i in layers]
    found = [route(model, i, x) for i, x in zip(layers, entering, strict=True)]
    shares, chosen = (np.stack([each[part][-length:] for each in found]) for part in (0, 1))
    return {"routers": layers, "shares": shares, "chosen": chosen}


def biased(logits: Array, condition: Condition, end: int | None = None) -> Array:
    """Negative positions count from the `end` of the query, its answer not included."""
    length = len(logits)
    for token, value, positions in condition.bias:
        for position in range(length) if positions is None else positions:
            place = position if position >= 0 else (end or length) + position
            if 0 <= place < length:
                logits[place, token] += value
    return logits


# --- all queries under all conditions ------------------------------------------------------------


def observe(
    base: str,
    conditions: Mapping[str, Condition],
    queries: Sequence[Sequence[int]],
    ends: Sequence[int] | None = None,
    kept: Sequence[tuple[int, ...] | None] | None = None,
) -> dict[str, list[States]]:
    """Every query alone under every condition; `base` is the condition named so. `queries` are all
    rows, the answer's among them, `ends` how many stand before it (none: all); `kept`: the tokens
    that the terms of the logits speak of, one per row of an answer (none: of all the vocabulary).
    """
    observed: dict[str, list[States]] = {}
    spans = ends or [len(query) for query in queries]
    tokens = kept or [None] * len(queries)
    for name, condition in conditions.items():
        plain = observed.get("base", [None] * len(queries))
        observed[name] = [
            complete(base, conditions["base"], condition, query, *about)
            for query, *about in zip(queries, plain, spans, tokens, strict=True)
        ]
    return observed


def complete(
    base: str,
    bare: Condition,
    condition: Condition,
    query: Sequence[int],
    plain: States | None,
    end: int,
    kept: tuple[int, ...] | None,
) -> States:
    """One query with all that needs the weights; `plain`: the same query in base."""
    model = open_model(base, *condition.weights)
    own = replace(run(model, condition, query, base, end), kept=kept)
    plain = plain or own
    if condition.weights != bare.weights:
        base_model = open_model(base, *bare.weights)
        own = replace(
            own,
            base_inputs=content_of(model, bare, query, plain.resid_pre),
            base_weights=content_of(base_model, bare, query, own.resid_pre),
        )
    at_base = forward(model, condition, query, plain.resid_pre, base)
    weights = merged(base, *condition.weights)
    lens, said = readout.lens(weights, condition, own)
    return replace(
        own,
        own_sink=not bare.prefix,
        at_base=(at_base.pattern[:, :, -len(query) :], at_base.values),
        lens=lens,
        said=said,
        terms=readout.terms(weights, condition, own),
    )


def content_of(model: Any, bare: Condition, query: Sequence[int], inputs: Array) -> Array:
    """Content patterns after base's prefix and at base's positions, inputs pinned."""
    return content(forward(model, bare, query, inputs).pattern[:, :, -len(query) :])
