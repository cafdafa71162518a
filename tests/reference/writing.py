"""What every condition answers, the whole sequence recomputed for every token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from .conditions import Condition
from .models import blocks, open_model, steered
from .numbers import double, top1
from .running import arguments, biased, first_row, virtual
from .study import Table, Value

Answers = Mapping[str, Sequence[tuple[int, ...]]]


def write(
    base: str, condition: Condition, query: Sequence[int], n_tokens: int, stop: Sequence[int]
) -> tuple[int, ...]:
    """The most likely token, again and again, up to one that ends the answer."""
    model = open_model(base, *condition.weights)
    answer: list[int] = []
    while len(answer) < n_tokens and not (answer and answer[-1] in stop):
        before = virtual(base, condition, len(blocks(model)))
        start = first_row(condition, before)
        with torch.no_grad(), steered(model, start, condition.steering):
            out = model(**arguments(model, condition, [*query, *answer], before))
        rows = double(out.logits[0])[-len(query) - len(answer) :]
        answer.append(int(top1(biased(rows, condition, len(query))[-1])))
    return tuple(answer)


def own_rows(written: Answers, pairs: Sequence[tuple[str, str]]) -> Table:
    """How often two conditions write the same, and where they part."""
    table: Table = {}
    for a, b in pairs:
        same = [x == y for x, y in zip(written[a], written[b], strict=True)]
        parted = [*differences(written[a], written[b])]
        agreement = Value(float(np.mean(same)), len(same))
        first = Value(float(np.mean(parted)) if parted else float("nan"), len(parted))
        table["own_agreement", a, b, "output", None, None, "answer"] = agreement
        table["own_difference", a, b, "output", None, None, "answer"] = first
    return table


def differences(
    first: Sequence[tuple[int, ...]], second: Sequence[tuple[int, ...]]
) -> Iterator[int]:
    """The first token at which two answers differ, of those that do."""
    for x, y in zip(first, second, strict=True):
        longest = max(len(x), len(y))
        x, y = (tuple(answer) + (-1,) * (longest - len(answer)) for answer in (x, y))
        yield from [i for i in range(longest) if x[i] != y[i]][:1]
