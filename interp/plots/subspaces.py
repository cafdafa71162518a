"""How much of a state's work is done by a few of its dimensions: recovery against dimension.

    subspaces(run).show()

A row per move, a column per layer, one scale for all panels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.board import Board, Panel
from interp.plots.exchanges import GREY, state_in
from interp.plots.lines import LinePanel, Look
from interp.plots.scales import CUT, is_cut, share_range
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.subspaces import (
    CROSSED,
    DIFFERENCE,
    LEARNED,
    PRINCIPAL,
    ROTATION,
    SHUFFLED,
    SIZE,
    FoundSubspaces,
)
from interp.runs.view import Run

if TYPE_CHECKING:
    import pandas as pd

_Curves = list[tuple[Look, "pd.DataFrame"]]

_LOOKS = {
    ROTATION: Look("random directions", GREY, "dot", "x"),
    DIFFERENCE: Look("random difference", GREY, "dashdot", "triangle-up"),
    SHUFFLED: Look("other queries' states, learned", "#E69F00", "dash", "square"),
    CROSSED: Look("the other condition's subspace", "#CC79A7", "dash", "diamond"),
    PRINCIPAL: Look("principal directions, untrained", "#56B4E9", "solid", "triangle-down"),
    LEARNED: Look("learned subspace", "#0072B2", "solid", "circle"),
}
"""Kind -> its line, the lowest first."""


def subspaces(run: Run, queries: str = "matched") -> go.Figure:
    """Recovery by the state in k dimensions: learned, and its controls; a dashed line is the whole
    state, a star the smallest dimension that is enough. Raises `NotMeasured` without subspaces."""
    of = run.subspaces
    found = {
        (move, layer): [
            (look, frame)
            for kind, look in _LOOKS.items()
            if len(frame := of.curve(kind, move, layer, queries))
        ]
        for move in of.moves
        for layer in of.layers
    }
    frames = [frame for lines in found.values() for _, frame in lines]
    board = Board(left=72)
    y = style.axis("recovery", range=share_range(frames))
    rows = []
    for number, move in enumerate(of.moves):
        headings = [f"layer {layer}" for layer in of.layers]
        panels = board.row(headings, 210, _axis(of), y, above=30 if number else 0)
        panels[0].heading = f"{state_in(*move)}: layer {of.layers[0]}"
        for panel, layer in zip(panels, of.layers, strict=True):
            _draw(panel, of, move, layer, found[move, layer], queries)
        rows.append(panels)
    board.one_x(rows)
    return board.finish(
        run,
        "How many dimensions of the residual stream carry a condition into another's run",
        notes=[
            f"Subspaces learned on {of.found['learned_on']} queries, scored on "
            f"{of.found['n'][queries]} other {queries} queries; bands are intervals",
            "Dashed: the whole state. Star: the smallest dimension from which on the learned "
            f"subspace recovers as much, up to {of.found['margin']:g}",
            CUT if is_cut(frames) else "",
        ],
        queries=queries,
    )


def _axis(of: FoundSubspaces) -> dict[str, object]:
    """Dimensions, each twice the last as far apart."""
    ends = np.log10([of.dimensions[0], of.dimensions[-1]])
    room = 0.06 * (ends[1] - ends[0]) or 0.1
    look = {"tickvals": of.dimensions, "ticktext": [str(k) for k in of.dimensions]}
    return style.axis(
        "dimensions",
        type="log",
        range=[ends[0] - room, ends[1] + room],
        minor={"ticks": ""},
        **look,
    )


def _draw(
    panel: Panel,
    of: FoundSubspaces,
    move: tuple[str, str],
    layer: int,
    lines: _Curves,
    queries: str,
) -> None:
    panel.level(0)
    whole = of.whole(move, layer, queries)
    panel.level(float(whole.iloc[0]["value"]), color=style.INK, width=1.3, dash="dash")
    traces = LinePanel(lines, across="dimension").traces()
    for trace in traces:
        if trace.meta is not None:
            trace.meta = {**trace.meta, "fixed": {**trace.meta["fixed"], "layer": layer}}
    panel.draw(traces)
    panel.draw(_star(of, move, layer, queries))


def _star(of: FoundSubspaces, move: tuple[str, str], layer: int, queries: str) -> list[go.Scatter]:
    """On the learned line, where its dimension is one of those compared."""
    size = of.size(move, layer, queries).iloc[0]
    curve = of.curve(LEARNED, move, layer, queries)
    here = curve[curve["dimension"] == size["value"]]
    if here.empty:
        return []
    rim = {"width": 1.2, "color": "white"}
    colour = _LOOKS[LEARNED].colour
    numbers = size[["value", "ci_low", "ci_high"]].to_numpy(float)
    star = go.Scatter(
        x=here["dimension"].to_numpy(np.int16),
        y=here["value"].to_numpy(np.float32),
        mode="markers",
        marker={"symbol": "star", "size": 15, "color": colour, "line": rim},
        name=label(MEASURES[SIZE].title),
        legendgroup=SIZE,
        customdata=numbers[None],
        hovertemplate="<b>enough</b><br>%{customdata[0]:.0f} dimensions, interval "
        "%{customdata[1]:.0f} to %{customdata[2]:.0f}<extra></extra>",
        meta={
            "fixed": {
                "measure": SIZE,
                "condition": move[0],
                "reference": move[1],
                "layer": layer,
                "queries": queries,
            },
            "custom": ["value", "ci_low", "ci_high"],
        },
    )
    return [star]
