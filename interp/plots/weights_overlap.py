"""Which adapters change the same directions: adapter by adapter, then layer by kind of module.

    weights_overlap(run).show()

Chance is the rank over the dimensions; a space overlaps with itself by 1, which is left blank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import grids, style
from interp.plots.grids import Grid
from interp.plots.panels import Area, Drawing
from interp.plots.spectra import module_ticks
from interp.plots.text import label
from interp.runs.view import NotMeasured, Run
from interp.runs.weights import SIDES, Weighed
from interp.showing import number

if TYPE_CHECKING:
    import pandas as pd

_LEFT, _RIGHT, _GAP = 132, 64, 116
_LETTERED = 14
"""Most conditions whose cells carry their number."""


def weights_overlap(run: Run) -> go.Figure:
    """Mean overlap of every two conditions over their matrices, left and right; below, the mean of
    the pairs within the headline's family by layer and kind. Raises `NotMeasured` without pairs."""
    of = run.weights
    frames = {side: of.overlaps(side) for side in SIDES}
    if all(frame.empty for frame in frames.values()):
        raise NotMeasured("this run has no two changes of the same matrix")
    present = set(frames["left"]["condition"]) | set(frames["left"]["reference"])
    names = [name for name in of.conditions if name in present]
    depth = run.n_layers
    upper, lower = 34 * max(len(names), 4), min(420, max(120, 16 * depth))
    inside = {side: _inside(frame, of) for side, frame in frames.items()}
    two = all(len(frame) for frame in inside.values())
    drawing = Drawing(
        go.Figure(), style.WIDTH - _LEFT - _RIGHT, upper + (_GAP + lower if two else 0)
    )
    width = (drawing.width - 40) / 2
    for column, side in enumerate(SIDES):
        place = Area(column * (width + 40), 0, width, upper)
        _square(drawing, place, frames[side], names, side, column == 0)
        if two:
            place = Area(column * (width + 40), upper + _GAP, width, lower)
            _map(drawing, place, inside[side], side, depth, column == 0)
    _scales(drawing, upper, lower if two else 0)
    return style.finish(
        drawing.figure,
        run,
        title="Do different weights change the same directions? Overlap of their strongest ones",
        pairs=[],
        note=_note(of, frames),
        plot=round(drawing.height),
        left=_LEFT,
        right=_RIGHT,
        below=66,
    )


def _inside(frame: pd.DataFrame, of: Weighed) -> pd.DataFrame:
    """Rows of the family's pairs in the blocks."""
    pairs = set(of.family)
    own = [pair in pairs for pair in zip(frame["condition"], frame["reference"], strict=True)]
    return frame[np.array(own, dtype=bool) & frame["layer"].notna().to_numpy()]


def _square(
    drawing: Drawing,
    place: Area,
    frame: pd.DataFrame,
    names: list[str],
    side: str,
    first: bool,
) -> None:
    keys = ["condition", "reference"]
    pairs = frame.groupby(keys)
    means = pairs[["value", "chance"]].mean().assign(n=pairs.size())
    cells = np.full((3, len(names), len(names)), np.nan, dtype=np.float32)
    for (a, b), row in means.iterrows():
        for i, j in ((a, b), (b, a)):
            cells[:, names.index(i), names.index(j)] = row[["value", "chance", "n"]]
    labels = {str(i): name for i, name in enumerate(names)}
    ticks = {"tickmode": "array", "tickvals": list(range(len(names)))}
    shown = [label(name, 18) for name in names]
    ticks |= {"ticktext": shown}
    ends = [-0.5, len(names) - 0.5]
    x = style.axis(None, **ticks, range=ends, showgrid=False, tickangle=-40)
    look: dict[str, Any] = {"range": ends[::-1], "showgrid": False, "showticklabels": first}
    axes = drawing.add(place, SIDES[side], x, style.axis(None, **ticks, **look))
    trace = go.Heatmap(
        z=cells[0],
        x=list(range(len(names))),
        y=list(range(len(names))),
        customdata=np.moveaxis(cells[1:], 0, 2),
        coloraxis="coloraxis",
        texttemplate="%{z:.2f}" if len(names) <= _LETTERED else None,
        textfont={"size": 11},
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="overlap %{z:.3f}, chance %{customdata[0]:.3f}<br>mean of "
        "%{customdata[1]:.0f} matrices<extra></extra>",
        meta={
            "fixed": {"measure": f"subspace_overlap_{side}", "site": "mean over matrices"},
            "x": "reference",
            "y": "condition",
            "x_labels": labels,
            "y_labels": labels,
            "z": "value",
            "custom": ["chance", "matrices"],
        },
    )
    drawing.draw([trace], axes)


def _map(
    drawing: Drawing, place: Area, frame: pd.DataFrame, side: str, depth: int, first: bool
) -> None:
    kinds = list(dict.fromkeys(frame.sort_values("order", kind="stable")["kind"]))
    mean = frame.groupby(["layer", "kind"], as_index=False)[["value", "chance"]].mean()
    rows = mean.assign(**dict.fromkeys(("ci_low", "ci_high", "n", "p_adjusted"), np.nan))
    pair = ("family", None)
    grid = Grid.of(pair, rows, rows["kind"].map(kinds.index), (depth, len(kinds)))
    trace = grids.cells(grid, {"measure": f"subspace_overlap_{side}"}, "module")
    labels = {str(i): kind for i, kind in enumerate(kinds)}
    trace.update(meta={**trace.meta, "x_labels": labels}, coloraxis="coloraxis2")
    x = style.axis(None, **module_ticks(kinds), showgrid=False)
    y = style.axis(
        "layer (from 0)" if first else None, **style.integer_ticks(depth), showgrid=False
    )
    chance = number(float(frame["chance"].mean()), 2)
    drawing.draw([trace], drawing.add(place, f"within the family (chance {chance})", x, y))


def _scales(drawing: Drawing, upper: float, lower: float) -> None:
    """One scale for both sides of a row."""
    rows = {"coloraxis": (0.0, upper), "coloraxis2": (upper + _GAP, lower)}
    for name, (top, height) in rows.items():
        values = [np.asarray(t.z) for t in drawing.figure.data if t.coloraxis == name]
        if not values or not height:
            continue
        low, high, scale = style.colour_range(values, "subspace_overlap_left")
        bar = drawing.bar(Area(0, top, drawing.width, height))
        look = {"cmin": low, "cmax": high, "colorscale": scale, "colorbar": bar}
        drawing.figure.layout[name] = look


def _note(of: Weighed, frames: dict[str, pd.DataFrame]) -> str:
    chance = {side: float(frame["chance"].mean()) for side, frame in frames.items()}
    family = of.family
    within = f". Family: {_names(family)}, {len(family)} pairs" if family else ""
    return (
        "Overlap: (1/r)‖U₁ᵀU₂‖² of the r strongest singular directions of two updates, 1: the same "
        f"space; mean over matrices. r: the smaller rank, at most {of.found['overlap']}. Chance "
        f"(r/d): {number(chance['left'], 2)} left, {number(chance['right'], 2)} right on average"
        f"{within}. Weights are exact: no interval; outputs were certified on the queries"
    )


def _names(pairs: Sequence[Pair], most: int = 6) -> str:
    names = list(dict.fromkeys(str(name) for pair in pairs for name in pair))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
