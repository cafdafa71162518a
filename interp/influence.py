"""The equation of influence: what every part of a model wrote of what it says.

    change = influence(subject, setting, tokens, last, target)      # `last`: interp.readout
    change.z                                                        # [batch, layer, head]
    (change - influence_of_reference).terms()                       # a change, site by site

Everything is computed by the live modules under the setting's weights: a LoRA on the output
projection or the unembedding, a fine-tuned final norm, GPT-2's transposed and Phi-3's fused
projections need no case of their own. No weight matrix is read.

In float32 the equation closes to 1e-5 of the largest term (`closing_error`). In half precision the
terms are still computed in float32, but the model rounds the residual stream after every addition
and rounds its logits: what it says is not exactly the sum of what was written, and the equation
closes to that rounding, about 1e-2 in bfloat16 and 2e-3 in float16.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from interp.batch import Tokens
from interp.conditions import Setting
from interp.measures import wide
from interp.readout import WRITES, LastStates, capped
from interp.subject import Subject


@dataclass(frozen=True)
class Influence:
    """The terms whose sum is a logit (or a difference of two), in logits, unbounded.

    `z`: what every head wrote. `attn_bias`: the output projection's bias (and the post-norm's,
    where there is one). `mixer_out`, `mlp_out`, `per_layer_out`: what every block's recurrence (or
    convolution), MLP and per-layer embedding wrote. Each is by the layers that have the site.
    `embed`: what entered the first block.
    `norm`: the biases of the final norm and of the unembedding. `logit_bias` and `steering`: what
    the condition itself adds to the logits and to the residual stream. `softcap`: what the final
    soft-cap takes away, `cap(l) - l`. `total`: the logit in the model's own output.
    """

    z: Float[Tensor, "token head_layer head"]
    attn_bias: Float[Tensor, "token head_layer"]
    mixer_out: Float[Tensor, "token mixer_layer"]
    mlp_out: Float[Tensor, "token mlp_layer"]
    per_layer_out: Float[Tensor, "token per_layer"]
    embed: Float[Tensor, " token"]
    norm: Float[Tensor, " token"]
    logit_bias: Float[Tensor, " token"]
    softcap: Float[Tensor, " token"]
    steering: Float[Tensor, " token"]
    total: Float[Tensor, " token"]

    def terms(self) -> dict[str, Tensor]:
        """Site -> its terms: all but the total."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "total"}

    def __sub__(self, reference: Influence) -> Influence:
        """Term by term: what changed the logit between two conditions."""
        pairs = ((getattr(self, f.name), getattr(reference, f.name)) for f in fields(self))
        return Influence(*(own - other for own, other in pairs))


def present_terms(subject: Subject) -> set[str]:
    """The terms that some condition of this model can have; the others are 0 in all of them."""
    settings = subject.settings.values()
    blocks = [subject.blocks[layer] for layer in subject.anatomy.layers("z")]
    projections = [block.attn.o.original_component for block in blocks]
    optional = {
        "z": bool(blocks),
        "attn_bias": any(getattr(o, "bias", None) is not None for o in projections),
        "logit_bias": any(setting.bias for setting in settings),
        "steering": any(setting.steering for setting in settings),
        "softcap": subject.cap is not None,
    }
    optional |= {name: bool(subject.anatomy.layers(name)) for name in WRITES}
    always = {field.name for field in fields(Influence)} - {"total", *optional}
    return always | {site for site, there in optional.items() if there}


