"""Maps of an interchange: layer by query position, and layer by head, of both conditions.

    interchange_positions(run).show()
    interchange_heads(run, "pattern").show()

Damage has logarithmic colours, linear below a hundredth of the largest; recovery has linear ones,
centred at zero. What shares a measure shares its colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import Pair
from interp.plots import grids, style
from interp.plots.exchanges import sides, state_in
from interp.plots.grids import Grid
from interp.plots.maps import position_columns, single_tokens
from interp.plots.symlog import Symlog
from interp.plots.text import label
from interp.runs.view import NotMeasured, Run
from interp.runs.words import SITES, title

if TYPE_CHECKING:
    import pandas as pd

_GAP = 52
"""Pixels between two rows of panels, for their headings."""


@dataclass(frozen=True)
class Row:
    """Two panels side by side: a measure, and for each its move and heading."""

    measure: str
    panels: tuple[tuple[Pair, str], tuple[Pair, str]]


def interchange_positions(run: Run) -> go.Figure:
    """Layer by query position of `resid_post`: damage in both directions, that of base's state at
    the same places, and recovery into base. Raises `NotMeasured` without such rows."""
    run = run.exchanged()
    a, b, base = sides(run)
    rows = [
        Row("damage", (((a, b), state_in(a, b)), ((b, a), state_in(b, a)))),
        Row("damage", (((base, b), state_in(base, b)), ((base, a), state_in(base, a)))),
        Row("recovery", (((a, base), state_in(a, base)), ((b, base), state_in(b, base)))),
    ]
    frame = _rows(run, "resid_post", rows)
    frame = single_tokens(frame[frame["head"].isna()])
    if frame.empty:
        raise NotMeasured("this run has no interchange at single positions")
    columns, ticks = position_columns(frame)
    return _board(
        run,
        _placed(run, frame, columns, ticks["tickvals"][-1] + 1, rows),
        ("position", "query position (from 0)", ticks),
        title="Interchange of residual streams at single query tokens, layer by position",
        note=f"{_DAMAGE}. Second row: {base}'s state at the same places. {_RECOVERY.format(base)}. "
        "Positions count the query's tokens from its first; last is the one before the answer",
    )


def interchange_heads(run: Run, site: str = "z") -> go.Figure:
    """Layer by head: what is lost when base's head takes the place of a condition's own, and what
    is won when the condition's takes the place of base's. `site`: `z`, or `pattern` for the last
    row of the attention alone. Raises `NotMeasured` without such rows."""
    run = run.exchanged()
    a, b, base = sides(run)
    short, part = _PARTS.get(site, (site, site))
    lost, won = (
        {c: words.format(short, label(c)) for c in (a, b)}
        for words in ("lost without the {}: {}", "won by the {} alone: {}")
    )
    rows = [
        Row("damage", (((base, a), lost[a]), ((base, b), lost[b]))),
        Row("recovery", (((a, base), won[a]), ((b, base), won[b]))),
    ]
    frame = _rows(run, site, rows)
    frame = frame[frame["head"].notna() & (frame["position"] == "all")]
    if frame.empty:
        raise NotMeasured(f"this run has no interchange by head at {site}")
    n_heads = run.n_heads
    return _board(
        run,
        _placed(run, frame, frame["head"], n_heads, rows),
        ("head", "head (from 0)", style.integer_ticks(n_heads)),
        title=f"What single heads carry: {SITES.get(site, site)} ({site}) exchanged with {base}'s",
        note=f"Lost: damage when {base}'s {part} of the head takes its place in the condition's "
        f"run; won: recovery when the condition's does in {base}'s. {_what_moves(run, site)}"
        f"{_RECOVERY.format(base)}",
    )


_PARTS = {"z": ("head", "output"), "pattern": ("pattern", "attention pattern")}
"""What is exchanged, in a heading and in a caption."""
_DAMAGE = "Damage: KL(run ‖ run with the other's state at one token), nats"
_RECOVERY = "Recovery: 1 − KL(condition ‖ patched {0}) / KL(condition ‖ {0}), below 0: harm"


def _what_moves(run: Run, site: str) -> str:
    if site != "pattern":
        return ""
    if run.manifest["interchange"].get("pattern") == "row":
        return "Whole rows of the pattern move. "
    return "How a head divides its attention within the query moves, not the mass before it. "


def _rows(run: Run, site: str, rows: Sequence[Row]) -> pd.DataFrame:
    """The table's rows of these moves at one site."""
    import pandas as pd

    found = [run.rows(row.measure, site, pair) for row in rows for pair, _ in row.panels]
    return pd.concat([part for part in found if len(part)] or found[:1])


