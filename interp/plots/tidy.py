"""The numbers of a figure as a tidy table, from what its traces say about themselves.

    tidy(layers(run)).to_csv("layers.csv")

A trace's `meta` names what its arrays are: `fixed` columns, `x`, `y`, `z`, `custom` (the last
axis of customdata), `columns` (one value per point), and `x_labels`/`y_labels` of integer axes.
`gaps`: NaN separates lines. An outline, whose points are not the numbers, carries them as a
`table` instead. Traces without `meta` are decoration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

if TYPE_CHECKING:
    import pandas as pd


def tidy(figure: go.Figure) -> pd.DataFrame:
    """One row per plotted number; cells that were not measured are left out, NaN ones kept."""
    import pandas as pd

    parts = [_rows(trace) for trace in figure.data if trace.meta is not None]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _rows(trace: Any) -> pd.DataFrame:
    import pandas as pd

    meta = trace.meta
    if "table" in meta:
        return pd.DataFrame({**meta["fixed"], **pd.DataFrame(meta["table"])})
    columns: dict[str, Any] = {**meta["fixed"], **meta.get("columns", {})}
    if "z" in meta:
        rows, across = np.indices(np.shape(trace.z))
        columns |= _named(meta, "y", np.asarray(trace.y)[rows.ravel()])
        columns |= _named(meta, "x", np.asarray(trace.x)[across.ravel()])
        columns[meta["z"]] = np.ravel(trace.z)
    else:
        for axis in ("x", "y"):
            columns |= _named(meta, axis, np.asarray(trace[axis]))
    if trace.customdata is not None:
        custom = np.asarray(trace.customdata).reshape(-1, len(meta["custom"]))
        columns |= {name: custom[:, i] for i, name in enumerate(meta["custom"])}
    frame = pd.DataFrame(columns)
    if "z" in meta:
        numbers = [meta["z"], *meta.get("custom", [])]
        frame = frame[frame[numbers].notna().any(axis=1)]
    if meta.get("gaps"):
        frame = frame[frame[meta["y"]].notna()]
    return frame


def _named(meta: dict[str, Any], axis: str, values: np.ndarray) -> dict[str, Any]:
    if axis not in meta:
        return {}
    name, texts = meta[axis], meta.get(f"{axis}_labels")
    if texts is None:
        return {name: values}
    found = [texts.get(str(v)) for v in values]
    return {name: values, f"{name}_label": found} if any(found) else {name: values}
