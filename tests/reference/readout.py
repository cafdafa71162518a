"""The logit lens and the equation of influence, written out from the weights.

With the final norm's scale frozen, the logits are linear in what was written to the residual
stream: `terms` gives every write's share of them, for all tokens of the vocabulary at once, and
checks that the shares sum to the model's own logits.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .conditions import Condition
from .models import blocks, final_norm, output_bias, output_weight, post_norm, reaching
from .numbers import Array, double, js, kl_logits, log_softmax, top1

if TYPE_CHECKING:
    from .running import States

CLOSES = 1e-4
"""Largest error of the sum of all terms, relative to the largest term (float32 states)."""


@functools.lru_cache(maxsize=2)  # asked again at every row of the same model
def unembedding(model: Any) -> tuple[Array, Array]:
    """Weight `[vocab, d_model]` and bias `[vocab]`."""
    head = model.get_output_embeddings()
    scale = getattr(model.config, "logit_scale", 1.0)
    weight = scale * double(head.weight)
    bias = getattr(head, "bias", None)
    return weight, np.zeros(len(weight)) if bias is None else scale * double(bias)


def capped(model: Any, logits: Array) -> Array:
    cap = getattr(model.config, "final_logit_softcapping", None)
    return np.tanh(logits / cap) * cap if cap else logits


def added(condition: Condition, states: States, n_vocab: int) -> Array:
    """What a condition adds to the logits `[row, vocab]` of the rows that predict an answer."""
    total = np.zeros((states.length, n_vocab))
    for token, value, positions in condition.bias:
        if positions is None:
            total[:, token] += value
            continue
        for position in positions:
            place = position if position >= 0 else states.end + position
            if 0 <= place < states.length:
                total[place, token] += value
    return total[states.answer]


def lens(model: Any, condition: Condition, states: States) -> tuple[Array, Array]:
    """`[layer, row, vocab]`: what the states would say if the model ended after each layer, at the
    rows that predict the answer; the same with what the condition adds to the logits."""
    weight, bias = unembedding(model)
    logits = final_norm(model)(states.resid_post[:, states.answer]) @ weight.T + bias
    logits = capped(model, logits)
    said = logits + added(condition, states, len(weight)) if condition.bias else logits
    close(said[-1], states.logits[states.answer], "lens")
    return logits, said


def terms(model: Any, condition: Condition, states: States) -> dict[str, Array]:
    """Shares of the logits `[row, ..., token]` at the rows that predict the answer: of all tokens,
    or of those that `states.kept` names, one per row."""
    rows = range(states.end - 1, states.length)
    kept = states.kept or [None] * len(rows)
    found = [terms_at(model, condition, states, *each) for each in zip(rows, kept, strict=True)]
    return {name: np.stack([terms[name] for terms in found]) for name in found[0]}


def terms_at(
    model: Any, condition: Condition, states: States, row: int, token: int | None
) -> dict[str, Array]:
    """Shares of the logits `[..., token]` at one row: `z` `[layer, head]`; `attn_bias`, `mlp_out`,
    `mixer_out` and `per_layer_out` `[layer]`; the others without axes. A term that the model or
    condition lacks is absent."""
    weight, bias = unembedding(model)
    some = slice(None) if token is None else slice(token, token + 1)
    extra = added(condition, states, len(weight))[row - states.end + 1, some]
    weight, bias, output = weight[some], bias[some], states.logits[row, some]
    last, scale = final_norm(model), final_norm(model).scale(states.resid_post[-1, row])

    def share(write: Array) -> Array:
        return last.linear(write, scale) @ weight.T

    reach = reaching(model)
    found = attention_terms(model, states, row)
    for site in ("mixer_out", "mlp_out", "per_layer_out"):
        if len(writes := getattr(states, site)):
            found[site] = writes[:, row]
    for site, writes in found.items():
        factor = reach[list(states.layers(site))]
        found[site] = writes * factor.reshape(-1, *[1] * (writes.ndim - 1))
    found["embed"] = states.resid_pre[0, row] * reach[0]
    if condition.steering:
        assert (reach == 1).all()
        found["steering"] = np.array(condition.steering[0])
    shares = {name: share(write) for name, write in found.items()}
    shares["norm"] = last.bias @ weight.T + bias
    raw = sum(x.reshape(-1, len(weight)).sum(0) for x in shares.values())
    if getattr(model.config, "final_logit_softcapping", None):
        shares["softcap"] = capped(model, raw) - raw
    if condition.bias:
        shares["logit_bias"] = extra
    total = sum(x.reshape(-1, len(weight)).sum(0) for x in shares.values())
    close(total, output, "equation of influence", shares.values())
    return shares | {"output": output}


def attention_terms(model: Any, states: States, row: int) -> dict[str, Array]:
    """What each head, and the output projection's bias, writes at a row."""
    heads, biases = [], []
    for number, layer in enumerate(states.heads):
        block, z = blocks(model)[layer], states.z[number, :, row]
        weight = output_weight(block).reshape(len(z), -1, states.attn_out.shape[-1])
        writes = np.einsum("hd,hdm->hm", z[:, : weight.shape[1]], weight)
        constant = output_bias(block)
        if norm_after := post_norm(block):
            assert constant is None
            writes = norm_after.linear(writes, norm_after.scale(writes.sum(0)))
        heads.append(writes)
        biases += [] if constant is None else [constant]
        total = writes.sum(0) + (0 if constant is None else constant)
        close(total, states.attn_out[number, row], f"heads of layer {layer}")
    return {"z": np.stack(heads)} | ({"attn_bias": np.stack(biases)} if biases else {})