Placed = list[tuple[Row, list[Grid], str]]
"""Rows of panels, each with its grids and the units that its scale names."""


def _placed(
    run: Run, frame: pd.DataFrame, columns: pd.Series, across: int, rows: Sequence[Row]
) -> Placed:
    shape = (run.n_layers, across)
    found: Placed = []
    for row in rows:
        own = frame[frame["measure"] == row.measure]
        parts = [own[(own["condition"] == s) & (own["reference"] == t)] for (s, t), _ in row.panels]
        if all(part["value"].isna().all() for part in parts):
            continue
        panels = [
            Grid.of(pair, part, columns[part.index], shape)
            for (pair, _), part in zip(row.panels, parts, strict=True)
        ]
        found.append((row, panels, title(row.measure, own)))
    if not found:
        raise NotMeasured("this run's interchange has no defined value here")
    return found


def _board(
    run: Run, placed: Placed, columns: tuple[str, str, dict[str, Any]], *, title: str, note: str
) -> go.Figure:
    column, x_title, ticks = columns
    depth = run.n_layers
    plot = len(placed) * min(720 // len(placed), max(150, 17 * depth)) + (len(placed) - 1) * _GAP
    figure = make_subplots(
        len(placed),
        2,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=_GAP / plot if len(placed) > 1 else 0,
        subplot_titles=[heading for row, _, _ in placed for _, heading in row.panels],
    )
    figure.update_annotations(font={"size": 13})
    last = int(ticks["tickvals"][-1]) if column == "position" else None
    for number, measure in enumerate(dict.fromkeys(row.measure for row, _, _ in placed), 1):
        _one_scale(
            figure, placed, measure, f"coloraxis{number if number > 1 else ''}", column, last
        )
    holes = any(grid.holes.any() for _, panels, _ in placed for grid in panels)
    if holes:
        figure.add_trace(grids.key())
    figure.update_xaxes(style.axis(None, **ticks), showgrid=False)
    figure.update_xaxes(title_text=x_title, row=len(placed))
    figure.update_yaxes(style.axis(None, **style.integer_ticks(depth)), showgrid=False)
    figure.update_yaxes(title_text="layer (from 0)", col=1)
    return style.finish(
        figure,
        run,
        title=title,
        pairs=[p for p in (run.headline,) if p],
        note=f"{note}. One colour scale per measure; damage: logarithmic colours, linear below a "
        "hundredth of the largest",
        plot=plot,
        legend=holes,
        right=96,
    )


def _one_scale(
    figure: go.Figure, placed: Placed, measure: str, axis: str, column: str, last: int | None
) -> None:
    """All panels of one measure and their colour bar."""
    at = [i for i, (row, _, _) in enumerate(placed, 1) if row.measure == measure]
    values = [grid.cells["value"] for i in at for grid in placed[i - 1][1]]
    scale = Symlog.of(values, 2) if measure == "damage" else None
    for i in at:
        site = {"measure": measure, "queries": "matched"}
        for across, grid in enumerate(placed[i - 1][1], 1):
            trace = grids.cells(grid, site, column, last)
            if scale is not None:
                trace = grids.recoloured(trace, scale, "symlog_value")
            trace.coloraxis = axis
            figure.add_trace(trace, row=i, col=across)
            if grid.holes.any():
                figure.add_trace(grids.undefined(grid, site, column, last), row=i, col=across)
    low, high, colours = style.colour_range(values, measure)
    looks: dict[str, Any] = {"cmin": low, "cmax": high}
    bar: dict[str, Any] = {}
    if scale is not None:
        looks = {"cmin": float(scale(low)), "cmax": float(scale(high))}
        bar = scale.ticks(low, high)
    figure.layout[axis] = {
        **looks,
        "colorscale": colours,
        "colorbar": bar | _bar(figure, placed, at),
    }


def _bar(figure: go.Figure, placed: Placed, at: Sequence[int]) -> dict[str, Any]:
    """As high as the rows it belongs to."""
    bottom = next(figure.select_yaxes(row=at[-1], col=1)).domain[0]
    top = next(figure.select_yaxes(row=at[0], col=1)).domain[1]
    words = {"text": label(placed[at[0] - 1][2]), "side": "right", "font": {"size": 12}}
    place = {"x": 1.01, "y": bottom, "yanchor": "bottom", "len": top - bottom, "ypad": 0}
    return {"title": words, "thickness": 14, "outlinewidth": 0, **place}
