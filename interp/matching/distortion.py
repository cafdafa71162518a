"""What becomes of a query behind a long prompt: what is said, and where attention goes.

found = sweep_fillers(bench, instruction, fillers(bench), lengths=[8, 128])
found["neutral", "after", 128].query_mass
distortion_table(found, bench)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from interp.capture import Reader, capture, chunks
from interp.conditions import Setting
from interp.conditions.placing import TokenIds
from interp.design import BASE
from interp.matching.bench import Bench
from interp.matching.examples import Examples, examples
from interp.matching.filler import PLACES, placed
from interp.matching.recall import answered_right
from interp.measures import wide
from interp.measures.attention import entropy, read_rows
from interp.names import Site
from interp.statistics import pooled

_GROUP = "matched"
ALONE = "no instruction"
SERIES = {"after": "instruction first", "around": "in the middle", "before": "instruction last"}


class _Reading(NamedTuple):
    """What a condition makes of every query, `[query]`.

    `kl`: `KL(target ‖ condition)`, nats. `moved`: `KL(short prompt ‖ condition)`, nats. `entropy`
    of the next token, nats. `query_mass`: what the query's last token leaves of its attention to
    the query's own tokens, `[0, 1]`, mean over layers and heads. `accuracy`: whether every token of
    the answer ranks first after those before it; NaN without an answer.
    """

    kl: Float[ndarray, " query"]
    moved: Float[ndarray, " query"]
    entropy: Float[ndarray, " query"]
    query_mass: Float[ndarray, " query"]
    accuracy: Float[ndarray, " query"]


_Found = dict[tuple[str, str, int], _Reading]
"""(kind of filler, place or ALONE, tokens of it) -> what becomes of the queries."""
_MEASURES = ("strength", "query_mass", "moved", "entropy", "accuracy")


def sweep_fillers(
    bench: Bench,
    instruction: TokenIds,
    kinds: Mapping[str, TokenIds],
    lengths: Sequence[int],
    done: Callable[[], None] = lambda: None,
) -> _Found:
    """Every kind of filler at every place and length, and as much of it without the instruction;
    `done` is called after each."""
    setting = _prompted(bench, instruction)
    short = examples(bench.subject, setting, bench.queries[_GROUP], bench.settings.batch_size)
    start, nothing = (_reading(bench, s, short) for s in (setting, _prompted(bench, ())))
    found: _Found = {}
    for kind, filler in kinds.items():
        for series in (*PLACES, ALONE):
            found[kind, series, 0] = nothing if series == ALONE else start
        for length in lengths:
            prompts = {ALONE: placed((), filler, length, "before")}
            prompts |= {place: placed(instruction, filler, length, place) for place in PLACES}
            for place, ids in prompts.items():
                found[kind, place, length] = _reading(bench, _prompted(bench, ids), short)
                done()
    return found


def _prompted(bench: Bench, ids: TokenIds) -> Setting:
    """Base with these tokens between its own first ones and the query."""
    base = bench.subject.settings[BASE]
    return replace(base, prefix=(*base.prefix, *ids))


def _reading(bench: Bench, setting: Setting, short: Examples) -> _Reading:
    """Run the matched queries under a setting; `short` is what the short prompt says of them."""
    cache, parts = bench.subject.prefill(setting), []
    sites: dict[Site, Reader] = dict.fromkeys(bench.subject.sites("pattern"), _left)
    for some in chunks(range(len(short)), bench.settings.batch_size):
        wanted, before = bench.wanted[_GROUP].of(some), short.of(some)
        queries = [bench.queries[_GROUP][i] for i in some]
        got = capture(bench.subject, setting, wanted.batch, cache, sites)
        rows, last = torch.arange(len(some)), torch.tensor([len(q.ids) - 1 for q in queries])
        values = (
            wanted.kl(got.logits),
            before.kl(got.logits),
            entropy(wide(got.logits[rows, last]).softmax(-1)),
            torch.stack(list(got.values.values())).mean(0)[rows, last],
        )
        numbers = [value.cpu().numpy() for value in values]
        parts.append([*numbers, answered_right(queries, got.logits)])
    return _Reading(*map(np.concatenate, zip(*parts, strict=True)))


def _left(pattern: Tensor) -> Float[Tensor, "query query_pos"]:
    return 1 - read_rows(pattern).prefix_mass.mean(1)


def distortion_table(found: _Found, bench: Bench) -> pd.DataFrame:
    """One row per measure, kind of filler, place and length, with its interval over queries."""
    base, rows = bench.kl(BASE, _GROUP), []
    for name, ((kind, place, length), got) in product(_MEASURES, found.items()):
        strong = name == "strength"
        above = base - got.kl if strong else getattr(got, name)
        if np.isnan(above).all():
            continue
        value, low, high, n = _over_queries(bench, above, base if strong else 1.0)
        series = SERIES.get(place, place)
        at = {"measure": name, "panel": kind, "series": series, "x": str(length)}
        rows.append(at | {"value": value, "ci_low": low, "ci_high": high, "n": n})
    return pd.DataFrame(rows)


def strength_lost_to_filler(
    found: _Found, bench: Bench, kind: str, length: int
) -> tuple[float, float, float, int]:
    """Strength lost to so much filler of a kind, the mean of the places where it may stand: value,
    interval, queries."""
    after = np.mean([found[kind, place, length].kl for place in PLACES], axis=0)
    return _over_queries(bench, after - found[kind, PLACES[0], 0].kl, bench.kl(BASE, _GROUP))


def _over_queries(
    bench: Bench, above: Float[ndarray, " query"], below: Float[ndarray, " query"] | float
) -> tuple[float, float, float, int]:
    """Sum over sum (a mean where `below` is 1): value, interval, queries."""
    keys = [query.key for query in bench.queries[_GROUP]]
    total = pooled(above, below, keys, bench.settings.bootstrap, bench.settings.seed)
    value, low, high, n = (float(number) for number in total)
    return value, low, high, int(n)