def influence(
    subject: Subject,
    setting: Setting,
    tokens: Tokens,
    last: LastStates,
    target: Int[Tensor, " token"],
    against: Int[Tensor, " token"] | None = None,
) -> Influence:
    """Split the logit of `target`, or its lead over `against`, into what every part of the model
    contributed at these tokens (docs/reference/metrics.md).

    A part that wrote `w` contributes `<u, w>`: `u` is the token's unembedding direction pulled
    back through the final norm with its scale frozen at this condition's own value. Under a
    post-norm (Gemma) a head's write goes through that norm too, its scale frozen likewise. A
    head's share is `<z_h, Jᵀu>` with the live output projection's Jacobian, which is constant:
    also with a LoRA on it. Terms are float64, and sum to the condition's own logit
    (`closing_error`). Every token needs a target: a negative id is a ValueError.
    """
    if (target < 0).any() or (against is not None and (against < 0).any()):
        raise ValueError("every query needs a target token; a negative id is none")
    anatomy = subject.anatomy
    with subject.weights.of(setting):
        end = last.resid_post[:, -1]
        raw, direction, bias = _unembedded(subject, end, target, against)
        final = Frozen.at(subject.final_norm, end)
        pulled = final.pull(direction)
        heads, biases = [], []
        for layer, z in last.z.items():
            reaching = pulled * anatomy.reaching(layer, "z")
            by_head, by_bias = _attention(subject.blocks[layer], z, reaching)
            heads.append(by_head)
            biases.append(by_bias)
    written: dict[str, list[Tensor]] = {name: [] for name in WRITES}
    for site, value in sorted(last.written.items()):
        reaching = pulled * anatomy.reaching(site.layer, site.name)
        written[site.name].append(_dot(reaching, wide(value)))
    return Influence(
        z=_by_layer(heads, last.embed[:, :0]),
        attn_bias=_by_layer(biases, last.embed[:, 0]),
        **{name: _by_layer(terms, last.embed[:, 0]) for name, terms in written.items()},
        embed=_dot(pulled * anatomy.reaching(-1), wide(last.embed)),
        norm=_dot(direction, final.bias) + bias,
        logit_bias=_logit_bias(setting, tokens, target, against, pulled),
        softcap=_led(capped(raw, subject.cap) - raw),
        steering=_steering(subject, setting, pulled),
        total=_led(_chosen(wide(last.logits), target, against)),
    )


def closing_error(influence: Influence) -> float:
    """The largest, over queries, of `|sum of terms - total|` relative to that query's largest
    term in absolute value (the total counted among them): `[0, inf)`, 0 where the equation is
    exact."""
    terms = torch.cat([t.flatten(1) for t in map(_column, influence.terms().values())], dim=1)
    gap = (terms.sum(-1) - influence.total).abs()
    largest = torch.cat([terms, influence.total[:, None]], dim=1).abs().amax(-1)
    return float((gap / largest.clamp(min=torch.finfo(gap.dtype).tiny)).max())


@dataclass(frozen=True)
class Frozen:
    """A norm as the affine map it is once its scale is fixed: `x -> scale · gain · C x + bias`,
    with `C` the removal of the mean (LayerNorm) or nothing (RMSNorm)."""

    scale: Float[Tensor, "token 1"]
    gain: Float[Tensor, " d_model"]
    bias: Float[Tensor, " d_model"]
    centred: Bool[Tensor, ""]

    @classmethod
    def at(cls, norm: Any, states: Float[Tensor, "token d_model"]) -> Frozen:
        """The norm with the scale it has at `states`, found by asking it and not by its class.

        0 gives the bias. A large vector of ±1 (of even width) has no mean and the scale 1 (its
        epsilon vanishes), and gives the gain. A constant vector gives the bias again where the mean
        is removed. The scale is then the least-squares ratio of what the norm makes of a state.
        """
        signs = torch.ones_like(states[:1], dtype=torch.float32)
        signs[:, 1::2] = -1.0
        probes = torch.cat([torch.zeros_like(signs), _LARGE * signs, _LARGE * signs.abs()])
        with torch.no_grad():
            bias, signed, constant = wide(_exact(norm, probes))
            normed = wide(_exact(norm, states.float()))
        gain = (signed - bias) * wide(signs[0])
        centred = (constant - bias).abs().max() < 0.5 * gain.abs().max()
        unscaled = gain * _centre(wide(states), centred)
        length = unscaled.square().sum(-1, keepdim=True)
        scale = ((normed - bias) * unscaled).sum(-1, keepdim=True)
        return cls(scale / length.clamp(min=torch.finfo(length.dtype).tiny), gain, bias, centred)

    def pull(self, direction: Float[Tensor, "token d_model"]) -> Float[Tensor, "batch d_model"]:
        """`u` with `<u, x> + <direction, bias> = <direction, norm(x)>`."""
        return self.scale * _centre(self.gain * direction, self.centred)

    def push(self, write: Float[Tensor, "token d_model"]) -> Float[Tensor, "batch d_model"]:
        """What a part of the norm's input adds to its output: float64."""
        return self.scale * self.gain * _centre(wide(write), self.centred)


