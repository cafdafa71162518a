"""Conditions as points, layer by layer: do kinds of conditions separate, and where do they meet?

    condition_embedding(run).show()

Distances are those of the residual streams (from the condition Gram); the map of each layer is
classical scaling, turned onto the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style
from interp.plots.board import Board
from interp.plots.style import label
from interp.runs.embedding import Maps, condition_maps
from interp.runs.view import Run

_OPEN = ("square", "diamond", "triangle-up", "triangle-down", "pentagon", "hexagon", "star")
_FAR = 1.6
"""The frame is at most this many times wider than the other conditions need for controls."""


class _Group(NamedTuple):
    name: str
    members: list[str]
    colour: str
    symbol: str
    joined: bool


def condition_embedding(
    run: Run, position: str = "last", queries: str = "matched", most: int = 12
) -> go.Figure:
    """One panel per layer (at most `most`, evenly spaced), all on one scale.

    Families have a colour and a symbol and are joined to their centre; the headline's two are
    outlined. Controls do not shape the axes. Raises `NotMeasured` without a condition Gram.
    """
    found = condition_maps(run, position, queries)
    depth = len(found.points)
    shown = np.unique(np.linspace(0, depth - 1, min(depth, most)).round().astype(int)).tolist()
    columns = 3 if len(shown) in (5, 6) else min(4, len(shown))
    groups, frame, gap = _groups(run), _frame(run, found, shown), 30
    board = Board(below=34)
    side = (board.width - gap * (columns - 1)) / columns
    x, y = (style.axis(nticks=5, constrain="domain", range=ends) for ends in frame.ranges)
    rows = []
    for at in range(0, len(shown), columns):
        layers = shown[at : at + columns]
        names = [f"layer {layer}: {100 * found.share[layer]:.0f} % of variance" for layer in layers]
        row = board.row(names, side, x, y, gap=gap, columns=columns, shared=False)
        for layer, panel in zip(layers, row, strict=True):
            panel.y |= {"scaleanchor": panel.axes["xaxis"], "showticklabels": panel is row[0]}
            panel.draw(t for group in groups for t in _traces(run, found, layer, group, frame))
        rows.append(row)
    for panel in [panel for row in rows for panel in row][:-columns]:  # another one is below it
        panel.x["showticklabels"] = False
    picked = f"{len(shown)} of {depth} layers, evenly spaced" if len(shown) < depth else ""
    return board.finish(
        run,
        "Conditions by layer: distances of the residual stream, in two dimensions",
        pairs=[pair] if (pair := run.headline) else [],
        notes=[
            picked,
            "Classical scaling of the distances between residual streams, axes fitted without the "
            "controls, each layer turned onto the one before. Unit: root mean square norm of the "
            "states of the layer, one scale for all panels. Lines lead to the centre of a family; "
            "outlined: the headline's two. Controls are placed by their distances to the others "
            "and may lie off the plane; those far outside stand at the edge",
            f"Position: {position}",
        ],
        queries=queries,
    )


class _Frame(NamedTuple):
    """The square that all panels show: its centre and half its side."""

    x: float
    y: float
    half: float

    @property
    def ranges(self) -> list[list[float]]:
        """Of both axes."""
        return [[middle - self.half, middle + self.half] for middle in (self.x, self.y)]

    def pulled(self, points: np.ndarray) -> np.ndarray:
        """Points outside moved towards the centre, onto the edge."""
        away = points - [self.x, self.y]
        factor = np.maximum(1, np.abs(away).max(axis=1, keepdims=True) / (0.96 * self.half))
        return away / factor + [self.x, self.y]


def _frame(run: Run, found: Maps, shown: Sequence[int]) -> _Frame:
    """As tight as all but the controls need, and up to `_FAR` times wider for these."""
    aside = set(run.nulls)
    inner = [i for i, name in enumerate(found.conditions) if name not in aside]
    points = found.points[shown]
    core = points[:, inner or slice(None)].reshape(-1, 2)
    low, high = np.nanmin(core, axis=0), np.nanmax(core, axis=0)
    half = float((high - low).max()) / 2
    middle = (low + high) / 2
    all_ = float(np.nanmax(np.abs(points.reshape(-1, 2) - middle)))
    return _Frame(float(middle[0]), float(middle[1]), 1.12 * min(all_, _FAR * half) or 1.0)


def _groups(run: Run) -> list[_Group]:
    """Controls first, families on top."""
    families, base, pair = style.family_looks(run), run.base, run.headline or ()
    members = {m for names in run.families.values() for m in names}
    controls = [name for name in run.nulls if name not in members]
    sides = {side: c for (side, other), c in style.colours(run).items() if other == base}
    found = [
        _Group(name, [name], "#8A8A8A", f"{_OPEN[i % len(_OPEN)]}-open", False)
        for i, name in enumerate(controls)
    ]
    for name in run.manifest["conditions"]:
        if name not in members and name not in controls:
            colour = style.INK if name == base else sides.get(name, "#8A8A8A")
            symbol = "x" if name == base else "circle" if name in pair else "cross-open"
            found.append(_Group(name, [name], colour, symbol, False))
    for name, names in run.families.items():
        colour, symbol = families[name]
        found.append(_Group(f"{name} ({len(names)})", names, colour, symbol, True))
    return found


def _traces(run: Run, found: Maps, layer: int, group: _Group, frame: _Frame) -> list[go.Scatter]:
    members = [m for m in group.members if m in found.conditions]
    true = found.points[layer][[found.conditions.index(m) for m in members]]
    drawn = frame.pulled(true)
    pair: Pair | tuple[()] = run.headline or ()
    name = label(group.name)
    rim = {
        "width": [2 if m in pair else 0.8 for m in members],
        "color": [style.INK if m in pair else group.colour for m in members],
    }
    dots = go.Scatter(
        x=drawn.astype(np.float32)[:, 0],
        y=drawn.astype(np.float32)[:, 1],
        mode="markers",
        name=name,
        legendgroup=name,
        marker={"symbol": group.symbol, "size": 9, "color": group.colour, "line": rim},
        text=[label(m) for m in members],
        customdata=true.astype(np.float32),
        hovertemplate="<b>%{text}</b><br>%{customdata[0]:.3g}, %{customdata[1]:.3g}"
        f"<extra>layer {layer}</extra>",
        meta={
            "fixed": {"layer": layer, "group": group.name},
            "columns": {"condition": members},
            "custom": ["axis_1", "axis_2"],
        },
    )
    return [_spokes(drawn, group.colour, name), dots] if group.joined else [dots]


def _spokes(points: np.ndarray, colour: str, name: str) -> go.Scatter:
    centre = points.mean(axis=0)
    path = np.concatenate([[centre, p, [np.nan, np.nan]] for p in points])
    x, y = path.T.astype(np.float32)
    line = {"width": 1.2, "color": style.faded(colour, 0.55)}
    hidden: dict[str, Any] = {"legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
    return go.Scatter(x=x, y=y, mode="lines", line=line, **hidden)
