"""From merged accumulators to the result table, the match certificates and the kept arrays.

table = rows(tally, labels, "matched")
more = family_rows(tally, design.families, labels, "matched", seed)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from interp.measures.certificate import Tolerance, certificate
from interp.measures.plan import Plan
from interp.measures.tally import Key, Tally, test_of
from interp.names import Head
from interp.noise import floor
from interp.positions import POOLED, answer_labels
from interp.queries import Encoded
from interp.registry import MEASURES
from interp.significance import SignFlip, benjamini_hochberg, differs_from_null
from interp.statistics import Maximum, PerQuery, Ratio


def table_rows(tally: Tally, labels: Sequence[str], queries: str) -> pd.DataFrame:
    """Rows of `results.parquet` (see `interp.runs.files.COLUMNS`), made column by column: there are
    hundreds of thousands."""
    parts: dict[str, list[np.ndarray]] = {}
    for key, accumulator in sorted(tally.items()):
        if key.measure in MEASURES and isinstance(accumulator, Ratio):
            for name, column in _columns(tally, key, accumulator, labels).items():
                parts.setdefault(name, []).append(column)
    return pd.DataFrame(
        {name: np.concatenate(c) for name, c in parts.items()} | {"queries": queries}
    )


def _columns(
    tally: Tally, key: Key, accumulator: Ratio, labels: Sequence[str]
) -> dict[str, np.ndarray]:
    """The cells of one measure of one pair at one site, `label` varying fastest."""
    value, low, high, n = accumulator.compute()
    where = MEASURES[key.measure].position
    if where == "answer":
        labels = ["answer"]
    elif where == "answer token":
        labels = answer_labels(labels)
    p = np.full(value.shape, np.nan)
    if (tested := corrected(tally, key)) is not None:
        p[..., : tested.shape[-1]] = tested
    *places, label = np.indices(value.shape).reshape(value.ndim, -1)
    nowhere = np.full(value.size, None, dtype=object)
    layer, head = (*places, nowhere, nowhere)[:2]
    columns = {"value": value, "ci_low": low, "ci_high": high, "n": n, "p_adjusted": p}
    texts = {
        "measure": key.measure,
        "condition": key.condition,
        "reference": key.reference or None,
        "site": key.site,
        "units": MEASURES[key.measure].units,
    }
    return (
        {name: column.ravel() for name, column in columns.items()}
        | {name: np.full(value.size, text, dtype=object) for name, text in texts.items()}
        | {"layer": layer.astype(object), "head": head.astype(object)}
        | {"position": np.array(labels, dtype=object)[label]}
    )


def by_model_layer(table: pd.DataFrame, layers: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """The table with layers as the model counts them: accumulators know only those that have the
    site."""
    for site, its in layers.items():
        if list(its) != list(range(len(its))):
            rows = (table["site"] == site) & table["layer"].notna()
            table.loc[rows, "layer"] = np.asarray(its)[table.loc[rows, "layer"].astype(int)]
    return table


def corrected(tally: Tally, key: Key) -> np.ndarray | None:
    """p of every cell and tested position against the pair's control, corrected over all of them;
    None where there is no test."""
    test = tally.get(test_of(key))
    if not isinstance(test, SignFlip) or len(test.sums) < 2:
        return None
    found = test.compute()
    if MEASURES[key.measure].max_t == key.site:
        return found.p_max_t
    return benjamini_hochberg(found.p)


def closing_errors(tallies: Mapping[str, Tally]) -> dict[str, float]:
    """How far the identities are from closing, the largest over all conditions and queries; NaN
    where one is."""
    found: dict[str, Maximum] = {}
    for tally in tallies.values():
        for key, accumulator in tally.items():
            if isinstance(accumulator, Maximum):
                found[key.site] = found.get(key.site, Maximum.empty()).merge(accumulator)
    return {identity: largest.compute() for identity, largest in found.items()}


def states(tally: Tally, plan: Plan, n_layers: int, label: str) -> xr.DataArray:
    """The sampled queries' states in the residual stream, by condition and layer: of the last token
    before the answer, or the mean of a segment."""
    kept = [tally[Key("states", name, "", f"resid_post {label}")] for name in plan.kept]
    values = [accumulator for accumulator in kept if isinstance(accumulator, PerQuery)]
    stacked = np.stack([v.compute().reshape(len(v.index), n_layers, -1) for v in values])
    return xr.DataArray(
        stacked.swapaxes(1, 2),
        dims=("condition", "layer", "query", "d_model"),
        coords={"condition": list(plan.kept), "query": sorted(plan.sample)},
    )


def certificate_entries(
    tally: Tally, encoded: Sequence[Encoded], queries: str, tolerance: Tolerance
) -> Iterator[dict[str, Any]]:
    """The match certificate of every pair, from its outputs at all tokens of the answers."""
    for key, accumulator in sorted(tally.items()):
        if key.measure != "certificate" or not isinstance(accumulator, PerQuery):
            continue
        pair = {"condition": key.condition, "reference": key.reference, "queries": queries}
        texts, answers = [q.text for q in encoded], [len(q.segments["answer"]) for q in encoded]
        yield pair | certificate(accumulator.compute(), texts, tolerance, answers)


def grams(
    tallies: Mapping[str, Tally], conditions: Sequence[str], plan: Plan
) -> dict[str, xr.DataArray]:
    """`gram_<site>`: the mean over query tokens of `<x[c], x[c']>`, by queries, layer and head, at
    the positions that are no index."""
    by_site: dict[str, list[np.ndarray]] = {}
    for tally in tallies.values():
        for key, accumulator in tally.items():
            if key.measure == "gram" and isinstance(accumulator, Ratio):
                by_site.setdefault(key.site, []).append(accumulator.compute().value)
    arrays = {}
    for site, values in by_site.items():
        places = ("layer", "head")[: values[0].ndim - 3]
        dims = ("queries", "condition", "condition2", *places, "position")
        coords: dict[Any, Any] = {
            "queries": list(tallies),
            "condition": conditions,
            "condition2": conditions,
        }
        coords["position"] = [label for label in plan.labels if label in POOLED]
        coords["layer"] = list(plan.layers[site])
        arrays[f"gram_{site}"] = xr.DataArray(np.stack(values), dims=dims, coords=coords)
    return arrays


def largest_cell(tally: Tally, pair: tuple[str, str], plan: Plan) -> Head:
    """The head of the largest content JS of a pair at the queries' last token, among the heads
    that differ from the pair's control; among all where none does."""
    key = Key("content_js", *pair, "pattern")
    found = tally[key]
    assert isinstance(found, Ratio)
    values = found.compute().value[..., 0]
    p = corrected(tally, key)
    p = np.full(values.shape, np.nan) if p is None else p[..., 0]
    stands = differs_from_null(values, p, floor(key.measure, plan.noise, values))
    values = np.nan_to_num(values, nan=-1.0)
    values = np.where(stands, values, -1.0) if stands.any() else values
    layer, head = np.unravel_index(values.argmax(), values.shape)
    return Head(plan.layers["pattern"][layer], int(head))
