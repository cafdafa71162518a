"""From values per token to rows: sums over tokens and queries, divided once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .numbers import Array, ratio
from .running import States
from .study import Study, Table, Value


def pooled(
    study: Study,
    name: tuple[str, str],
    a: str,
    b: str | None,
    tops: Sequence[Array],
    bottoms: Sequence[Array] | None = None,
    errors: Sequence[Array] | None = None,
    labels: Sequence[str] | None = None,
    scale: float = 1.0,
) -> Table:
    """Sums over tokens, divided once; a plain mean where no `bottoms` are given. One row per layer,
    head and position (none: all `labels`)."""
    top = np.concatenate(tops, axis=-1)  # all tokens of all queries, one after the other
    down = np.where(np.isnan(top), np.nan, 1.0)
    down = down if bottoms is None else np.concatenate(bottoms, axis=-1)
    error = np.zeros(top.shape) if errors is None else np.concatenate(errors, axis=-1)
    layers = study.observed["base"][0].layers(name[1])
    table: Table = {}
    for label in study.positions if labels is None else labels:
        tokens, starts = study.places[label]
        known = np.logical_or.reduceat(~np.isnan(top[..., tokens]), starts, axis=-1)
        value = ratio(np.nansum(top[..., tokens], -1), np.nansum(down[..., tokens], -1))
        n, tokens_known = known.sum(-1), (~np.isnan(top[..., tokens])).sum(-1)
        rounding = error[..., tokens].sum(-1) / np.maximum(tokens_known, 1)
        rounding = rounding * np.fmax(1.0, np.abs(value))  # errors are relative
        numbers = (x.ravel().tolist() for x in (value, n, rounding))
        for place, *about in zip(np.ndindex(value.shape), *numbers, strict=True):
            layer, head = (*place, None, None)[:2]
            layer = None if layer is None else layers[layer]
            table[name[0], a, b, name[1], layer, head, label] = Value(*about, scale)
    return table


def spread(values: Array, states: States) -> Array:
    """Values of the rows that predict an answer, among NaN for all others."""
    found = np.full((*values.shape[:-1], states.length), np.nan)
    found[..., states.answer] = values
    return found
