"""From merged accumulators to the result table, the match certificates and the kept arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from interp.measures import UNITS
from interp.measures.certificate import Tolerance, certificate
from interp.measures.tally import Tally
from interp.names import OUTPUT
from interp.queries import Encoded
from interp.statistics import PerQuery, Ratio

LAST_ONLY = ("accuracy", "rec2ftp")
"""Measures of the answer: they have no other position than the query's last token."""


def rows(tally: Tally, labels: Sequence[str], queries: str) -> Iterator[dict[str, Any]]:
    """Rows of `results.parquet` (see `interp.results.COLUMNS`)."""
    for key, accumulator in sorted(tally.items()):
        if key.measure not in UNITS or not isinstance(accumulator, Ratio):
            continue
        estimate = accumulator.compute()
        for cell in np.ndindex(estimate.value.shape):
            *place, label = cell
            if key.measure in LAST_ONLY and labels[label] != "last":
                continue
            layer, head = (*place, None, None)[:2]
            yield {
                "measure": key.measure,
                "condition": key.condition,
                "reference": key.reference or None,
                "site": key.site,
                "layer": layer,
                "head": head,
                "position": labels[label],
                "queries": queries,
                "value": estimate.value[cell],
                "ci_low": estimate.ci_low[cell],
                "ci_high": estimate.ci_high[cell],
                "n": int(estimate.n[cell]),
                "units": UNITS[key.measure],
            }


def certificates(
    tally: Tally, encoded: Sequence[Encoded], queries: str, tolerance: Tolerance
) -> Iterator[dict[str, Any]]:
    """The match certificate of every pair, from its outputs at each query's last token."""
    for key, accumulator in sorted(tally.items()):
        if key.measure != "certificate" or not isinstance(accumulator, PerQuery):
            continue
        js, same = accumulator.compute().T
        pair = {"condition": key.condition, "reference": key.reference, "queries": queries}
        yield pair | certificate(js, same, [query.text for query in encoded], tolerance)


def grams(tallies: Mapping[str, Tally], conditions: Sequence[str]) -> dict[str, xr.DataArray]:
    """`gram_<site>`: the mean over query tokens of `<x[c], x[c']>`, by queries, layer and head."""
    by_site: dict[str, list[np.ndarray]] = {}
    for tally in tallies.values():
        for key, accumulator in tally.items():
            if key.measure == "gram" and isinstance(accumulator, Ratio):
                by_site.setdefault(key.site, []).append(accumulator.compute().value[..., 0])
    arrays = {}
    for site, values in by_site.items():
        dims = ("queries", "condition", "condition2", "layer", "head")[: values[0].ndim + 1]
        labels = {"queries": list(tallies), "condition": conditions, "condition2": conditions}
        arrays[f"gram_{site}"] = xr.DataArray(np.stack(values), dims=dims, coords=labels)
    return arrays


def largest_cell(tally: Tally, pair: tuple[str, str]) -> tuple[int, int]:
    """(layer, head) of the largest content JS of a pair at the queries' last token."""
    found = next(
        accumulator
        for key, accumulator in tally.items()
        if key[:3] == ("content_js", *pair) and key.site != OUTPUT
    )
    assert isinstance(found, Ratio)
    values = np.nan_to_num(found.compute().value[..., 0], nan=-1.0)
    layer, head = np.unravel_index(values.argmax(), values.shape)
    return int(layer), int(head)
