"""Attribution, the first-order estimate of a patch: beside what patching really does, and by head.

    attribution(run).show()
    attribution_heads(run).show()

Attribution is cheap and holds near the state it starts from; where it leaves the diagonal, the
network's saturation speaks (a softmax, a norm), and the exact patch is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.names import Head
from interp.plots import style
from interp.plots.board import Area, Board, Panel
from interp.plots.exchanges import state_in
from interp.plots.maps import Grid, MapPanel, draw_map, position_columns, single_tokens
from interp.plots.scales import ColourScale
from interp.plots.style import label
from interp.runs.largest import UNTESTED
from interp.runs.patched import ESTIMATE, EXACT
from interp.runs.view import NotMeasured, Run, of_pair
from interp.runs.words import SITES, title

if TYPE_CHECKING:
    import pandas as pd

STRONGEST = 10
"""Heads that are shown token by token."""
_PLACE = ["condition", "reference", "layer", "head", "position"]
_LOOKS = {
    "resid_pre": ("#8C6BB1", "triangle-down"),
    "resid_mid": ("#CC79A7", "triangle-up"),
    "resid_post": ("#0072B2", "circle"),
    "attn_out": ("#E69F00", "square"),
    "mlp_out": ("#009E73", "diamond"),
    "z": ("#D55E00", "circle"),
    "pattern": ("#56B4E9", "cross"),
}
_OTHER = (style.RULE, "x")
_COLUMNS, _NAMES = 3, 66


# --- beside exact patches ------------------------------------------------------------------------


def attribution(run: Run, queries: str = "matched") -> go.Figure:
    """First-order against exact change of the answer's log-odds, one panel per direction.

    Raises `NotMeasured` without attributions of places that were patched.
    """
    run = run.exchanged()
    frame = run.interchange.attributed(queries)
    moves = run.interchange.directions(frame)
    if not moves:
        raise NotMeasured("this run has no attributions beside exact patches")
    board = Board(left=72)
    columns = min(_COLUMNS, len(moves))
    axis = style.axis("", nticks=6, **style.ZERO)
    for first in range(0, len(moves), columns):
        row = moves[first : first + columns]
        look: dict[str, Any] = {"gap": 66, "shared": False, "columns": columns}
        headings = [state_in(*move) for move in row]
        panels = board.row(headings, 262, axis, axis, above=44 if first else 0, **look)
        for number, (panel, move) in enumerate(zip(panels, row, strict=True), first):
            _scatter(panel, of_pair(frame, move))
            _agreement(panel, run, move, of_pair(frame, move))
            if number + columns >= len(moves):
                panel.x["title"] = style.axis("exact change [nats]")["title"]
        panels[0].y["title"] = style.axis("first-order estimate [nats]")["title"]
    return board.finish(
        run,
        "Attribution against exact patches: change of the answer's log-odds",
        notes=[
            "One mark per place whose value was replaced (all tokens, a segment, or one token); "
            "on the diagonal the estimate is exact. ρ: Spearman's rank correlation over the places",
            "Every panel has its own scale, the same on both axes",
        ],
        queries=queries,
    )


def _scatter(panel: Panel, frame: pd.DataFrame) -> None:
    numbers = frame[["value", "estimate"]].to_numpy(float)
    low, high = min(float(numbers.min()), 0.0), max(float(numbers.max()), 0.0)
    room = 0.06 * (high - low or 1.0)
    ends = [low - room, high + room]
    panel.x["range"] = panel.y["range"] = ends
    diagonal = {"mode": "lines", "line": {"color": style.INK, "width": 1}, "hoverinfo": "skip"}
    panel.draw([go.Scatter(x=ends, y=ends, showlegend=False, **diagonal)])
    sites = frame["site"].value_counts().index  # the most numerous lie below
    panel.draw(_marks(frame[frame["site"] == site], str(site)) for site in sites)


def _marks(frame: pd.DataFrame, site: str) -> go.Scatter:
    colour, symbol = _LOOKS.get(site, _OTHER)
    columns = ("ci_low", "ci_high", "estimate_low", "estimate_high", "n")
    custom = np.stack([frame[c].to_numpy(float, na_value=np.nan) for c in columns], axis=1)
    places = {name: _plain(frame[name]) for name in _PLACE}
    names = [
        f"{site}, layer {layer}" + ("" if head is None else f", head {head}") + f", position {at}"
        for layer, head, at in zip(places["layer"], places["head"], places["position"], strict=True)
    ]
    return go.Scatter(
        x=frame["value"].to_numpy(np.float32),
        y=frame["estimate"].to_numpy(np.float32),
        mode="markers",
        name=f"{SITES.get(site, site)} ({site})",
        legendgroup=site,
        legendrank=1000 + ([*_LOOKS].index(site) if site in _LOOKS else len(_LOOKS)),
        marker={
            "size": 5 if len(frame) > 100 else 7,
            "color": colour,
            "symbol": symbol,
            "opacity": 0.75,
            "line": {"width": 0.5, "color": "white"},
        },
        text=[label(name) for name in names],
        customdata=custom.astype(np.float32),
        hovertemplate="<b>%{text}</b><br>exact %{x:.4g}, interval %{customdata[0]:.3g} to "
        "%{customdata[1]:.3g}<br>first order %{y:.4g}, interval %{customdata[2]:.3g} to "
        "%{customdata[3]:.3g}<br>n = %{customdata[4]:.0f}<extra></extra>",
        meta={
            "fixed": {"site": site},
            "columns": places,
            "x": EXACT,
            "y": ESTIMATE,
            "custom": [f"{EXACT}_low", f"{EXACT}_high", f"{ESTIMATE}_low", f"{ESTIMATE}_high", "n"],
        },
    )


def _plain(column: pd.Series) -> list[Any]:
    return column.astype(object).where(column.notna(), None).tolist()


def _agreement(panel: Panel, run: Run, move: tuple[str, str], frame: pd.DataFrame) -> None:
    """The rank correlations of a direction, in the emptier of the two corners off the diagonal."""
    found = run.interchange.found.get("attribution") or []
    lines = [
        f'<span style="color:{_LOOKS.get(e["site"], _OTHER)[0]}">{_correlation(e)}</span>'
        for e in found
        if (e["source"], e["target"]) == move
    ]
    below = (frame["estimate"] < frame["value"]).mean() < 0.5
    across, up = ("right", "bottom") if below else ("left", "top")
    place = {"xref": panel.domain("x"), "yref": panel.domain("y"), "xanchor": across, "yanchor": up}
    look = {"align": across, "font": {"size": 10}, "bgcolor": "rgba(255,255,255,0.7)"}
    panel.write("<br>".join(lines), x=float(below), y=float(not below), **place, **look)


def _correlation(entry: dict[str, Any]) -> str:
    value = entry["spearman"]
    words = "undefined" if value is None else f"{value:.2f}".replace("-", "−")
    return label(f"{entry['site']} by {entry['by']}: ρ {words}")


# --- by head -------------------------------------------------------------------------------------


def attribution_heads(run: Run, queries: str = "matched") -> go.Figure:
    """First-order change of the answer's log-odds by head: for each direction layer x head at all
    tokens, beside it the strongest heads by query token. One diverging scale, centred at zero.
    Raises `NotMeasured` without attributions."""
    run = run.exchanged()
    frame = run.rows(ESTIMATE, "z", queries=queries, heads=True)
    moves = run.interchange.directions(frame[frame["position"] == "all"])
    if not moves:
        raise NotMeasured("this run has no attributions of heads")
    board = Board(right=84, below=52)
    height, columns = min(300, max(190, 10 * run.n_layers)), min(2, len(moves))
    width = (board.width - (columns - 1) * _NAMES) / columns
    shown: list[tuple[Panel, MapPanel, str]] = []
    for number, move in enumerate(moves):
        row, column = divmod(number, columns)
        place = Area(column * (width + _NAMES), row * (height + 84), width, height)
        shown += _direction(run, of_pair(frame, move), move, board, place)
    values = frame["value"].to_numpy(float, na_value=np.nan)
    scale = ColourScale.linear([values], ESTIMATE, title(ESTIMATE, frame))
    axis = board.colours([p for p, *_ in shown], scale.ends, scale.colours, scale.title)
    for panel, cells, across in shown:
        draw_map(panel, cells, across, scale, axis)
    return board.finish(
        run,
        "Attribution of head outputs (z): first-order change of the answer's log-odds",
        notes=[
            "Left of each pair: the head's output replaced at all tokens. Right: at single "
            f"tokens, for the {STRONGEST} heads of the largest size ({UNTESTED}); what a pattern "
            "or a norm would do beyond first order is left out",
            "One colour scale for all panels",
        ],
        queries=queries,
    )


def _direction(
    run: Run, frame: pd.DataFrame, move: tuple[str, str], board: Board, place: Area
) -> Iterator[tuple[Panel, MapPanel, str]]:
    """A direction's panels, what they show, and what their columns are."""
    whole, single = frame[frame["position"] == "all"], single_tokens(frame)
    both = place.width - _NAMES
    left = place._replace(width=0.56 * both) if len(single) else place
    shape = (run.n_layers, run.n_heads)
    x = style.axis("head (from 0)", **style.integer_ticks(run.n_heads, 8))
    y = style.layer_axis(run, "" if place.left else "layer (from 0)", 8)
    fixed = {"measure": ESTIMATE, "site": "z", "position": "all"}
    cells = MapPanel(Grid.of(move, whole, whole["head"], shape), "", fixed)
    yield board.add(left, state_in(*move), x, y), cells, "head"
    if len(single):
        cells, ticks = _by_token(whole, single, move)
        names = style.named_ticks(list(cells.rows.values()))
        names |= {"range": names["range"][::-1], "tickfont": {"size": 10}}
        right = Area(left.right + _NAMES, place.top, 0.44 * both, place.height)
        x = style.axis("query token", **ticks)
        yield board.add(right, "", x, style.axis(**names)), cells, "position"


def _by_token(
    whole: pd.DataFrame, single: pd.DataFrame, move: tuple[str, str]
) -> tuple[MapPanel, dict[str, Any]]:
    """The strongest heads, the strongest on top, and the ticks of the tokens."""
    order = whole["value"].abs().sort_values(ascending=False, kind="stable").index[:STRONGEST]
    heads = _heads(whole.loc[order])
    row = np.array([heads.index(head) if head in heads else -1 for head in _heads(single)])
    kept = single[row >= 0].assign(layer=row[row >= 0])
    columns, ticks = position_columns(kept)
    last = int(ticks["tickvals"][-1])
    grid = Grid.of(move, kept, columns, (len(heads), last + 1))
    fixed = {"measure": ESTIMATE, "site": "z"}
    names = {i: str(head) for i, head in enumerate(heads)}
    shown = MapPanel(grid, "", fixed, rows=names, columns={last: "last"}, down="strongest")
    return shown, ticks


def _heads(frame: pd.DataFrame) -> list[Head]:
    return [
        Head(int(layer), int(h)) for layer, h in zip(frame["layer"], frame["head"], strict=True)
    ]
