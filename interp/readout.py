"""Readout: from a state to what it says.

Both this and its inverse (`interp.influence`) are read at chosen tokens, those that predict an
answer:

    got = capture(subject, setting, batch, cache, {site: keep for site in sites(subject)})
    last = LastStates.of(got.values, got.logits, batch.answer)      # or batch.last

The logit lens is as wide as the vocabulary, so that a sweep takes one layer of all conditions,
compares them, and lets go of them:

    for layer in range(subject.n_layers):
        said = {c: lens(subject, settings[c], last[c].resid_post[:, layer], tokens) for c in last}
        for a, b in pairs:
            js_divergence(said[a], said[b])                         # lens_js
        for c in said:
            top1[c].append(said[c].argmax(-1))                      # for decision_depth
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Tokens
from interp.conditions import Setting
from interp.measures import wide
from interp.names import Site
from interp.subject import Subject

WRITES = ("mixer_out", "mlp_out", "per_layer_out")
"""What is written to the residual stream as a whole, not head by head."""

READ_SITES = ("z", *WRITES, "resid_post")
"""What is read at every layer that has it; the first layer's `resid_pre` comes with them."""


def sites(subject: Subject) -> list[Site]:
    """The sites that `LastStates.of` needs."""
    return [Site("resid_pre", 0), *(s for s in subject.anatomy.points if s.name in READ_SITES)]


@dataclass(frozen=True)
class LastStates:
    """One condition at some tokens of a batch (`Tokens`), the first axis of every field.

    `embed` is the first block's input (position embeddings included), `z` by layer that has heads,
    `written` what is added to the residual stream (after Gemma's post-norm), by site of `WRITES`
    and layer that has it, `logits` the condition's own output.
    """

    embed: Float[Tensor, "token d_model"]
    z: dict[int, Float[Tensor, "token head d_head"]]
    written: dict[Site, Float[Tensor, "token d_model"]]
    resid_post: Float[Tensor, "token layer d_model"]
    logits: Float[Tensor, "token d_vocab"]

    @classmethod
    def of(cls, values: Mapping[Site, Tensor], logits: Tensor, tokens: Tokens) -> LastStates:
        """Slice captured `values` (of `sites`, kept by `capture.keep`) and `logits`
        `[token, query_pos, d_vocab]`."""
        rows, columns = tokens.query, tokens.column

        def last(site: Site) -> Tensor:
            value = values[site]
            return value[rows, :, columns] if value.ndim == 4 else value[rows, columns]

        def every(name: str) -> dict[int, Tensor]:
            return {site.layer: last(site) for site in sorted(values) if site.name == name}

        return cls(
            embed=last(Site("resid_pre", 0)),
            z=every("z"),
            written={site: last(site) for site in values if site.name in WRITES},
            resid_post=torch.stack([*every("resid_post").values()], dim=1),
            logits=logits[rows, columns],
        )


def lens(
    subject: Subject,
    setting: Setting,
    states: Float[Tensor, "token *layer d_model"],
    tokens: Tokens | None = None,
) -> Float[Tensor, "token *layer d_vocab"]:
    """The logits that residual-stream states at some tokens would give if no block
    followed: the model's final norm, unembedding and soft-cap under the setting's weights
    (nostalgebraist 2020, "interpreting GPT: the logit lens").

    With `tokens`, a logit bias of the setting is added as the model adds it at these: the
    lens of the last layer is then the condition's own output. Without, it is left out: identical
    states give identical lenses.
    """
    with torch.no_grad(), subject.weights.of(setting):
        logits = subject.unembed(subject.final_norm(states))
    logits = capped(logits, subject.cap)
    if tokens is not None:
        for token, amount in tokens.bias(setting):
            logits[..., token] += amount.view(-1, *[1] * (states.ndim - 2))
    return logits


def lens_error(
    final_logits: Float[Tensor, "*token d_vocab"], lens_logits: Float[Tensor, "*token d_vocab"]
) -> float:
    """How far the last layer's lens is from the output it must equal: the largest difference,
    relative to the larger of 1 and the output's root mean square."""
    final, read = wide(final_logits), wide(lens_logits)
    return float((final - read).abs().max() / final.square().mean().sqrt().clamp(min=1.0))


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Logits under a model's final soft-cap, where it has one."""
    return logits if cap is None else torch.tanh(logits / cap) * cap
