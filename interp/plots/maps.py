"""Maps: layer x head and layer x query position, what is compared side by side on one scale.

    head_map(run, "content_js").show()
    layer_position(run, "relative_l2", "resid_post").show()

Sequential colours from zero, diverging ones centred at zero, grey where a value is undefined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import Pair
from interp.plots import style
from interp.plots.grids import Grid, cells, dots, key, undefined
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.words import units

if TYPE_CHECKING:
    import pandas as pd


def head_map(
    run: Run,
    measure: str = "content_js",
    position: str = "last",
    queries: str = "matched",
    site: str | None = None,
    pairs: Sequence[Pair] = (),
) -> go.Figure:
    """Layer x head: the headline pair beside its null, or the conditions side by side.

    `pairs`: these instead, as far as the run has them. A dot marks cells that were tested and
    whose corrected p is above 0.05.
    """
    site = site or MEASURES[measure].head
    frame = run.rows(measure, site, position=position, queries=queries)
    frame = frame[frame["head"].notna()]
    usual = _pairs(frame, run, f"{measure} by head at {site}, position {position}")
    model = run.manifest["model"]
    shape = (int(model["n_layers"]), int(model["n_heads"]))
    parts = [(p, part) for p, part in _parts(frame, pairs or usual) if len(part)]
    grids = [Grid.of(p, part, part["head"], shape) for p, part in parts]
    if not grids:
        raise NotMeasured(f"this run has no {measure} of the pairs asked for")
    ticks = style.integer_ticks(shape[1])
    figure = _panels(run, measure, grids, "head", "head (from 0)", ticks, frame)
    name = MEASURES[measure].title
    where = f" of head outputs ({site})" if site == "z" else ""
    return _finished(figure, run, grids, f"{name}{where}, layer by head", position, queries)


def layer_position(
    run: Run, measure: str = "relative_l2", site: str = "resid_post", queries: str = "matched"
) -> go.Figure:
    """Layer x query position; the last token, wherever it falls, is a column of its own."""
    frame = run.rows(measure, site, queries=queries)
    frame = single_tokens(frame)
    frame = frame[frame["head"].isna() & frame["layer"].notna()]
    pairs = _pairs(frame, run, f"{measure} by layer and position at {site}")
    columns, ticks = position_columns(frame)
    shape = (run.n_layers, ticks["tickvals"][-1] + 1)
    grids = [Grid.of(p, part, columns[part.index], shape) for p, part in _parts(frame, pairs)]
    figure = _panels(run, measure, grids, "position", "query position (from 0)", ticks, frame)
    title = f"{MEASURES[measure].title} of {site}, layer by query position"
    return _finished(figure, run, grids, title, "each, and last", queries)


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
    return columns, _position_ticks(length, last)


def _position_ticks(length: int, last: int) -> dict[str, Any]:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if length / s <= 10)
    at = [p for p in range(0, length, step) if last - p > 2 * step or step == 1]
    return {
        "tickmode": "array",
        "tickvals": [*at, last],
        "ticktext": [*map(str, at), "last"],
        "range": [-0.5, last + 0.5],
    }


def _pairs(frame: pd.DataFrame, run: Run, what: str) -> list[Pair]:
    if frame.empty:
        raise NotMeasured(f"this run has no {what}")
    return run.compared(frame)


def _parts(frame: pd.DataFrame, pairs: Sequence[Pair]) -> list[tuple[Pair, pd.DataFrame]]:
    parts = []
    for condition, reference in pairs:
        given = frame["reference"]
        same = given.isna() if reference is None else given == reference
        parts.append(((condition, reference), frame[(frame["condition"] == condition) & same]))
    return parts


def _panels(
    run: Run,
    measure: str,
    grids: Sequence[Grid],
    column: str,
    x_title: str,
    ticks: dict[str, Any],
    frame: pd.DataFrame,
) -> go.Figure:
    figure = make_subplots(
        1,
        len(grids),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[label(run.role(g.pair)) for g in grids],
    )
    figure.update_annotations(font={"size": 13})
    last = int(ticks["tickvals"][-1]) if column == "position" else None
    fixed = {k: frame.iloc[0][k] for k in ("measure", "site", "queries")}
    for at, grid in enumerate(grids, 1):
        figure.add_trace(cells(grid, fixed, column, last), row=1, col=at)
        if grid.holes.any():
            figure.add_trace(undefined(grid, fixed, column, last), row=1, col=at)
        if _tested(grid):
            figure.add_trace(dots(grid), row=1, col=at)
    low, high, scale = style.colour_range([g.cells["value"] for g in grids], measure)
    bar_title = label(MEASURES[measure].title + units(frame))
    bar = {
        "title": {"text": bar_title, "side": "right", "font": {"size": 12}},
        "thickness": 14,
        "outlinewidth": 0,
    }
    figure.update_layout(
        coloraxis={"cmin": low, "cmax": high, "colorscale": scale, "colorbar": bar | {"x": 1.01}}
    )
    figure.update_xaxes(style.axis(x_title, **ticks), showgrid=False)
    depth = run.n_layers
    figure.update_yaxes(style.axis(None, **style.integer_ticks(depth)), showgrid=False)
    figure.update_yaxes(title_text="layer (from 0)", col=1)
    if any(g.holes.any() for g in grids):
        figure.add_trace(key())
    return figure


def _tested(grid: Grid) -> bool:
    return bool(np.isfinite(grid.cells["p_adjusted"]).any())


def _finished(
    figure: go.Figure, run: Run, grids: Sequence[Grid], title: str, position: str, queries: str
) -> go.Figure:
    holes = any(g.holes.any() for g in grids)
    depth = grids[0].measured.shape[0]
    tested = "Dots: p > 0.05 against the pair's control, corrected over the map. "
    return style.finish(
        figure,
        run,
        title=title[0].upper() + title[1:],
        pairs=[g.pair for g in grids],
        queries=queries,
        note=(tested if any(map(_tested, grids)) else "")
        + f"One colour scale for all panels. Position: {position}",
        plot=min(560, max(190, 18 * depth)),
        legend=holes,
        right=96,
    )
