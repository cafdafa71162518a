"""What the page's explorers read: kept patterns of all heads, and the table's numbers by layer.

explorers(run)["samples"]            # JSON: queries, contexts, layers
explorers(run)["numbers"]            # float32 of all series of the index, bytes of a kind together
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.names import OUTPUT, pair_name
from interp.registry import MEASURES
from interp.runs.samples import Samples
from interp.runs.view import Run
from interp.runs.words import SITES
from interp.showing import visible

if TYPE_CHECKING:
    import pandas as pd

MOST = 600_000
"""Rows of the table that the page holds for its pickers; of more those of the main pairs stay."""

_KEPT = ("value", "ci_low", "ci_high", "p_adjusted")
_KEYS = ["measure", "site", "condition", "reference", "position"]


def explorers(run: Run) -> dict[str, bytes]:
    """What scripts of the page read, by the id of its element."""
    return {**_samples(run), **_numbers(run)}


def _samples(run: Run) -> dict[str, bytes]:
    kept = Samples.of(run)
    if kept is None or not kept.packed.size:
        return {}
    words = {
        "queries": [
            {
                "query": one.query,
                "text": visible(one.text),
                "tokens": list(map(visible, one.tokens)),
                "segments": one.segments,
                "rows": one.rows,
            }
            for one in kept.queries
        ],
        "contexts": {
            visible(name): {"columns": list(map(visible, own.columns))}
            for name, own in kept.contexts.items()
        },
        "layers": kept.layers,
        "n_heads": kept.n_heads,
        "main": list(map(visible, run.main_conditions)),
    }
    return {"samples": _json(words), "patterns": kept.packed.tobytes()}


def _numbers(run: Run) -> dict[str, bytes]:
    """`index` names every series; `numbers` are value, both ends and p of its cells in turn."""
    table = _shown(run)
    if table.empty:
        return {}
    shapes = ((True, run.n_layers * run.n_heads), (False, run.n_layers))
    series, parts = [], []
    for heads, cells in shapes:
        own = table[table["head"].notna() == heads]
        if own.empty:
            continue
        grouped = own.groupby(_KEYS, sort=False, dropna=False)
        group = grouped.ngroup().to_numpy()
        cell = own["layer"].to_numpy(dtype=int)
        if heads:
            cell = cell * run.n_heads + own["head"].to_numpy(dtype=int)
        grid = np.full((int(group.max()) + 1, len(_KEPT), cells), np.nan, np.float32)
        for at, name in enumerate(_KEPT):
            grid[group, at, cell] = own[name].to_numpy(dtype=float, na_value=np.nan)
        parts.append(grid.ravel())
        n = grouped["n"].max().to_numpy(dtype=float, na_value=np.nan)
        keys = own.loc[~own.assign(g=group).duplicated("g"), _KEYS].to_dict("records")
        series += [_named(key, heads, count) for key, count in zip(keys, n, strict=True)]
    index = {
        "series": series,
        "layers": run.n_layers,
        "heads": run.n_heads,
        "measures": {name: _measure(name) for name in dict.fromkeys(s["measure"] for s in series)},
        "sites": SITES,
        "first": visible(pair_name(run.headline)) if run.headline else "",
    }
    return {"index": _json(index), "numbers": _planes(np.concatenate(parts))}


def _shown(run: Run) -> pd.DataFrame:
    """Rows by layer of matched queries; where there are too many those of the main pairs."""
    table = run.table
    keep = table["layer"].notna() & (table["site"] != OUTPUT) & (table["queries"] == "matched")
    keep &= table["measure"].isin(list(MEASURES)) & table["site"].isin([*SITES, "attn_scores"])
    keep &= table["condition"].isin(list(run.conditions))
    numbered = table["position"].str.fullmatch(r"\d+")
    keep &= ~(numbered & table["head"].notna())
    table, numbered = table[keep.fillna(False)], numbered[keep.fillna(False)]
    names = [*run.main_pairs, *run.nulls.values()]
    main = {*names, *((side, None) for pair in names for side in pair)}
    pairs = zip(table["condition"], table["reference"], strict=True)
    of_main = np.array([(c, r if isinstance(r, str) else None) in main for c, r in pairs], bool)
    return table[of_main if len(table) > MOST else of_main | ~numbered.to_numpy(dtype=bool)]


def _named(key: dict[str, Any], heads: bool, n: float) -> dict[str, Any]:
    reference = key["reference"] if isinstance(key["reference"], str) else None
    return {
        "measure": key["measure"],
        "site": key["site"],
        "pair": visible(pair_name((key["condition"], reference))),
        "position": key["position"],
        "heads": heads,
        "n": None if n != n else int(n),
    }


def _measure(name: str) -> dict[str, Any]:
    record = MEASURES[name]
    return {
        "title": record.title,
        "units": record.units,
        "definition": record.definition,
        "signed": record.signed,
        "cosine": record.rounding == "cosine",
    }


def _planes(values: np.ndarray) -> bytes:
    """float32 of 16 bits of mantissa, first bytes together, then second ones: they pack well."""
    bits = values.astype("<f4").view("<u4").astype(np.uint64)
    known = np.isfinite(values)
    rounded = np.where(known, (bits + 0x40) & 0xFFFFFF80, 0x7FC00000).astype("<u4")
    return rounded.view(np.uint8).reshape(-1, 4).T.tobytes()


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
