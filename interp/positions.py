"""Which tokens of a query count towards a position label, and sums over them.

labels = position_labels(longest=12, limit=8)            # last, mean, 0, 1, ..., 7
positions = position_weights([len(q.ids) for q in queries], width, labels)
by_label(values, positions)                              # [query, *cell, label]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

SEGMENTS = ("query", "template", "answer")
"""The query's text, the template's tokens after it, and the rows that predict the answer's tokens:
the first of these is the last token before it."""

POOLED = ("last", "mean", *SEGMENTS)
"""Labels that stand for the same thing in every query; others are an index."""


def position_labels(
    longest: int, limit: int, segments: Sequence[str] = (), answer: int = 0
) -> list[str]:
    """`last`, `mean`, the segments, then every index within the query and every token of the answer
    (`answer_0`, ...), up to `limit` of each."""
    labels = ["last", "mean", *segments]
    labels += map(str, range(min(longest, limit)))
    return labels + [f"answer_{i}" for i in range(min(answer, limit))]


def answer_labels(labels: Sequence[str]) -> list[str]:
    """Those of the rows that predict an answer's tokens."""
    return [label for label in labels if label == "last" or label.startswith("answer")]


def position_weights(
    lengths: Sequence[int],
    width: int,
    labels: Sequence[str],
    answers: Sequence[int] | None = None,
    texts: Sequence[int] | None = None,
) -> Float[ndarray, "query query_pos label"]:
    """1 where a token counts towards a label. `lengths`: tokens before the answer; `answers`: how
    many rows predict one (none: one); `texts`: tokens of the query's text (none: all)."""
    index = np.arange(width)
    length = np.asarray(lengths)[:, None]
    answer = index - (length - 1)
    answered = answer < (np.asarray(answers)[:, None] if answers is not None else 1)
    text = index < np.minimum(
        np.asarray(texts)[:, None] if texts is not None else length, length - 1
    )
    known = {
        "last": answer == 0,
        "mean": answer <= 0,
        "query": text,
        "template": ~text & (answer < 0),
        "answer": (answer >= 0) & answered,
    }

    def chosen(label: str) -> ndarray:
        if label in known:
            return known[label]
        if label.startswith("answer_"):
            return (answer == int(label.removeprefix("answer_"))) & answered
        return (index == int(label)) & (answer <= 0)

    columns = [chosen(label) for label in labels]
    return np.stack(np.broadcast_arrays(*columns), axis=-1).astype(np.float64)


def by_label(
    values: Float[ndarray, "query *cell query_pos"],
    positions: Float[ndarray, "query query_pos label"],
) -> Float[ndarray, "query *cell label"]:
    """Sums over the tokens of every position label."""
    flat = values.reshape(len(values), -1, values.shape[-1])
    return np.matmul(flat, positions).reshape(*values.shape[:-1], positions.shape[-1])