_LARGE = 64.0
"""Size of the probes of a norm: its square makes an epsilon of 1e-5 relative 3e-9, and does not
overflow in half precision."""


def _centre(x: Tensor, centred: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True) * centred


def _exact(module: Any, x: Tensor) -> Tensor:
    """A live module's output for a float32 input, its parameters widened where they are narrower
    (the module itself stays as it is)."""
    inside = module.original_component
    narrow = {
        name: value.float()
        for name, value in (*inside.named_parameters(), *inside.named_buffers())
        if value.dtype in (torch.bfloat16, torch.float16)
    }
    if not narrow:
        return inside(x)
    return torch.func.functional_call(inside, narrow, (x,))


def _unembedded(
    subject: Subject, end: Tensor, target: Tensor, against: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the chosen tokens: logits before the soft-cap `[token, 1 or 2]`; the direction
    `[token, d_model]` that the unembedding gives (a lead's: the difference); its bias."""
    with torch.no_grad():
        normed = subject.final_norm(end)
    with torch.enable_grad():
        rows = torch.cat([normed, torch.zeros_like(normed[:1])]).requires_grad_()
        logits = subject.unembed(rows)
        directions = [
            torch.autograd.grad(
                logits[:-1].gather(-1, token[:, None]).sum(), rows, retain_graph=True
            )[0]
            for token in (target, against)
            if token is not None
        ]
    logits = wide(logits.detach())
    direction = _led(torch.stack([wide(d[:-1]) for d in directions], dim=1))
    bias = _led(_chosen(logits[-1:].expand(len(end), -1), target, against))
    return _chosen(logits[:-1], target, against), direction, bias


def _chosen(logits: Tensor, target: Tensor, against: Tensor | None) -> Tensor:
    """The columns of the target and of what it is held against `[token, 1 or 2]`."""
    tokens = [target] if against is None else [target, against]
    return logits.gather(-1, torch.stack(tokens, dim=-1))


def _led(values: Tensor) -> Tensor:
    """The target's value, less the other's where there is one (dimension 1)."""
    return values[:, 0] - values[:, 1] if values.shape[1] == 2 else values[:, 0]


def _attention(block: Any, z: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor]:
    """One layer's contributions: of the heads `[token, head]`, of the biases `[token]`."""
    norm = getattr(block, "ln1_post", None)
    flat = rearrange(z, "b h d -> b (h d)").float()
    with torch.enable_grad():
        rows = torch.cat([flat, torch.zeros_like(flat[:1])]).requires_grad_()
        written = _exact(block.attn.o, rows)
    raw, bias = written.detach()[:-1], wide(written.detach()[-1])
    constant = torch.zeros_like(pulled[:, 0])
    if norm is not None:
        frozen = Frozen.at(norm, raw)
        constant = _dot(pulled, frozen.bias)
        pulled = frozen.pull(pulled)
    (gradient,) = torch.autograd.grad(written[:-1], rows, pulled.to(written.dtype))
    back = rearrange(wide(gradient[:-1]), "b (h d) -> b h d", h=z.shape[1])
    return (back * wide(z)).sum(-1), constant + _dot(pulled, bias)


def _logit_bias(
    setting: Setting, tokens: Tokens, target: Tensor, against: Tensor | None, like: Tensor
) -> Tensor:
    total = torch.zeros_like(like[:, 0])
    for token, amount in tokens.bias(setting):
        total = total + amount * (target == token)
        if against is not None:
            total = total - amount * (against == token)
    return total


def _steering(subject: Subject, setting: Setting, pulled: Tensor) -> Tensor:
    """What was added to the residual stream, at whatever layer, stays in it to the end."""
    total = torch.zeros_like(pulled[:, 0])
    for layer, vector in subject.steering(setting):
        total = total + _dot(pulled * subject.anatomy.reaching(layer), wide(vector))
    return total


def _by_layer(terms: list[Tensor], like: Tensor) -> Tensor:
    """Terms of layers, stacked behind the tokens; of no layer, an axis of length 0."""
    return torch.stack(terms, dim=1) if terms else like[:, None].double()[:, :0]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1)


def _column(term: Tensor) -> Tensor:
    return term[:, None] if term.ndim == 1 else term
