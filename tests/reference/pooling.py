"""From values per token to rows: sums over tokens and queries, divided once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .numbers import Array, ratio
from .study import Study, Table, Value


def last_rows(
    name: str,
    a: str,
    b: str | None,
    site: str,
    values: Sequence[Array],
    rounding: float = 0.0,
    scale: float = 1.0,
) -> Table:
    """Means over queries of a measure that only the last token has."""
    stacked = np.stack(values)
    n = (~np.isnan(stacked)).sum(0)
    mean = ratio(np.nansum(stacked, axis=0), n)
    table: Table = {}
    for place in np.ndindex(mean.shape):
        layer, head = (*place, None, None)[:2]
        value = Value(float(mean[place]), int(n[place]), rounding, scale)
        table[name, a, b, site, layer, head, "last"] = value
    return table


def pooled(
    study: Study,
    name: tuple[str, str],
    a: str,
    b: str | None,
    tops: Sequence[Array],
    bottoms: Sequence[Array] | None = None,
    errors: Sequence[Array] | None = None,
) -> Table:
    """Sums over tokens, divided once; a plain mean where no `bottoms` are given. One row per layer,
    head and position."""
    lengths = [top.shape[-1] for top in tops]
    top = np.concatenate(tops, axis=-1)  # all tokens of all queries, one after the other
    down = np.where(np.isnan(top), np.nan, 1.0)
    down = down if bottoms is None else np.concatenate(bottoms, axis=-1)
    error = np.zeros(top.shape) if errors is None else np.concatenate(errors, axis=-1)
    table: Table = {}
    for label in position_labels(max(lengths), study.max_positions):
        tokens, starts = places(label, lengths)
        known = np.logical_or.reduceat(~np.isnan(top[..., tokens]), starts, axis=-1)
        value = ratio(np.nansum(top[..., tokens], -1), np.nansum(down[..., tokens], -1))
        n, tokens_known = known.sum(-1), (~np.isnan(top[..., tokens])).sum(-1)
        rounding = error[..., tokens].sum(-1) / np.maximum(tokens_known, 1)
        rounding = rounding * np.fmax(1.0, np.abs(value))  # errors are relative
        for place in np.ndindex(value.shape):
            layer, head = (*place, None, None)[:2]
            key = (name[0], a, b, name[1], layer, head, label)
            table[key] = Value(float(value[place]), int(n[place]), float(rounding[place]))
    return table


def places(label: str, lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """Places of the tokens of a label among all tokens of all queries, and where among these every
    query that has any begins."""
    tokens: list[int] = []
    starts: list[int] = []
    before = 0
    for length in lengths:
        chosen = [before + token for token in chosen_tokens(label, length)]
        starts += [len(tokens)] if chosen else []
        tokens += chosen
        before += length
    return tokens, starts


def position_labels(longest: int, max_positions: int) -> list[str]:
    return ["last", "mean", *map(str, range(min(longest, max_positions)))]


def chosen_tokens(label: str, length: int) -> list[int]:
    """Token indices of a query that a position label covers."""
    if label == "last":
        return [length - 1]
    if label == "mean":
        return list(range(length))
    return [int(label)] if int(label) < length else []