def close(found: Array, wanted: Array, what: str, parts: Iterable[Array] = ()) -> None:
    size = max(np.abs(x).max() for x in (wanted, *parts))
    error = np.abs(found - wanted).max() / size
    assert error <= CLOSES, f"{what} does not close: {error:.2g}"


# --- measures, one number (or one per layer) per row of an answer --------------------------------


def lens_js(a: States, b: States) -> Array:
    """Of the states alone: a logit bias moves none of them."""
    return js(a.lens_shares, b.lens_shares)


def lens_kl(states: States) -> Array:
    return kl_logits(states.logits[states.answer], states.said)


def answer_information(states: States, targets: Sequence[int]) -> Array:
    logs = [log_softmax(states.said[:, row])[:, target] for row, target in enumerate(targets)]
    return np.log(states.said.shape[-1]) + np.stack(logs, axis=-1)


def decision_depth(states: States) -> Array:
    """The first layer from which the first token never changes again."""
    rows = zip(states.logits[states.answer], states.said.swapaxes(0, 1), strict=True)
    return np.array([depth(int(top1(logits)), said) for logits, said in rows])


def depth(final: int, said: Array) -> float:
    found = len(said)
    for layer in reversed(range(len(said))):
        if int(top1(said[layer])) != final:
            break
        found = layer
    return float(found) if found < len(said) else float("nan")


def margin(logits: Array) -> Array:
    """How far the first token is ahead of the second at every row, in the closest layer."""
    best = np.partition(logits, -2, axis=-1)
    return (best[..., -1] - best[..., -2]).min(0)


def influence(a: States, b: States, targets: Sequence[int]) -> dict[str, Array]:
    """Every term's part in the change of the targets' logits; 0 for what a condition lacks."""
    both = {**a.terms, **b.terms}
    return {name: at(a, name, targets) - at(b, name, targets) for name in both}


def at(states: States, name: str, targets: Sequence[int]) -> Array:
    """`[..., row]`: a term's part in the logit of every row's target."""
    found = states.terms.get(name)
    if found is None:
        return np.zeros(len(targets))
    if states.kept is not None:
        assert states.kept == tuple(targets)
        targets = [0] * len(targets)
    return np.stack([x[..., target] for x, target in zip(found, targets, strict=True)], axis=-1)
