"""A logit bias that makes one condition's mean next-token distribution another's.

    bias = fit_bias(subject, queries, base, lora, batch_size=32)
    setting = replace(base, bias=bias)
    bias = fit_answers(subject, wanted, base, batch_size=32)    # of `Examples`: answers too

The negative control of every claim about internal state: it moves outputs and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.capture import chunks
from interp.conditions import Setting
from interp.matching.examples import Examples
from interp.measures import wide
from interp.queries import Encoded
from interp.subject import Batch, Subject

TOKENS, STEPS, _ENOUGH = 256, 200, 1e-4
"""How many tokens get a bias, how many steps are made at most, and the largest step (logits) after
which no more are."""


def fit_bias(
    subject: Subject, queries: Sequence[Encoded], own: Setting, like: Setting, batch_size: int
) -> tuple[tuple[int, float, None], ...]:
    """The bias of `own` (token id, bias, None) that gives the queries' last tokens the mean
    distribution that they have under `like`."""
    said, wanted = (_last_logits(subject, s, queries, batch_size) for s in (own, like))
    return _tilted(said, wanted, torch.full_like(said[:, 0], 1 / len(said)), subject)


def fit_answers(
    subject: Subject, wanted: Examples, own: Setting, batch_size: int, cache: Any = None
) -> tuple[tuple[int, float, None], ...]:
    """The same over all matched tokens, every query weighing the same: of all biases of so many
    tokens the one that brings the mean `wanted.kl` down to its least. `cache`: what precedes a
    query under `own`, where it is in no file."""
    cache, said = subject.prefill(own) if cache is None else cache, []
    for chunk in chunks(range(len(wanted)), batch_size):
        said.append(wide(wanted.of(chunk).said(subject, own, cache)))
    return _tilted(torch.cat(said), wide(wanted.logits), wanted.share / len(wanted), subject)


def _tilted(
    logits: Float[Tensor, "token d_vocab"],
    like: Float[Tensor, "token d_vocab"],
    share: Float[Tensor, " token"],
    subject: Subject,
) -> tuple[tuple[int, float, None], ...]:
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
