"""The logit lens and the equation of influence, written out from the weights.

With the final norm's scale frozen, the logits are linear in what was written to the residual
stream: `terms` gives every write's share of them, for all tokens of the vocabulary at once, and
checks that the shares sum to the model's own logits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .conditions import Condition
from .models import blocks, final_norm, output_bias, output_weight, post_norm
from .numbers import Array, double, js, kl_logits, log_softmax, softmax, top1

if TYPE_CHECKING:
    from .running import States

CLOSES = 1e-4
"""Largest error of the sum of all terms, relative to the largest term (float32 states)."""


def unembedding(model: Any) -> tuple[Array, Array]:
    """Weight `[vocab, d_model]` and bias `[vocab]`."""
    head = model.get_output_embeddings()
    weight = double(head.weight)
    bias = getattr(head, "bias", None)
    return weight, np.zeros(len(weight)) if bias is None else double(bias)


def capped(model: Any, logits: Array) -> Array:
    cap = getattr(model.config, "final_logit_softcapping", None)
    return np.tanh(logits / cap) * cap if cap else logits


def added(condition: Condition, length: int, n_vocab: int) -> Array:
    """What a condition adds to the logits of a query's last token."""
    total = np.zeros(n_vocab)
    for token, value, positions in condition.bias:
        if positions is None:
            total[token] += value
        else:
            total[token] += value * sum(p in (-1, length - 1) for p in positions)
    return total


def lens(model: Any, condition: Condition, states: States) -> tuple[Array, Array]:
    """`[layer, vocab]`: what the states would say if the model ended after each layer, at the last
    token; the same with what the condition adds to the logits."""
    weight, bias = unembedding(model)
    logits = final_norm(model)(states.resid_post[:, -1]) @ weight.T + bias
    logits = capped(model, logits)
    said = logits + added(condition, states.length, len(weight))
    close(said[-1], states.logits[-1], "lens")
    return logits, said


def terms(model: Any, condition: Condition, states: States) -> dict[str, Array]:
    """Shares of the logits `[..., vocab]` at the last token: `z` `[layer, head]`, `attn_bias` and
    `mlp_out` `[layer]`, the others without axes; a term the model or condition lacks is absent."""
    weight, bias = unembedding(model)
    last, scale = final_norm(model), final_norm(model).scale(states.resid_post[-1, -1])

    def share(write: Array) -> Array:
        return last.linear(write, scale) @ weight.T

    found = attention_terms(model, states)
    found |= {"mlp_out": states.mlp_out[:, -1], "embed": states.resid_pre[0, -1]}
    if condition.steering:
        found["steering"] = np.array(condition.steering[0])
    shares = {name: share(write) for name, write in found.items()}
    shares["norm"] = last.bias @ weight.T + bias
    raw = sum(x.reshape(-1, len(weight)).sum(0) for x in shares.values())
    if getattr(model.config, "final_logit_softcapping", None):
        shares["softcap"] = capped(model, raw) - raw
    if condition.bias:
        shares["logit_bias"] = added(condition, states.length, len(weight))
    total = sum(x.reshape(-1, len(weight)).sum(0) for x in shares.values())
    close(total, states.logits[-1], "equation of influence")
    return shares | {"output": states.logits[-1]}


def attention_terms(model: Any, states: States) -> dict[str, Array]:
    """What each head, and the output projection's bias, writes at the last token."""
    heads, biases = [], []
    for layer, block in enumerate(blocks(model)):
        z = states.z[layer, :, -1]
        weight = output_weight(block).reshape(*z.shape, -1)
        writes = np.einsum("hd,hdm->hm", z, weight)
        constant = output_bias(block)
        if norm_after := post_norm(block):
            assert constant is None
            writes = norm_after.linear(writes, norm_after.scale(writes.sum(0)))
        heads.append(writes)
        biases += [] if constant is None else [constant]
        total = writes.sum(0) + (0 if constant is None else constant)
        close(total, states.attn_out[layer, -1], f"heads of layer {layer}")
    return {"z": np.stack(heads)} | ({"attn_bias": np.stack(biases)} if biases else {})


def close(found: Array, wanted: Array, what: str) -> None:
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    assert error <= CLOSES, f"{what} does not close: {error:.2g}"


# --- measures, one number (or one per layer) per query -------------------------------------------


def lens_js(a: States, b: States) -> Array:
    """Of the states alone: a logit bias moves none of them."""
    return js(softmax(a.lens), softmax(b.lens))


def lens_kl(states: States) -> Array:
    return kl_logits(states.logits[-1], states.said)


def answer_information(states: States, target: int) -> Array:
    return np.log(states.said.shape[-1]) + log_softmax(states.said)[:, target]


def decision_depth(states: States) -> float:
    """The first layer from which the first token never changes again."""
    final, depth = int(top1(states.logits[-1])), len(states.said)
    for layer in reversed(range(len(states.said))):
        if int(top1(states.said[layer])) != final:
            break
        depth = layer
    return float(depth) if depth < len(states.said) else float("nan")


def margin(logits: Array) -> float:
    """How far the first token is ahead of the second, in the closest layer."""
    best = np.sort(logits, axis=-1)
    return float((best[..., -1] - best[..., -2]).min())


def influence(a: States, b: States, target: int) -> dict[str, Array]:
    """Every term's part in the change of the target's logit; 0 for what a condition lacks."""
    both = {**a.terms, **b.terms}
    return {name: at(a, name, target) - at(b, name, target) for name in both}


def at(states: States, name: str, target: int) -> Array:
    found = states.terms.get(name)
    return np.array(0.0) if found is None else found[..., target]
