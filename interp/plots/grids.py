"""One panel of a map: a grid of a measure's rows, and the traces that draw it.

    grid = Grid.of(("prompt", "lora"), rows, rows["head"], (n_layers, n_heads))
    figure.add_trace(cells(grid, {"measure": "content_js"}, "head"))
    figure.add_trace(undefined(grid, {"measure": "content_js"}, "head"))

Numbers are drawn as float32: half the bytes of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style

if TYPE_CHECKING:
    import pandas as pd

_KEPT = ("value", "ci_low", "ci_high", "n", "p_adjusted")

_WORDS = {
    "ci_low": "<br>interval {}",
    "ci_high": " to {}",
    "n": "<br>n = {}",
    "p_adjusted": "<br>p (corrected) {}",
}
_FORMATS = {"n": ".0f", "p_adjusted": ".2g"}


@dataclass(frozen=True)
class Grid:
    """One panel: `cells[name]` is `[layer, column]`; `measured` where the table has a row."""

    pair: Pair
    cells: dict[str, np.ndarray]
    measured: np.ndarray

    @classmethod
    def of(cls, pair: Pair, frame: pd.DataFrame, column: pd.Series, shape: tuple[int, int]) -> Grid:
        """Rows placed at (`layer`, `column`)."""
        at = (frame["layer"].to_numpy(dtype=int), column.to_numpy(dtype=int))
        cells = {name: np.full(shape, np.nan, dtype=np.float32) for name in _KEPT}
        for name in _KEPT:
            cells[name][at] = frame[name].to_numpy(dtype=float, na_value=np.nan)
        measured = np.zeros(shape, dtype=bool)
        measured[at] = True
        return cls(pair, cells, measured)

    @property
    def holes(self) -> np.ndarray:
        """Cells that were measured but have no defined value."""
        return self.measured & np.isnan(self.cells["value"])


def cells(grid: Grid, fixed: Mapping[str, Any], column: str, last: int | None = None) -> go.Heatmap:
    """The defined cells, on the figure's shared colour scale. `last`: the column of that name."""
    defined = np.isfinite(grid.cells["value"])
    custom = [n for n in _KEPT[1:] if np.isfinite(grid.cells[n]).any()]
    same = _same(grid.cells["n"][defined])
    if same is not None:
        custom.remove("n")
    stack = np.stack([grid.cells[n] for n in custom], axis=2) if custom else None
    points = {n: f"%{{customdata[{i}]:{_FORMATS.get(n, '.3g')}}}" for i, n in enumerate(custom)}
    tail = "".join(_WORDS[n].format(at) for n, at in points.items())
    tail += "" if same is None else f"<br>n = {same}"
    known = {**fixed} if same is None else {**fixed, "n": same}
    return go.Heatmap(
        z=grid.cells["value"],
        customdata=stack,
        coloraxis="coloraxis",
        hovertemplate=f"layer %{{y}}, {column} %{{x}}<br>value %{{z:.4g}}{tail}<extra></extra>",
        meta=_meta(grid, known, column, last) | {"z": "value", "custom": custom},
        **_place(grid),
    )


def recoloured(
    trace: go.Heatmap, scale: Callable[[np.ndarray], np.ndarray], name: str
) -> go.Heatmap:
    """The cells of `cells` in the colours of another scale of their values, which `name` calls; the
    numbers that hover and table tell stay the values."""
    value = np.asarray(trace.z)
    custom = value[..., None]
    if trace.customdata is not None:
        custom = np.concatenate([trace.customdata, custom], axis=2)
    known = {**trace.meta, "z": name, "custom": [*trace.meta["custom"], "value"]}
    at = f"value %{{customdata[{custom.shape[2] - 1}]:.4g}}"
    hover = trace.hovertemplate.replace("value %{z:.4g}", at)
    return trace.update(z=scale(value), customdata=custom, meta=known, hovertemplate=hover)


def undefined(
    grid: Grid, fixed: Mapping[str, Any], column: str, last: int | None = None
) -> go.Heatmap:
    """The undefined cells in grey; they tell on how few queries they rest."""
    n = np.where(grid.holes, np.nan_to_num(grid.cells["n"]), np.nan).astype(np.float32)
    return go.Heatmap(
        z=n,
        colorscale=[[0, style.UNDEFINED], [1, style.UNDEFINED]],
        showscale=False,
        hovertemplate=f"layer %{{y}}, {column} %{{x}}<br>undefined, n = %{{z:.0f}}<extra></extra>",
        meta=_meta(grid, fixed, column, last) | {"z": "n"},
        **_place(grid),
    )


def dots(grid: Grid, above: float = 0.05) -> go.Scatter:
    """A dot in every cell whose corrected p-value is above a level."""
    rows, columns = np.nonzero(np.nan_to_num(grid.cells["p_adjusted"]) > above)
    size = 5 if max(grid.measured.shape) <= 16 else 3
    return go.Scatter(
        x=columns,
        y=rows,
        mode="markers",
        marker={"size": size, "color": style.INK, "line": {"width": 0.7, "color": "white"}},
        showlegend=False,
        hoverinfo="skip",
    )


def key() -> go.Scatter:
    """The legend's entry for undefined cells."""
    marker = {"symbol": "square", "size": 11, "color": style.UNDEFINED}
    return go.Scatter(
        x=[None], y=[None], mode="markers", marker=marker, name="undefined", hoverinfo="skip"
    )


def _same(n: np.ndarray) -> int | None:
    """The one number that all cells share, if so."""
    return int(n[0]) if n.size and np.isfinite(n).all() and (n == n[0]).all() else None


def _meta(grid: Grid, fixed: Mapping[str, Any], column: str, last: int | None) -> dict[str, Any]:
    condition, reference = grid.pair
    names = {"fixed": {**fixed, "condition": condition, "reference": reference}}
    labels = {} if last is None else {"x_labels": {str(last): "last"}}
    return {**names, **labels, "x": column, "y": "layer"}


def _place(grid: Grid) -> dict[str, Any]:
    down, across = grid.measured.shape
    gaps = {"xgap": int(across <= 40), "ygap": int(down <= 40)}
    return {"x": list(range(across)), "y": list(range(down)), "hoverongaps": False, **gaps}
