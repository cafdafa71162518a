"""Between families over within them: by layer, and head by head.

    divergence(run).show()
    head_divergence(run, "z").show()

An index of 1 says: no further apart between the families than within. Both raise `NotMeasured`
where the run has none of their rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import lines, style
from interp.plots.board import BAR, Board
from interp.plots.by_layer import SITE_COLUMNS
from interp.plots.lines import LinePanel, Look, draw_rows, measured
from interp.plots.maps import Grid, MapPanel, draw_maps, map_height
from interp.plots.scales import ColourScale
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run, of_pair
from interp.runs.words import SITES
from interp.significance import ALPHA

if TYPE_CHECKING:
    import pandas as pd

DIVERGENCE = "divergence_index"
_WORDS = (
    "1: no further apart between families than within. p: labels of the conditions permuted, "
    "corrected over the map"
)


def divergence(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """Between families over within them, one line per pair of families, one column per site; 1: no
    further apart between the families than within."""
    palette = style.family_pair_looks(run)
    symbols = ("circle", "square", "diamond", "triangle-up", "star")
    looks = {
        pair: Look(pair_words(pair), colour, symbol=symbols[at % len(symbols)])
        for at, (pair, colour) in enumerate(palette.items())
    }
    panels = []
    for site in SITE_COLUMNS:
        found = (
            (look, run.by_layer(DIVERGENCE, site, pair, position, queries))
            for pair, look in looks.items()
        )
        drawn = [(look, frame) for look, frame in found if len(frame)]
        panels.append(LinePanel(drawn, [], f"{SITES[site]} ({site})"))
    panels = measured(panels, f"{DIVERGENCE} by layer at position {position}")
    look, unit = _around_one([frame for panel in panels for frame in panel.frames])
    panels = [replace(panel, limits=look, unit=unit) for panel in panels]
    board = Board(left=72)
    for panel in draw_rows(board, [panels], style.layer_axis(run), 300)[0]:
        panel.level(1, color=style.INK, width=1.2, dash="dash")
    return board.finish(
        run,
        f"Divergence index of families by layer, {lines.where(position)}",
        notes=[
            _WORDS,
            f"Filled: p ≤ {ALPHA:g}, open: above. Bands: intervals over queries, for these members",
            f"Families: {sizes(run)}. Position: {position}",
        ],
        queries=queries,
    )


def _around_one(frames: list[pd.DataFrame]) -> tuple[dict[str, Any], str]:
    """The y axis, logarithmic where the largest index is many times 1, and its title."""
    top = max(np.nanmax(f[["value", "ci_high"]].to_numpy(float)) for f in frames)
    low = min(np.nanmin(f[["value", "ci_low"]].to_numpy(float)) for f in frames)
    if top <= 8 or low <= 0:
        return {"range": [0, 1.08 * max(top, 1.2)]}, "between / within"
    ends = [np.log10(min(low, 0.8)) - 0.05, np.log10(top) + 0.08]
    return {"type": "log", "dtick": "D2", "range": ends}, "between / within (log scale)"


def pair_words(pair: Pair) -> str:
    """Two families, in words."""
    return f"{pair[0]} – {pair[1]}"


def sizes(run: Run) -> str:
    """The families and how many members each has."""
    return ", ".join(f"{f} ({len(m)})" for f, m in run.families.items())


def head_divergence(
    run: Run, site: str = "z", position: str = "last", queries: str = "matched", most: int = 3
) -> go.Figure:
    """Layer by head, pairs of families side by side, centred at 1 on a log scale.

    A dot marks cells whose corrected p is at most 0.05.
    """
    frame = run.rows(DIVERGENCE, site, position=position, queries=queries, heads=True)
    parts = [(pair, of_pair(frame, pair)) for pair in run.family_pairs]
    parts = [(pair, part) for pair, part in parts if len(part)]
    if not parts:
        raise NotMeasured(f"this run has no {DIVERGENCE} by head at {site}, {position}")
    fixed = {"measure": DIVERGENCE, "site": site, "position": position, "queries": queries}
    shape = (run.n_layers, run.n_heads)
    panels = [
        MapPanel(
            Grid.of(pair, part, part["head"], shape), label(pair_words(pair)), fixed, dotted=True
        )
        for pair, part in parts[:most]
    ]
    words = f"{MEASURES[DIVERGENCE].title} (log scale)"
    scale = ColourScale.ratio([panel.grid.values for panel in panels], words)
    board = Board(right=BAR)
    x = style.axis("head (from 0)", **style.integer_ticks(shape[1]))
    height = map_height(run)
    draw_maps(board, [panels], scale, x, style.layer_axis(run, most=16), height, "head")
    more = f"{len(parts) - most} further pairs are in the table. " if len(parts) > most else ""
    return board.finish(
        run,
        f"Divergence index of families at {SITES[site]} ({site}), layer by head",
        notes=[
            f"{_WORDS}; a dot: p ≤ {ALPHA:g}",
            f"Families: {sizes(run)}. {more}Position: {position}",
        ],
        queries=queries,
    )
