"""A logit bias that makes one condition's mean next-token distribution another's.

    bias = fit_bias(subject, queries, base, lora, batch_size=32)
    setting = replace(base, bias=bias)

The negative control of every claim about internal state: it moves outputs and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interp.capture import chunks
from interp.conditions import Setting
from interp.measures import wide
from interp.queries import Encoded
from interp.subject import Batch, Subject

TOKENS, STEPS, ENOUGH = 256, 200, 1e-4
"""How many tokens get a bias, how many steps are made at most, and the largest step (logits) after
which no more are."""


def fit_bias(
    subject: Subject, queries: Sequence[Encoded], own: Setting, like: Setting, batch_size: int
) -> tuple[tuple[int, float, None], ...]:
    """(token id, bias, None) of the `TOKENS` likeliest tokens of both settings, by iterative
    scaling (Darroch & Ratcliff 1972): each step adds `ln(wanted / had)` of the mean probability,
    over the queries' last tokens, and brings the divergence from what is wanted down."""
    logits = _last_logits(subject, own, queries, batch_size)
    wanted = _last_logits(subject, like, queries, batch_size).softmax(-1).mean(0)
    tokens = (wanted + logits.softmax(-1).mean(0)).topk(min(TOKENS, len(wanted))).indices
    bias = torch.zeros_like(wanted)
    for _ in range(STEPS):
        had = (logits + bias).softmax(-1).mean(0)
        step = (wanted[tokens] / had[tokens]).log()
        bias[tokens] += step
        if float(step.abs().max()) <= ENOUGH:
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
