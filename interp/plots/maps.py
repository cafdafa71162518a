"""Maps: a measure's rows as cells by layer and head, position, or kind of module.

    grid = Grid.of(("prompt", "lora"), rows, rows["head"], (n_layers, n_heads))
    cells = MapPanel(grid, "prompt vs lora", {"measure": "content_js"}, dotted=True)
    draw_maps(board, [[cells]], scale, x, y, height=300, across="head")

What is compared shares a scale; grey: undefined. Numbers are drawn as float32: half the bytes of
the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style
from interp.plots.board import Board, Panel
from interp.plots.scales import ColourScale
from interp.significance import ALPHA
from interp.undefined import reason

if TYPE_CHECKING:
    import pandas as pd

    from interp.runs.view import Run

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
        """Rows placed at (`layer`, `column`); numbers that a frame has not are undefined."""
        at = (frame["layer"].to_numpy(dtype=int), column.to_numpy(dtype=int))
        cells = {name: np.full(shape, np.nan, dtype=np.float32) for name in _KEPT}
        for name in _KEPT:
            if name in frame:
                cells[name][at] = frame[name].to_numpy(dtype=float, na_value=np.nan)
        measured = np.zeros(shape, dtype=bool)
        measured[at] = True
        return cls(pair, cells, measured)

    @property
    def values(self) -> np.ndarray:
        """`[layer, column]`."""
        return self.cells["value"]

    @property
    def holes(self) -> np.ndarray:
        """Cells that were measured but have no defined value."""
        return self.measured & np.isnan(self.values)

    @property
    def tested(self) -> bool:
        """Whether a cell has a corrected p."""
        return bool(np.isfinite(self.cells["p_adjusted"]).any())


@dataclass(frozen=True)
class MapPanel:
    """A grid, its heading, and columns of its table that are the same in all cells.

    `dotted`: cells whose corrected p is at most 0.05 have a dot. `rows`, `columns`: names of the y
    and x places where they are not numbers. `down`: what a row is.
    """

    grid: Grid
    heading: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    dotted: bool = False
    rows: Mapping[int, str] = field(default_factory=dict)
    columns: Mapping[int, str] = field(default_factory=dict)
    down: str = "layer"

    def traces(self, across: str, scale: ColourScale) -> list[Any]:
        """Cells, undefined cells, dots."""
        found: list[Any] = [self._cells(across, scale)]
        if self.grid.holes.any():
            found.append(self._undefined(across))
        if self.dotted and self.grid.tested:
            found.append(_dots(self.grid))
        return found

    def _cells(self, across: str, scale: ColourScale) -> go.Heatmap:
        """The defined cells. Where the scale is not linear, hover and table have the values."""
        grid, value = self.grid, self.grid.values
        names = [n for n in _KEPT[1:] if np.isfinite(grid.cells[n]).any()]
        same = _same(grid.cells["n"][np.isfinite(value)])
        if same is not None:
            names.remove("n")
        numbers = [grid.cells[n] for n in names]
        at = [f"%{{customdata[{i}]:{_FORMATS.get(n, '.3g')}}}" for i, n in enumerate(names)]
        tail = "".join(_WORDS[n].format(place) for n, place in zip(names, at, strict=True))
        shown, drawn = "%{z:.4g}", value
        if scale.transform:
            drawn = np.asarray(scale.transform(value), dtype=np.float32)
            shown = f"%{{customdata[{len(numbers)}]:.4g}}"
            names, numbers = [*names, "value"], [*numbers, value]
        tail += "" if same is None else f"<br>n = {same}"
        known = {} if same is None else {"n": same}
        return go.Heatmap(
            z=drawn,
            customdata=np.stack(numbers, axis=2) if numbers else None,
            hovertemplate=f"{self._place(across)}<br>value {shown}{tail}<extra></extra>",
            meta=self._meta(across, known) | {"z": scale.name, "custom": names},
            **_where(grid),
        )

    def _undefined(self, across: str) -> go.Heatmap:
        """The undefined cells in grey; they tell on how few queries they rest."""
        n = np.where(self.grid.holes, np.nan_to_num(self.grid.cells["n"]), np.nan)
        return go.Heatmap(
            z=n.astype(np.float32),
            colorscale=[[0, style.UNDEFINED], [1, style.UNDEFINED]],
            showscale=False,
            hovertemplate=f"{self._place(across)}<br>{self._why}, n = %{{z:.0f}}<extra></extra>",
            meta=self._meta(across, {}) | {"z": "n"},
            **_where(self.grid),
        )

    @property
    def _why(self) -> str:
        measure = self.fixed.get("measure")
        return f"undefined ({reason(str(measure))})" if measure else "undefined"

    def _place(self, across: str) -> str:
        down = "%{y}" if self.rows else f"{self.down} %{{y}}"
        return f"{down}, {across} %{{x}}"

    def _meta(self, across: str, known: Mapping[str, Any]) -> dict[str, Any]:
        condition, reference = self.grid.pair
        fixed = {**self.fixed, **known, "condition": condition, "reference": reference}
        labels = {"x_labels": self.columns, "y_labels": self.rows}
        found = {name: {str(i): v for i, v in own.items()} for name, own in labels.items() if own}
        return {"fixed": fixed, **found, "x": across, "y": self.down}


def _dots(grid: Grid) -> go.Scatter:
    """A dot in every cell that differs: its corrected p-value is at most `ALPHA`."""
    rows, columns = np.nonzero(grid.cells["p_adjusted"] <= ALPHA)
    size = 5 if max(grid.measured.shape) <= 16 else 3
    return go.Scatter(
        x=columns,
        y=rows,
        mode="markers",
        marker={"size": size, "color": style.INK, "line": {"width": 0.7, "color": "white"}},
        showlegend=False,
        hoverinfo="skip",
    )


def dot_words(grids: Sequence[Grid], against: str = "the pair's control") -> str:
    """The caption's sentence on dots; empty where nothing was tested."""
    p = np.concatenate([grid.cells["p_adjusted"].ravel() for grid in grids])
    if not np.isfinite(p).any():
        return ""
    count = int((p <= ALPHA).sum())
    drawn = f"Dots: p ≤ {ALPHA:g}" if count else f"No cell has p ≤ {ALPHA:g}"
    return f"{drawn} against {against}, corrected over the map"


