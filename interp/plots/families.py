"""Between families over within them: by layer, and head by head.

    divergence(run).show()
    head_divergence(run, "z").show()

An index of 1 says: no further apart between the families than within. Torch-free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import Pair
from interp.plots import by_layer, grids, lines, style
from interp.plots.grids import Grid
from interp.plots.lines import Look
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.words import SITES
from interp.significance import ALPHA

if TYPE_CHECKING:
    import pandas as pd

MEASURE = "divergence_index"
_WORDS = (
    "1: no further apart between families than within. p: labels of the conditions permuted, "
    "corrected over the map"
)


def divergence(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """The index against depth, one line per pair of families, one column per site.

    Markers are filled where the corrected p is at most 0.05. Raises `NotMeasured` without families.
    """
    palette = style.family_pair_looks(run)
    found = {
        (site, pair): lines.layer_rows(run, MEASURE, site, pair, position, queries)
        for site in by_layer.SITE_COLUMNS
        for pair in palette
    }
    found = {key: frame for key, frame in found.items() if len(frame)}
    if not found:
        raise NotMeasured(f"this run has no {MEASURE} by layer at position {position}")
    sites = [s for s in by_layer.SITE_COLUMNS if any(s == site for site, _ in found)]
    figure = make_subplots(
        1,
        len(sites),
        shared_yaxes=True,
        horizontal_spacing=0.025,
        column_titles=[f"{SITES[s]} ({s})" for s in sites],
    )
    figure.update_annotations(font={"size": 13})
    symbols = ("circle", "square", "diamond", "triangle-up", "star")
    order = list(palette)
    for (site, pair), frame in found.items():
        look = Look(
            pair_words(pair), palette[pair], symbol=symbols[order.index(pair) % len(symbols)]
        )
        first = site == next(s for s, p in found if p == pair)
        for trace in lines.line(frame, look, first):
            figure.add_trace(trace, row=1, col=sites.index(site) + 1)
    _one(figure, list(found.values()), len(sites))
    by_layer.x_axes(figure, run, 1)
    note = (
        f"{_WORDS}. Filled: p ≤ {ALPHA:g}, open: above. Bands: intervals over queries, for these "
        f"members. Families: {sizes(run)}. Position: {position}"
    )
    return style.finish(
        figure,
        run,
        title="Divergence index of families by layer, " + by_layer.where(position),
        pairs=[],
        queries=queries,
        note=note,
        plot=300,
        legend=True,
        left=72,
    )


def pair_words(pair: Pair) -> str:
    """Two families, in words."""
    return f"{pair[0]} – {pair[1]}"


def sizes(run: Run) -> str:
    """The families and how many members each has."""
    return ", ".join(f"{f} ({len(m)})" for f, m in run.families.items())


def _one(figure: go.Figure, frames: list[pd.DataFrame], columns: int) -> None:
    """The y axis, logarithmic where the largest index is many times 1, and the line at 1."""
    top = max(np.nanmax(f[["value", "ci_high"]].to_numpy(float)) for f in frames)
    low = min(np.nanmin(f[["value", "ci_low"]].to_numpy(float)) for f in frames)
    log = top > 8 and low > 0
    figure.update_yaxes(style.axis(None))
    if log:
        ends = [np.log10(min(low, 0.8)) - 0.05, np.log10(top) + 0.08]
        figure.update_yaxes(type="log", dtick="D2", range=ends)
    else:
        figure.update_yaxes(range=[0, 1.08 * max(top, 1.2)])
    figure.update_yaxes(title_text="between / within" + (" (log scale)" if log else ""), col=1)
    for column in range(1, columns + 1):
        figure.add_hline(
            1, row=1, col=column, line={"color": style.INK, "width": 1.2, "dash": "dash"}
        )


def head_divergence(
    run: Run, site: str = "z", position: str = "last", queries: str = "matched", most: int = 3
) -> go.Figure:
    """Layer by head, pairs of families side by side, centred at 1 on a log scale.

    A dot marks cells whose corrected p is above 0.05.
    """
    frame = run.rows(MEASURE, site, position=position, queries=queries)
    frame = frame[frame["head"].notna()]
    model = run.manifest["model"]
    shape = (int(model["n_layers"]), int(model["n_heads"]))
    panels = []
    for a, b in run.family_pairs:
        part = frame[(frame["condition"] == a) & (frame["reference"] == b)]
        if len(part):
            panels.append(Grid.of((a, b), part, part["head"], shape))
    if not panels:
        raise NotMeasured(f"this run has no {MEASURE} by head at {site}, {position}")
    shown = panels[:most]
    figure = make_subplots(
        1,
        len(shown),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[label(pair_words((g.pair[0], str(g.pair[1])))) for g in shown],
    )
    figure.update_annotations(font={"size": 13})
    fixed = {"measure": MEASURE, "site": site, "position": position, "queries": queries}
    for column, grid in enumerate(shown, 1):
        figure.add_trace(_cells(grid, fixed), row=1, col=column)
        if grid.holes.any():
            figure.add_trace(grids.undefined(grid, fixed, "head"), row=1, col=column)
        figure.add_trace(grids.dots(grid), row=1, col=column)
    holes = any(grid.holes.any() for grid in shown)
    if holes:
        figure.add_trace(grids.key())
    _scale(figure, shown)
    figure.update_xaxes(style.axis("head (from 0)", **style.integer_ticks(shape[1])))
    figure.update_yaxes(style.axis(None, **style.integer_ticks(shape[0])))
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    figure.update_yaxes(title_text="layer (from 0)", col=1)
    more = f" {len(panels) - most} further pairs are in the table." if len(panels) > most else ""
    return style.finish(
        figure,
        run,
        title=f"Divergence index of families at {SITES[site]} ({site}), layer by head",
        pairs=[],
        queries=queries,
        note=f"{_WORDS}; a dot: p > {ALPHA:g}. Families: {sizes(run)}.{more} Position: {position}",
        plot=min(560, max(190, 18 * shape[0])),
        legend=holes,
        right=96,
    )


def _cells(grid: Grid, fixed: dict[str, str]) -> go.Heatmap:
    """Colour is log2 of the index; the numbers are the index."""
    trace = grids.cells(grid, fixed, "head")
    with np.errstate(divide="ignore"):
        return grids.recoloured(trace, np.log2, "log2_value")


def _scale(figure: go.Figure, panels: list[Grid]) -> None:
    with np.errstate(divide="ignore"):
        flat = np.abs(np.log2(np.concatenate([g.cells["value"].ravel() for g in panels])))
    flat = flat[np.isfinite(flat)]
    top = max(float(flat.max()) if flat.size else 1.0, 0.5)
    step = max(1, round(top / 4))
    ticks = [t for t in range(-12, 13, step) if abs(t) <= top] if top >= 1 else [-0.5, 0, 0.5]
    names = [f"{2.0**t:.3g}" for t in ticks]
    title = {
        "text": f"{MEASURES[MEASURE].title} (log scale)",
        "side": "right",
        "font": {"size": 12},
    }
    look = {"thickness": 14, "outlinewidth": 0, "x": 1.01, "tickvals": ticks, "ticktext": names}
    bar = {"title": title, **look}
    figure.update_layout(
        coloraxis={"cmin": -top, "cmax": top, "colorscale": style.DIVERGING, "colorbar": bar}
    )
