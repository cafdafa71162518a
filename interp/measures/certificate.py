"""The match certificate: internals are only comparable where outputs are.

Definition: docs/reference/metrics.md.

outputs = answer_outputs(logits_a, logits_b, batch.answer)
certificate(outputs, texts, Tolerance(js=0.02, top1=0.95))["passed"]

It is about every token of the answer; without an answer, about the query's next token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.batch import Tokens
from interp.measures import output
from interp.measures.output import Between


@dataclass(frozen=True)
class Tolerance:
    """When outputs count as matched: mean JS (nats) at most, top-1 agreement at least."""

    js: float
    top1: float


def answer_outputs(
    p: Float[Tensor, "query query_pos d_vocab"],
    q: Float[Tensor, "query query_pos d_vocab"],
    tokens: Tokens,
    width: int | None = None,
) -> Float[np.ndarray, "query column"]:
    """What a certificate rests on, of two conditions' logits: see `in_columns`."""
    picked = {"p": tokens.pick(p), "q": tokens.pick(q)}
    return in_columns(output.between(picked, [("p", "q")])["p", "q"], tokens, width)


def in_columns(
    found: Between, tokens: Tokens, width: int | None = None
) -> Float[np.ndarray, "query column"]:
    """JS divergence (nats), top-1 agreement (0 or 1) and `KL(p ‖ q)` (nats) of every answer token:
    three times `width` columns (none: those of the longest answer), NaN where an answer is
    shorter."""
    missing = (width or tokens.n_rows) - tokens.n_rows
    wide = [
        torch.nn.functional.pad(tokens.spread(values), (0, missing), value=torch.nan)
        for values in (found.js, found.same, found.kl)
    ]
    return torch.cat(wide, dim=1).cpu().numpy()


def certificate(
    outputs: Float[np.ndarray, "query column"],
    texts: Sequence[str],
    tolerance: Tolerance,
    answers: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Mean and 95th-percentile JS over answers, top-1 agreement by token and of whole answers, the
    sequence KL (nats per answer), the verdict, and the queries outside.

    `outputs` are `answer_outputs`; `answers`: how many tokens every answer has (none: all columns).
    An answer's JS and top-1 are the means over its tokens. A number is None, and the verdict a
    failure, where an output was not a distribution.
    """
    js, same, kl = np.split(outputs, 3, axis=1)
    counts = [js.shape[1]] * len(js) if answers is None else answers
    by_query = [
        (a[:n].mean(), b[:n].mean(), c[:n].sum())
        for a, b, c, n in zip(js, same, kl, counts, strict=True)
    ]
    mean_js, agreed, sequence_kl = np.array(by_query).T
    outside = [
        {"query": int(i), "text": texts[i], "js": _number(mean_js[i])}
        for i in np.argsort(-mean_js, kind="stable")
        if not mean_js[i] <= tolerance.js
    ]
    return {
        "n": len(js),
        "tokens": int(sum(counts)),
        "mean_js": _number(mean_js.mean()),
        "p95_js": _number(np.quantile(mean_js, 0.95)),
        "top1_agreement": _number(agreed.mean()),
        "answer_agreement": _number((agreed == 1).mean()),
        "sequence_kl": _number(sequence_kl.mean()),
        "tolerance_js": tolerance.js,
        "tolerance_top1": tolerance.top1,
        "passed": bool(mean_js.mean() <= tolerance.js and agreed.mean() >= tolerance.top1),
        "outside": outside,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
