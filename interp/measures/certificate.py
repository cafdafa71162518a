"""The match certificate: internals are only comparable where outputs are (METRICS.md, section 1).

js, same = last_outputs(logits_a, logits_b, batch.lengths).T
certificate(js, same, texts, Tolerance(js=0.02, top1=0.95))["passed"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.measures import output


@dataclass(frozen=True)
class Tolerance:
    """When outputs count as matched: mean JS (nats) at most, top-1 agreement at least."""

    js: float
    top1: float


def last_outputs(
    p: Float[Tensor, "query query_pos d_vocab"],
    q: Float[Tensor, "query query_pos d_vocab"],
    lengths: Int[Tensor, "query"],
) -> Float[np.ndarray, "query 2"]:
    """JS divergence (nats) and top-1 agreement (0 or 1) at each query's last token."""
    rows = torch.arange(len(p), device=p.device)
    a, b = p[rows, lengths - 1], q[rows, lengths - 1]
    columns = output.js_divergence(a, b).cpu(), output.top1_agreement(a, b).cpu()
    return torch.stack([column.to(torch.float64) for column in columns], 1).numpy()


def certificate(
    js: Float[np.ndarray, "query"],
    same: Float[np.ndarray, "query"],
    texts: Sequence[str],
    tolerance: Tolerance,
) -> dict[str, Any]:
    """Mean and 95th-percentile JS, top-1 agreement, the verdict, and the queries outside.

    A number is None, and the verdict a failure, where an output was not a distribution.
    """
    outside = [
        {"query": int(i), "text": texts[i], "js": _number(js[i])}
        for i in np.argsort(-js, kind="stable")
        if not js[i] <= tolerance.js
    ]
    return {
        "n": len(js),
        "mean_js": _number(js.mean()),
        "p95_js": _number(np.quantile(js, 0.95)),
        "top1_agreement": _number(same.mean()),
        "tolerance_js": tolerance.js,
        "tolerance_top1": tolerance.top1,
        "passed": bool(js.mean() <= tolerance.js and same.mean() >= tolerance.top1),
        "outside": outside,
    }


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
