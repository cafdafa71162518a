"""Which edges carry a condition: layer into layer, to first order against exact, and in common.

    edges(run).show()

Edges are from what a node writes to the residual stream to where a head, an MLP or the logits read
it; their sizes are changes of the answer's log-odds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.board import Board, Panel
from interp.plots.exchanges import GREY
from interp.plots.maps import Grid, MapPanel, draw_alike
from interp.plots.scales import ColourScale
from interp.plots.style import label
from interp.runs.edges import FLOW, FoundEdges
from interp.runs.view import Run

if TYPE_CHECKING:
    import pandas as pd

_BY = {"won": "{} → {base}", "lost": "{base} → {}"}


def edges(run: Run) -> go.Figure:
    """Two rows of maps, sender's layer by receiver's (what is won in base's run, and lost without
    it), one scale; below them the strongest edges, first order against exact and one condition
    against the other. Raises `NotMeasured` without edges."""
    of = run.edges
    board = Board(left=76, right=84)
    _maps(board, of)
    left, right = board.row(
        ["first order against exact, the strongest edges", _headed(of)],
        300,
        style.axis("", **style.ZERO),
        style.axis("", **style.ZERO),
        gap=96,
        shared=False,
        above=44,
    )
    _exact(left, of)
    _in_common(right, of)
    return board.finish(
        run,
        "Edges that carry each condition: whose output into whose input",
        pairs=[of.pair],
        notes=[
            "Maps: sums of the sizes of all edges (first order) from a sender's layer into a "
            "receiver's; emb: what enters the first block. One colour scale",
            f"{of.found['edges']} edges, n = {of.found['n']}; a → b: a's writes in b's run",
            *of.found["verdict"][1:2],
        ],
    )


# --- layer into layer ----------------------------------------------------------------------------


def _maps(board: Board, of: FoundEdges) -> None:
    depth = of.run.n_layers
    step = -(-depth // 8)
    numbers = list(range(0, depth, step))
    senders = {"tickvals": [0, *(n + 1 for n in numbers)], "ticktext": ["emb", *map(str, numbers)]}
    receivers = {"tickvals": [*numbers, depth], "ticktext": [*map(str, numbers), "logits"]}
    ends: dict[str, Any] = {"range": [-0.5, depth + 0.5], "tickmode": "array"}
    x = style.axis("sender's layer", **senders, **ends)
    y = style.axis("receiver's layer", **receivers, **ends)
    rows: list[list[MapPanel]] = []
    panels: list[list[Panel]] = []
    for by in _BY:
        cells = [_map(of, condition, by) for condition in of.conditions]
        rows.append(cells)
        height = min(300, max(150, 14 * depth))
        above = 12 if panels else 0
        panels.append(board.row([one.heading for one in cells], height, x, y, above=above))
    board.one_x(panels)
    every = [one for row in rows for one in row]
    scale = ColourScale.linear([one.grid.values for one in every], FLOW)
    draw_alike([p for row in panels for p in row], every, "sender", scale)


def _map(of: FoundEdges, condition: str, by: str) -> MapPanel:
    move = of.move(condition, by)
    values = of.flow(move).astype(np.float32)
    cells = {name: np.full(values.shape, np.nan, np.float32) for name in ("ci_low", "ci_high")}
    cells |= {"value": values, "n": np.where(np.isnan(values), np.nan, of.found["n"])}
    cells["p_adjusted"] = np.full(values.shape, np.nan, np.float32)
    depth = of.run.n_layers
    columns = {0: "embed"} | {i + 1: str(i) for i in range(depth)}
    rows = {i: str(i) for i in range(depth)} | {depth: "logits"}
    heading = label(_BY[by].format(condition, base=of.base), 34)
    grid = Grid(move, cells, ~np.isnan(values))
    return MapPanel(grid, heading, {"measure": FLOW}, rows=rows, columns=columns, down="receiver")


# --- edge by edge --------------------------------------------------------------------------------


def _exact(panel: Panel, of: FoundEdges) -> None:
    """What edges do when they are patched, against what the gradient says."""
    frames = {
        (condition, by): frame[frame["exact"].notna()]
        for condition in of.conditions
        for by in _BY
        if len(frame := of.strongest(of.move(condition, by)))
    }
    ends = [f[["estimate", "exact"]].to_numpy(float).ravel() for f in frames.values() if len(f)]
    _square(panel, np.concatenate(ends) if ends else np.zeros(1))
    panel.x["title"] = style.axis("patched exactly [nats]")["title"]
    panel.y["title"] = style.axis("first order [nats]")["title"]
    for (condition, by), frame in frames.items():
        symbol = {"won": "circle", "lost": "triangle-up"}[by]
        name = f"{_BY[by].format(condition, base=of.base)}"
        panel.draw([_points(frame, ("exact", "estimate"), name, _colour(of, condition), symbol)])


def _in_common(panel: Panel, of: FoundEdges) -> None:
    """Edges of both conditions, into base's run."""
    a, b = of.pair
    frames = [
        of.strongest(of.move(c, "won"))[["edge", "estimate"]].rename(columns={"estimate": c})
        for c in of.pair
    ]
    both = frames[0].merge(frames[1], on="edge")
    _square(panel, both[[a, b]].to_numpy(float).ravel())
    panel.x["title"] = style.axis(f"{a} → {of.base} [nats]")["title"]
    panel.y["title"] = style.axis(f"{b} → {of.base} [nats]")["title"]
    points = _points(both, (a, b), "strongest edges of any condition", style.INK, "circle-open")
    panel.draw([points])


def _headed(of: FoundEdges) -> str:
    return f"first order, {label(of.pair[0], 16)} against {label(of.pair[1], 16)}"


def _square(panel: Panel, numbers: np.ndarray) -> None:
    """Both axes alike, and their diagonal."""
    low, high = min(float(numbers.min()), 0.0), max(float(numbers.max()), 0.0)
    room = 0.06 * (high - low or 1.0)
    ends = [low - room, high + room]
    panel.x["range"] = panel.y["range"] = ends
    line = {"color": style.RULE, "width": 1, "dash": "dot"}
    quiet = {"mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    panel.draw([go.Scatter(x=ends, y=ends, line=line, **quiet)])


def _points(
    frame: pd.DataFrame, columns: tuple[str, str], name: str, colour: str, symbol: str
) -> go.Scatter:
    x, y = columns
    edge = [label(str(text)) for text in frame["edge"]]
    return go.Scatter(
        x=frame[x].to_numpy(np.float32),
        y=frame[y].to_numpy(np.float32),
        mode="markers",
        name=label(name),
        legendgroup=name,
        text=edge,
        marker={"size": 7, "color": colour, "symbol": symbol, "opacity": 0.8},
        hovertemplate="<b>%{text}</b><br>%{x:.4g}, %{y:.4g}<extra></extra>",
        meta={
            "fixed": {"series": name},
            "columns": {"edge": frame["edge"].astype(str).tolist()},
            "x": x,
            "y": y,
        },
    )


def _colour(of: FoundEdges, condition: str) -> str:
    if condition not in of.pair:
        return GREY
    return style.condition_look(of.run, condition)[0]
