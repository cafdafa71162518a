"""A logit bias that makes one condition's mean next-token distribution another's.

    bias = fit_bias(subject, queries, base, lora, batch_size=32)
    setting = replace(base, bias=bias)

The negative control of every claim about internal state: it moves outputs and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.capture import chunks
from interp.conditions import Setting
from interp.measures import wide
from interp.queries import Encoded
from interp.subject import Batch, Subject

TOKENS, STEPS, _ENOUGH = 256, 200, 1e-4
"""How many tokens get a bias, how many steps are made at most, and the largest step (logits) after
which no more are."""

TokenBiases = tuple[tuple[int, float, None], ...]
"""Token id and bias (logits); such a bias is added at every token."""


def fit_bias(
    subject: Subject, queries: Sequence[Encoded], own: Setting, like: Setting, batch_size: int
) -> TokenBiases:
    """The bias of `own` that gives the queries' last tokens the mean distribution that they have
    under `like`."""
    said, wanted = (_last_logits(subject, s, queries, batch_size) for s in (own, like))
    return scaled_bias(said, wanted, torch.full_like(said[:, 0], 1 / len(said)), subject)


def scaled_bias(
    logits: Float[Tensor, "token d_vocab"],
    like: Float[Tensor, "token d_vocab"],
    share: Float[Tensor, " token"],
    subject: Subject,
) -> TokenBiases:
    """The bias of the `TOKENS` likeliest tokens of both, by iterative scaling (Darroch & Ratcliff
    1972): each step adds `ln(wanted / had)` of the mean probability, and brings the divergence from
    what is wanted down. `share` sums to 1."""
    wanted = share @ like.softmax(-1)
    likely = (wanted + share @ logits.softmax(-1))[: subject.n_words]
    tokens = likely.topk(min(TOKENS, len(likely))).indices
    bias = torch.zeros_like(wanted)
    for _ in range(STEPS):
        had = share @ (logits + bias).softmax(-1)
        step = (wanted[tokens] / had[tokens]).log()
        bias[tokens] += step
        if float(step.abs().max()) <= _ENOUGH:
            break
    return tuple((int(token), float(bias[token]), None) for token in tokens)


def _last_logits(
    subject: Subject, setting: Setting, queries: Sequence[Encoded], batch_size: int
) -> Tensor:
    cache = subject.prefill(setting)
    found = []
    for chunk in chunks(queries, batch_size):
        batch = Batch.of(chunk, subject.device)
        logits = subject.run(setting, batch, cache)
        rows = torch.arange(len(chunk), device=logits.device)
        found.append(wide(logits[rows, batch.lengths - 1]))
    return torch.cat(found)
