"""The slow reference: every number of a run from plain Hugging Face, peft and numpy.

    conditions = {"base": Condition(), "prompt": Condition(prefix=(5, 6, 7))}
    observed = observe("path/to/model", conditions, queries=[[10, 11], [12]])
    table = rows(conditions, observed, [("prompt", "base")], answers=[13, None], max_positions=32)

Every query runs alone, the whole sequence recomputed: no cache, no padding, no bridge, and no
import of the library under test. States are read by plain hooks on the Hugging Face modules,
attention scores are computed again from queries and keys and checked against the model's own
patterns, and the measures are written out in float64 from their definitions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM

Array = np.ndarray
STATES = ("attn_out", "mlp_out", "resid_post", "z")
EPSILON = 1e-6
"""Relative error of a float32 state after a few blocks."""
STILL = 1e-5
"""A change no larger than this, relative to base's own state, is none: its direction and its share
are undefined (float32)."""
UNKNOWABLE = 0.01
"""A value that rounding alone may move by more than this is not compared."""


@dataclass(frozen=True)
class Condition:
    """Token ids before the query, positions skipped between them, weights, and logit biases
    (token, value, query positions or None for all; negative counts from the query's end)."""

    prefix: tuple[int, ...] = ()
    shift: int = 0
    adapter: str | None = None
    scale: float = 1.0
    model: str | None = None
    bias: tuple[tuple[int, float, tuple[int, ...] | None], ...] = ()

    @property
    def weights(self) -> tuple[str | None, float, str | None]:
        return (self.adapter, self.scale, self.model)

    @property
    def computation(self) -> tuple[object, ...]:
        """What the states depend on: the same computation gives the same bits."""
        return (self.prefix, self.shift, self.weights)


@dataclass(frozen=True)
class States:
    """One query under one condition, query rows only (float64).

    `logits` `[pos, vocab]`; residual-sized states `[layer, pos, d_model]`; `z`
    `[layer, head, pos, d_head]`; `pattern` `[layer, head, pos, key]` over all keys; `scores`
    `[layer, head, pos, pos]` before the softmax, over the query's own keys, NaN where masked.
    `base_inputs`: content patterns of these weights at base's inputs; `base_weights`: of base's
    weights at these inputs; None for a condition without weights of its own.
    """

    logits: Array
    resid_pre: Array
    attn_out: Array
    mlp_out: Array
    resid_post: Array
    z: Array
    pattern: Array
    scores: Array
    base_inputs: Array | None = None
    base_weights: Array | None = None

    @property
    def length(self) -> int:
        return self.logits.shape[0]

    @property
    def content(self) -> Array:
        return content(self.pattern)


# --- the model -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=32)
def open_model(base: str, adapter: str | None, scale: float, other: str | None) -> Any:
    """A plain model of its own for every state of the weights; a scale is a changed alpha."""
    model = AutoModelForCausalLM.from_pretrained(other or base, attn_implementation="eager").eval()
    if adapter is None:
        return model
    config = PeftConfig.from_pretrained(adapter)
    config.lora_alpha = config.lora_alpha * scale
    return PeftModel.from_pretrained(model, adapter, config=config).get_base_model().eval()


def blocks(model: Any) -> list[Any]:
    body = model.base_model
    for name in ("h", "layers"):
        if hasattr(body, name):
            return list(getattr(body, name))
    raise AssertionError(f"no blocks in {type(model).__name__}")


def attention(block: Any) -> Any:
    return next(getattr(block, n) for n in ("self_attn", "attn", "attention") if hasattr(block, n))


def output_projection(block: Any) -> Any:
    inside = attention(block)
    return next(getattr(inside, n) for n in ("o_proj", "c_proj", "dense") if hasattr(inside, n))


def writers(block: Any) -> dict[str, Any]:
    """Modules whose outputs are added to the residual stream."""
    if hasattr(block, "post_feedforward_layernorm"):  # Gemma norms what it adds
        return {
            "attn_out": block.post_attention_layernorm,
            "mlp_out": block.post_feedforward_layernorm,
        }
    return {"attn_out": attention(block), "mlp_out": block.mlp}


def projections(block: Any) -> dict[str, Any]:
    """Modules whose outputs are queries and keys before the rotary embedding."""
    inside = attention(block)
    for fused in ("c_attn", "query_key_value", "qkv_proj"):
        if hasattr(inside, fused):
            return {fused: getattr(inside, fused)}
    if hasattr(inside, "q_norm"):
        return {"q": inside.q_norm, "k": inside.k_norm}
    return {"q": inside.q_proj, "k": inside.k_proj}


def first(value: Any) -> torch.Tensor:
    return value[0] if isinstance(value, tuple) else value


class Seen(dict[Any, Any]):
    """What hooks read, by (name, layer)."""

    def output(self, *key: Any) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            self[key] = first(output)[0]

        return hook

    def input(self, *key: Any) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            self[key] = args[0][0]

        return hook

    def keyword(self, *key: Any) -> Callable[..., None]:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            self[key] = kwargs.get("position_embeddings")

        return hook


@contextmanager
def watched(model: Any, seen: Seen) -> Iterator[None]:
    handles = []
    for layer, block in enumerate(blocks(model)):
        named = writers(block) | projections(block) | {"resid_post": block}
        for name, module in named.items():
            handles.append(module.register_forward_hook(seen.output(name, layer)))
        z = seen.input("z", layer)
        handles.append(output_projection(block).register_forward_pre_hook(z))
        rotary = seen.keyword("rotary", layer)
        handles.append(attention(block).register_forward_pre_hook(rotary, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def pinned(model: Any, start: int, inputs: Array) -> Iterator[None]:
    """The input of every block, on the rows from `start` on, is `inputs[layer]`."""

    def replace(rows: torch.Tensor) -> Callable[..., Any]:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = torch.cat([hidden[:, :start], rows[None].to(hidden.dtype)], dim=1)
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        return hook

    handles = [
        block.register_forward_pre_hook(replace(torch.from_numpy(rows)), with_kwargs=True)
        for block, rows in zip(blocks(model), inputs, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forward(model: Any, prefix: Sequence[int], shift: int, query: Sequence[int]) -> Any:
    """The whole sequence at once, without a cache."""
    start, length = len(prefix), len(query)
    places = [*range(start), *range(start + shift, start + shift + length)]
    with torch.no_grad():
        return model(
            torch.tensor([[*prefix, *query]]),
            position_ids=torch.tensor([places]),
            attention_mask=torch.ones(1, start + length, dtype=torch.long),
            output_hidden_states=True,
            output_attentions=True,
            use_cache=False,
        )


# --- one query under one condition ---------------------------------------------------------------


def run(model: Any, condition: Condition, query: Sequence[int]) -> States:
    """Every state of the query's rows."""
    seen, start = Seen(), len(condition.prefix)
    with watched(model, seen):
        out = forward(model, condition.prefix, condition.shift, query)
    layers = range(len(blocks(model)))
    pattern = np.stack([double(a[0]) for a in out.attentions])
    n_heads = pattern.shape[1]
    scores = np.stack([
        scores_of(model, layer, seen, n_heads, pattern[layer]) for layer in layers
    ])  # fmt: skip

    def stacked(name: str) -> Array:
        return np.stack([double(seen[name, layer])[start:] for layer in layers])

    z = stacked("z")
    return States(
        logits=biased(double(out.logits[0])[start:], condition),
        resid_pre=np.stack([double(h[0])[start:] for h in out.hidden_states[:-1]]),
        attn_out=stacked("attn_out"),
        mlp_out=stacked("mlp_out"),
        resid_post=stacked("resid_post"),
        z=z.reshape(*z.shape[:2], n_heads, -1).swapaxes(1, 2),
        pattern=pattern[:, :, start:],
        scores=scores[:, :, start:, start:],
    )


def double(tensor: torch.Tensor) -> Array:
    return tensor.detach().double().numpy()


def biased(logits: Array, condition: Condition) -> Array:
    length = len(logits)
    for token, value, positions in condition.bias:
        for place in range(length) if positions is None else positions:
            if -length <= place < length:
                logits[place, token] += value
    return logits


def scores_of(model: Any, layer: int, seen: Seen, n_heads: int, pattern: Array) -> Array:
    """Pre-softmax scores `[head, pos, pos]` as this model computes them, NaN where masked."""
    inside = attention(blocks(model)[layer])
    q, k = queries_and_keys(model, layer, seen, n_heads)
    if (rotary := seen["rotary", layer]) is not None:
        cos, sin = (double(part[0]) for part in rotary)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
    k = np.repeat(k, len(q) // len(k), axis=0)
    scores = q @ k.swapaxes(-1, -2) * inside.scaling
    if cap := getattr(inside, "attn_logit_softcapping", None):
        scores = np.tanh(scores / cap) * cap
    scores = np.where(visible(model, layer, scores.shape[-1]), scores, np.nan)
    np.testing.assert_allclose(softmax(scores), pattern, atol=1e-5, err_msg="scores: not the model")
    return scores


def queries_and_keys(model: Any, layer: int, seen: Seen, n_heads: int) -> tuple[Array, Array]:
    """`[head, pos, d_head]` each, before the rotary embedding; fewer heads of keys under GQA."""
    length, width = seen["z", layer].shape
    d_head = width // n_heads
    if ("query_key_value", layer) in seen:  # q, k, v of one head stand side by side
        fused = double(seen["query_key_value", layer]).reshape(length, n_heads, 3, d_head)
        return fused[:, :, 0].swapaxes(0, 1), fused[:, :, 1].swapaxes(0, 1)
    for name in ("c_attn", "qkv_proj"):
        if (name, layer) in seen:
            fused = double(seen[name, layer])
            kv_width = (fused.shape[-1] - width) // 2
            q, k = fused[:, :width], fused[:, width : width + kv_width]
            return split(q, d_head), split(k, d_head)
    q, k = (double(seen[name, layer]) for name in "qk")
    if model.config.model_type == "gemma3_text":  # its head norms stand after the split
        return q, k
    return split(q.reshape(length, -1), d_head), split(k.reshape(length, -1), d_head)


def split(flat: Array, d_head: int) -> Array:
    return flat.reshape(len(flat), -1, d_head).swapaxes(0, 1)


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """The rotary embedding on the first `cos.shape[-1]` dimensions."""
    size = cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    half = np.concatenate([-turned[..., size // 2 :], turned[..., : size // 2]], axis=-1)
    return np.concatenate([turned * cos + half * sin, rest], axis=-1)


def visible(model: Any, layer: int, length: int) -> Array:
    """`[pos, pos]`: the causal mask, within the layer's sliding window where it has one."""
    kinds = getattr(model.config, "layer_types", None)
    window = getattr(model.config, "sliding_window", None)
    if kinds is not None and kinds[layer] != "sliding_attention":
        window = None
    distance = np.arange(length)[:, None] - np.arange(length)
    return (distance >= 0) & (distance < (window or length + 1))


# --- all queries under all conditions ------------------------------------------------------------


def observe(
    base: str, conditions: Mapping[str, Condition], queries: Sequence[Sequence[int]]
) -> dict[str, list[States]]:
    """Every query alone under every condition; `base` is the condition named so."""
    bare = conditions["base"]
    models = {name: open_model(base, *c.weights) for name, c in conditions.items()}
    plain = [run(models["base"], bare, query) for query in queries]
    observed = {"base": plain}
    for name, condition in conditions.items():
        if name != "base":
            own = [run(models[name], condition, query) for query in queries]
            if condition.weights != bare.weights:
                pair = (models["base"], models[name])
                own = [
                    with_pinned(*pair, bare, *item)
                    for item in zip(own, plain, queries, strict=True)
                ]
            observed[name] = own
    return observed


def with_pinned(
    base_model: Any, own_model: Any, bare: Condition, own: States, plain: States, query: Any
) -> States:
    """Both mixed runs, after base's prefix and at base's positions."""

    def pattern(model: Any, inputs: Array) -> Array:
        with pinned(model, len(bare.prefix), inputs):
            out = forward(model, bare.prefix, bare.shift, query)
        return content(np.stack([double(a[0]) for a in out.attentions])[:, :, -len(query) :])

    fields = {name: getattr(own, name) for name in States.__dataclass_fields__}
    return States(**fields | {
        "base_inputs": pattern(own_model, plain.resid_pre),
        "base_weights": pattern(base_model, own.resid_pre),
    })  # fmt: skip


# --- the measures, per token ---------------------------------------------------------------------


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


def content(pattern: Array) -> Array:
    """The query's own keys (the last ones), renormalised."""
    own = pattern[..., -pattern.shape[-2] :]
    return own / own.sum(-1, keepdims=True)


def top1(logits: Array) -> Array:
    return logits.argmax(-1)


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


def unmasked(scores: Array) -> Array:
    return np.nan_to_num(scores)


ALONE: dict[tuple[str, str], Callable[[States], Array]] = {
    ("prefix_mass", "pattern"): lambda a: a.pattern[..., : -a.length].sum(-1),
    ("entropy", "pattern"): lambda a: entropy(a.pattern),
    ("content_entropy", "pattern"): lambda a: entropy(a.content),
}
"""Measures of one condition."""

PAIRED: dict[tuple[str, str], Callable[[States, States], Array]] = {
    ("kl_divergence", "output"): lambda a, b: kl_logits(a.logits, b.logits),
    ("js_divergence", "output"): lambda a, b: js(softmax(a.logits), softmax(b.logits)),
    ("top1_agreement", "output"): lambda a, b: (top1(a.logits) == top1(b.logits)).astype(float),
    ("content_js", "pattern"): lambda a, b: js(a.content, b.content),
    ("sim_am", "attn_scores"): lambda a, b: cosine(unmasked(a.scores), unmasked(b.scores)),
}
for _site in STATES:
    PAIRED["cosine", _site] = lambda a, b, s=_site: cosine(getattr(a, s), getattr(b, s))
    PAIRED["relative_l2", _site] = lambda a, b, s=_site: relative_l2(getattr(a, s), getattr(b, s))


def deltas(a: States, b: States, base: States, site: str) -> tuple[Array, Array, Array]:
    """Both changes from base, and base's own state."""
    if site == "attn_scores":
        x, y, zero = (unmasked(each.scores) for each in (a, b, base))
    else:
        x, y, zero = (getattr(each, site) for each in (a, b, base))
    return moved(x, zero), moved(y, zero), zero


def moved(x: Array, zero: Array) -> Array:
    """The change from base, 0 where it is rounding."""
    change = x - zero
    return np.where((norm(change) > STILL * norm(zero))[..., None], change, 0.0)


CHANGED: dict[tuple[str, str], Callable[[Array, Array], Array]] = {
    ("sim_am_delta", "attn_scores"): cosine,
    **{("delta_alignment", site): cosine for site in STATES},
    **{("delta_norm_ratio", site): (lambda x, y: ratio(norm(x), norm(y))) for site in STATES},
}
"""Measures of two changes from base, for pairs whose reference is not base."""


def rounding_of_change(change: Array, state: Array) -> Array:
    """Relative error of a change, from that of the states it is a difference of; at most 2."""
    return np.minimum(2.0, EPSILON * norm(state) / np.maximum(norm(change), 1e-300))


def rounding_of_js(change: Array) -> Array:
    """The same for a JS divergence, which is quadratic in the change of the pattern. A row's first
    token sees only itself: its pattern is the same exactly."""
    error = np.minimum(2.0, EPSILON / np.sqrt(np.maximum(change, 1e-300)))
    return np.where(np.arange(change.shape[-1]) > 0, error, 0.0)


# --- the rows of a run ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """A row's value, on how many queries it stands, and how far float32 rounding may move it: much,
    where it is computed from a change that is hardly more than rounding."""

    value: float
    n: int
    rounding: float = 0.0

    @property
    def meaningful(self) -> bool:
        return self.rounding <= UNKNOWABLE


Key = tuple[str, str, str | None, str, int | None, int | None, str]
KEY = ("measure", "condition", "reference", "site", "layer", "head", "position")
"""What a row is about."""


def rows(
    conditions: Mapping[str, Condition],
    observed: Mapping[str, Sequence[States]],
    pairs: Sequence[tuple[str, str]],
    answers: Sequence[int | None],
    max_positions: int,
) -> dict[Key, Value]:
    """Every row that a run must have, and no other."""
    table: dict[Key, Value] = {}

    def add(name: tuple[str, str], a: str, b: str | None, *values: Any) -> None:
        table.update(expand((name[0], a, b, name[1]), pool(*values, max_positions=max_positions)))

    for a, states in observed.items():
        for name, alone in ALONE.items():
            add(name, a, None, [alone(s) for s in states])
        table["accuracy", a, None, "output", None, None, "last"] = accuracy(states, answers)
    for a, b in pairs:
        for name, paired in PAIRED.items():
            add(name, a, b, [paired(x, y) for x, y in zip(observed[a], observed[b], strict=True)])
        if b == "base":
            add(("rewiring_share", "pattern"), a, b, *rewired(conditions, observed, a))
            continue
        for name, changed in CHANGED.items():
            add(name, a, b, *changes(conditions, observed, a, b, name[1], changed))
        key = ("rec2ftp", a, b, "output", None, None, "last")
        table[key] = rec2ftp(observed["base"], observed[a], observed[b], answers)
    return table


def rewired(
    conditions: Mapping[str, Condition], observed: Mapping[str, Sequence[States]], a: str
) -> tuple[list[Array], list[Array], list[Array]]:
    """Numerators, denominators, and their errors by rounding."""
    parts = [rewiring(x, y) for x, y in zip(observed[a], observed["base"], strict=True)]
    other = conditions[a].computation != conditions["base"].computation
    return (
        [top for top, _ in parts],
        [bottom for _, bottom in parts],
        [rounding_of_js(bottom) * other for _, bottom in parts],
    )


def changes(
    conditions: Mapping[str, Condition],
    observed: Mapping[str, Sequence[States]],
    a: str,
    b: str,
    site: str,
    measure: Callable[[Array, Array], Array],
) -> tuple[list[Array], None, list[Array]]:
    """A measure of two changes from base, and its error by rounding."""
    base = observed["base"]
    both = [deltas(x, y, z, site) for x, y, z in zip(observed[a], observed[b], base, strict=True)]
    moves = [conditions[c].computation != conditions["base"].computation for c in (a, b)]
    errors = [
        rounding_of_change(x, zero) * moves[0] + rounding_of_change(y, zero) * moves[1]
        for x, y, zero in both
    ]
    return [measure(x, y) for x, y, _ in both], None, errors


@dataclass(frozen=True)
class Pooled:
    """`value`, `n`, `rounding`: position -> array over layers and heads."""

    value: dict[str, Array]
    n: dict[str, Array]
    rounding: dict[str, Array]


def pool(
    tops: Sequence[Array],
    bottoms: Sequence[Array] | None = None,
    errors: Sequence[Array] | None = None,
    *,
    max_positions: int,
) -> Pooled:
    """Sums over tokens, divided once; a plain mean where no `bottoms` are given."""
    if bottoms is None:
        bottoms = [np.where(np.isnan(top), np.nan, 1.0) for top in tops]
    errors = errors or [np.zeros(top.shape) for top in tops]
    longest = max(top.shape[-1] for top in tops)
    labels = ["last", "mean", *map(str, range(min(longest, max_positions)))]
    pooled = Pooled({}, {}, {})
    for label in labels:
        chosen = [chosen_tokens(label, top.shape[-1]) for top in tops]
        up = sum(np.nansum(t[..., c], -1) for t, c in zip(tops, chosen, strict=True))
        down = sum(np.nansum(b[..., c], -1) for b, c in zip(bottoms, chosen, strict=True))
        known = [(~np.isnan(t[..., c])).any(-1) for t, c in zip(tops, chosen, strict=True)]
        error = sum(e[..., c].sum(-1) for e, c in zip(errors, chosen, strict=True))
        pooled.value[label] = ratio(np.asarray(up), np.asarray(down))
        pooled.n[label] = np.sum(known, axis=0)
        pooled.rounding[label] = np.asarray(error) / sum(map(len, chosen))
    return pooled


def chosen_tokens(label: str, length: int) -> list[int]:
    """Token indices of a query that a position label covers."""
    if label == "last":
        return [length - 1]
    if label == "mean":
        return list(range(length))
    return [int(label)] if int(label) < length else []


def expand(head: tuple[str, str, str | None, str], pooled: Pooled) -> Iterator[tuple[Key, Value]]:
    """One row per layer, head and position."""
    for label, values in pooled.value.items():
        for place in np.ndindex(values.shape):
            layer, at = (*place, None, None)[:2]
            yield (
                (*head, layer, at, label),
                Value(
                    float(values[place]),
                    int(pooled.n[label][place]),
                    float(pooled.rounding[label][place]),
                ),
            )


def correct(states: Sequence[States], answers: Sequence[int | None]) -> Array:
    """Whether the answer comes first at each query's last token; NaN for queries without one."""
    return np.array([
        np.nan if answer is None else float(top1(s.logits[-1]) == answer)
        for s, answer in zip(states, answers, strict=True)
    ])  # fmt: skip


def accuracy(states: Sequence[States], answers: Sequence[int | None]) -> Value:
    known = correct(states, answers)
    known = known[~np.isnan(known)]
    return Value(float(known.mean()) if len(known) else float("nan"), len(known))


def rec2ftp(
    base: Sequence[States],
    a: Sequence[States],
    reference: Sequence[States],
    answers: Sequence[int | None],
) -> Value:
    """Of what base misses and the reference knows, the share that the condition knows too."""
    zero, own, other = (correct(states, answers) for states in (base, a, reference))
    learned = (zero == 0) & (other == 1)
    value = float(own[learned].mean()) if learned.any() else float("nan")
    return Value(value, int((~np.isnan(zero)).sum()))


def certificate(a: Sequence[States], b: Sequence[States]) -> dict[str, float]:
    """Outputs at each query's last token: mean and 95th percentile of JS, and top-1 agreement."""
    last = [(x.logits[-1], y.logits[-1]) for x, y in zip(a, b, strict=True)]
    divergences = [float(js(softmax(x), softmax(y))) for x, y in last]
    return {
        "mean_js": float(np.mean(divergences)),
        "p95_js": float(np.quantile(divergences, 0.95)),
        "top1_agreement": float(np.mean([top1(x) == top1(y) for x, y in last])),
        "n": len(last),
    }