def _same(n: np.ndarray) -> int | None:
    """The one number that all cells share, if so."""
    return int(n[0]) if n.size and np.isfinite(n).all() and (n == n[0]).all() else None


def _where(grid: Grid) -> dict[str, Any]:
    down, across = grid.measured.shape
    gaps = {"xgap": int(across <= 40), "ygap": int(down <= 40)}
    return {"x": list(range(across)), "y": list(range(down)), "hoverongaps": False, **gaps}


def undefined_key() -> go.Scatter:
    """The legend's entry for undefined cells."""
    marker = {"symbol": "square", "size": 11, "color": style.UNDEFINED}
    look: dict[str, Any] = {"mode": "markers", "marker": marker, "hoverinfo": "skip"}
    return go.Scatter(x=[None], y=[None], name="undefined", legendgroup="undefined", **look)


def draw_map(panel: Panel, cells: MapPanel, across: str, scale: ColourScale, axis: str) -> None:
    """One map into a panel, on the colour axis of this name (`Board.colours`)."""
    panel.x["showgrid"] = panel.y["showgrid"] = False
    first, *others = cells.traces(across, scale)
    panel.draw([first.update(coloraxis=axis), *others])
    if cells.grid.holes.any():
        panel.draw([undefined_key()])


def draw_alike(
    panels: Sequence[Panel], cells: Sequence[MapPanel], across: str, scale: ColourScale
) -> None:
    """Maps into panels of a board, on one colour scale whose bar stands beside them."""
    colours = panels[0].board.colours
    axis = colours(panels, scale.ends, scale.colours, scale.title, **scale.bar)
    for panel, one in zip(panels, cells, strict=True):
        draw_map(panel, one, across, scale, axis)


def map_height(run: Run) -> int:
    """Of a map with one row of maps alone, by the model's depth."""
    return min(560, max(190, 18 * run.n_layers))


def draw_maps(
    board: Board,
    rows: Sequence[Sequence[MapPanel]],
    scale: ColourScale,
    x: dict[str, Any],
    y: dict[str, Any],
    height: float,
    across: str,
    *,
    gap: float = 28,
) -> list[list[Panel]]:
    """Rows of maps on one colour scale, with one x axis below them and one y axis beside."""
    drawn = [board.row([one.heading for one in row], height, x, y, gap=gap) for row in rows]
    draw_alike([*chain(*drawn)], [*chain(*rows)], across, scale)
    board.one_x(drawn)
    return drawn


# --- columns -------------------------------------------------------------------------------------


def by_module(
    rows: pd.DataFrame,
    kinds: Sequence[str],
    depth: int,
    condition: str,
    heading: str,
    fixed: Mapping[str, Any],
) -> MapPanel:
    """Rows with `layer`, `kind` and the numbers as a map of a condition: a column per kind of
    module; its x axis is `module_axis(kinds)`."""
    column = rows["kind"].map({kind: at for at, kind in enumerate(kinds)})
    grid = Grid.of((condition, None), rows, column, (depth, len(kinds)))
    return MapPanel(grid, heading, fixed, columns=dict(enumerate(kinds)))


def module_axis(kinds: Sequence[str]) -> dict[str, Any]:
    """An axis of kinds of modules."""
    return style.axis(None, **style.named_ticks(kinds, 14), tickangle=-60)


def single_tokens(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of one token each: an index within the query, or its last."""
    index = frame["position"].str.fullmatch(r"\d+") | (frame["position"] == "last")
    return frame[index.fillna(False)]


def position_columns(frame: pd.DataFrame) -> tuple[pd.Series, dict[str, Any]]:
    """The column of every row (labels `0`, `1`, ..., then a gap, then `last`), and the ticks, of
    which the last one is that of `last`."""
    numbered = frame.loc[frame["position"] != "last", "position"].astype(int)
    length = int(numbered.max()) + 1 if len(numbered) else 0
    last = length + 1 if length else 0
    columns = frame["position"].map(lambda p: last if p == "last" else int(p))
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if length / s <= 10)
    at = [p for p in range(0, length, step) if last - p > 2 * step or step == 1]
    return columns, {**style.ticks_until(at, last, "last"), "range": [-0.5, last + 0.5]}
