"""Attribution of heads' outputs: where the answer's change comes from, by head and by query token.

    attribution_heads(run).show()

For each direction, all heads at all tokens, beside it the strongest of them token by token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.names import Head
from interp.plots import grids, style
from interp.plots.attribution import ESTIMATE, Move, directions
from interp.plots.exchanges import state_in
from interp.plots.grids import Grid
from interp.plots.maps import position_columns, single_tokens
from interp.plots.panels import Area, Drawing
from interp.plots.text import label
from interp.runs.largest import UNTESTED
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

_SITE, STRONGEST = "z", 10
_LEFT, _RIGHT, _GAP, _NAMES = 64, 84, 84, 66


def attribution_heads(run: Run, queries: str = "matched") -> go.Figure:
    """First-order change of the answer's log-odds by head: layer x head, and the strongest heads by
    query token. One diverging scale, centred at zero. Raises `NotMeasured` without attributions."""
    run = run.exchanged()
    frame = run.rows(ESTIMATE, _SITE, queries=queries)
    frame = frame[frame["head"].notna()]
    moves = directions(run, frame[frame["position"] == "all"])
    if not moves:
        raise NotMeasured("this run has no attributions of heads")
    height = min(300, max(190, 10 * run.n_layers))
    rows, columns = -(-len(moves) // 2), min(2, len(moves))
    drawing = Drawing(go.Figure(), style.WIDTH - _LEFT - _RIGHT, rows * (height + _GAP) - _GAP)
    width = (drawing.width - (columns - 1) * _NAMES) / columns
    for number, move in enumerate(moves):
        row, column = divmod(number, 2)
        place = Area(column * (width + _NAMES), row * (height + _GAP), width, height)
        part = frame[(frame["condition"] == move[0]) & (frame["reference"] == move[1])]
        _direction(run, part, move, drawing, place)
    _scale(drawing.figure, frame)
    return style.finish(
        drawing.figure,
        run,
        title="Attribution of head outputs (z): first-order change of the answer's log-odds",
        pairs=[],
        queries=queries,
        note="Left of each pair: the head's output replaced at all tokens. Right: at single "
        f"tokens, for the {STRONGEST} heads of the largest size ({UNTESTED}); what a pattern or "
        "a norm would do beyond first order is left out. One colour scale for all panels",
        plot=round(drawing.height),
        left=_LEFT,
        right=_RIGHT,
        below=52,
    )


def _direction(run: Run, frame: pd.DataFrame, move: Move, drawing: Drawing, place: Area) -> None:
    whole, single = frame[frame["position"] == "all"], single_tokens(frame)
    width = 0.56 * (place.width - _NAMES) if len(single) else place.width
    _by_layer(run, whole, move, drawing, place._replace(width=width))
    if len(single):
        left = place.left + width + _NAMES
        right = place._replace(left=left, width=place.width - width - _NAMES)
        _by_token(whole, single, move, drawing, right)


def _by_layer(run: Run, frame: pd.DataFrame, move: Move, drawing: Drawing, place: Area) -> None:
    model = run.manifest["model"]
    shape = (int(model["n_layers"]), int(model["n_heads"]))
    grid = Grid.of(move, frame, frame["head"], shape)
    x = style.axis("head (from 0)", **style.integer_ticks(shape[1], 8), showgrid=False)
    title = "layer (from 0)" if place.left == 0 else None
    y = style.axis(title, **style.integer_ticks(shape[0], 8), showgrid=False)
    axes = drawing.add(place, state_in(*move), x, y)
    fixed = {"measure": ESTIMATE, "site": _SITE, "position": "all"}
    drawing.draw([grids.cells(grid, fixed, "head")], axes)


def _by_token(
    whole: pd.DataFrame, single: pd.DataFrame, move: Move, drawing: Drawing, place: Area
) -> None:
    """The strongest heads, the strongest on top."""
    order = whole["value"].abs().sort_values(ascending=False, kind="stable").index[:STRONGEST]
    heads = list(
        zip(
            whole.loc[order, "layer"].astype(int), whole.loc[order, "head"].astype(int), strict=True
        )
    )
    keys = zip(single["layer"].astype(int), single["head"].astype(int), strict=True)
    row = np.array([heads.index(key) if key in heads else -1 for key in keys])
    kept = single[row >= 0].assign(layer=row[row >= 0])
    columns, ticks = position_columns(kept)
    shape = (len(heads), int(ticks["tickvals"][-1]) + 1)
    grid = Grid.of(move, kept, columns, shape)
    names = [str(Head(*head)) for head in heads]
    look = {"tickmode": "array", "tickvals": list(range(len(names))), "ticktext": names}
    y = style.axis(None, **look, range=[len(names) - 0.5, -0.5], showgrid=False)
    y["tickfont"] = {"size": 10}
    axes = drawing.add(place, "", style.axis("query token", **ticks, showgrid=False), y)
    trace = grids.cells(grid, {"measure": ESTIMATE, "site": _SITE}, "position", shape[1] - 1)
    labels = {str(i): name for i, name in enumerate(names)}
    trace.update(
        meta={**trace.meta, "y": "strongest", "y_labels": labels},
        hovertemplate=trace.hovertemplate.replace("layer %{y}", "%{y}"),
    )
    drawing.draw([trace], axes)


def _scale(figure: go.Figure, frame: pd.DataFrame) -> None:
    top = float(frame["value"].abs().max()) or 1.0
    title = {"text": label("attribution [nats]"), "side": "right", "font": {"size": 12}}
    bar = {"title": title, "thickness": 14, "outlinewidth": 0, "x": 1.015}
    figure.update_layout(
        coloraxis={"cmin": -top, "cmax": top, "colorscale": style.DIVERGING, "colorbar": bar}
    )
