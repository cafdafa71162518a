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
    if bottoms is None:
        bottoms = [np.where(np.isnan(top), np.nan, 1.0) for top in tops]
    errors = errors or [np.zeros(top.shape) for top in tops]
    table: Table = {}
    for label in position_labels(tops, study.max_positions):
        chosen = [chosen_tokens(label, top.shape[-1]) for top in tops]
        up = sum(np.nansum(t[..., c], -1) for t, c in zip(tops, chosen, strict=True))
        down = sum(np.nansum(b[..., c], -1) for b, c in zip(bottoms, chosen, strict=True))
        known = [(~np.isnan(t[..., c])).any(-1) for t, c in zip(tops, chosen, strict=True)]
        error = sum(e[..., c].sum(-1) for e, c in zip(errors, chosen, strict=True))
        value, n = ratio(np.asarray(up), np.asarray(down)), np.sum(known, axis=0)
        rounding = np.asarray(error) / sum(map(len, chosen))
        for place in np.ndindex(value.shape):
            layer, head = (*place, None, None)[:2]
            key = (name[0], a, b, name[1], layer, head, label)
            table[key] = Value(float(value[place]), int(n[place]), float(rounding[place]))
    return table


def position_labels(tops: Sequence[Array], max_positions: int) -> list[str]:
    longest = max(top.shape[-1] for top in tops)
    return ["last", "mean", *map(str, range(min(longest, max_positions)))]


def chosen_tokens(label: str, length: int) -> list[int]:
    """Token indices of a query that a position label covers."""
    if label == "last":
        return [length - 1]
    if label == "mean":
        return list(range(length))
    return [int(label)] if int(label) < length else []
