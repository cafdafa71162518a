"""The shape of many queries' states by layer: similarity beside chance, and dimension.

    similarity(run).show()
    dimensions(run).show()

Chance: the same measure with the pairing of queries (or the coordinates) permuted. Both raise
`NotMeasured` where the run has none of their rows.
"""

from __future__ import annotations

from dataclasses import replace

import plotly.graph_objects as go

from interp.plots import lines, style
from interp.plots.bands import band_words, envelope
from interp.plots.board import Board
from interp.plots.lines import LinePanel, draw_rows, measured
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.view import Run
from interp.runs.words import units
from interp.significance import ALPHA

SIMILARITIES = ("linear_cka", "procrustes_distance", "mutual_knn", "probe_transfer")
DIMENSIONS = ("intrinsic_dimension", "gride_2", "gride_4", "gride_8")
_RESID = "resid_post"


def similarity(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """Similarity of the point clouds of two conditions beside chance, a column per measure."""
    pairs = run.main_pairs
    panels = [lines.compared(run, m, _RESID, pairs, position, queries) for m in SIMILARITIES]
    title = "Similarity of the queries' states between conditions, by layer"
    return _shapes(run, panels, "similarity", title, position, queries)


def dimensions(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """Intrinsic dimension of the headline's two, base and the null's control, by scale."""
    conditions = run.main_conditions
    panels = [
        lines.each_condition(run, m, _RESID, conditions, position, queries) for m in DIMENSIONS
    ]
    title = "Intrinsic dimension of the queries' states, by layer"
    return _shapes(run, panels, "intrinsic dimension", title, position, queries)


def _shapes(
    run: Run, panels: list[LinePanel], what: str, title: str, position: str, queries: str
) -> go.Figure:
    """Similarities have an axis each, dimensions one; chance is the same measure with the pairing
    of queries (or the coordinates) permuted."""
    kept = measured(panels, f"{what} at position {position}")
    own_axis = what == "similarity"
    unit = units(kept[0].frames[0]).strip(" []")
    words = "" if own_axis else f"{what} [{unit}]" if unit else what
    kept = [replace(_with_chance(run, panel, position, queries), unit=words) for panel in kept]
    board = Board()
    gap = 50 if own_axis else 24
    draw_rows(board, [kept], style.layer_axis(run), 270, shared=not own_axis, gap=gap)
    drawn = {pair for panel in kept for pair in panel.pairs}
    tested = lines.tested([frame for panel in kept for frame in panel.frames])
    return board.finish(
        run,
        title,
        pairs=[pair for pair in run.main_pairs if pair in drawn],
        notes=[
            "Blue hatching: chance, the central 95 % over permutations",
            band_words(run, [band for panel in kept for band in panel.bands]),
            f"Open markers: p > {ALPHA:g} (permutation, corrected over layers)" if tested else "",
            _sample(run),
            f"Residual stream, position: {position}",
        ],
        queries=queries,
    )


def _with_chance(run: Run, panel: LinePanel, position: str, queries: str) -> LinePanel:
    """The central 95 % of the permutations, over the pairs (or conditions) drawn as lines."""
    measure = str(panel.frames[0]["measure"].iloc[0])
    pairs = [pair for pair in panel.pairs if pair == run.headline] or panel.pairs
    names = ("chance", "chance")
    name = f"{measure}_chance"
    band = envelope(run, names, pairs, name, _RESID, position, queries, intervals=True)
    bands = [*panel.bands, *([band] if band else [])]
    return replace(panel, bands=bands, heading=label(MEASURES[measure].title))


def _sample(run: Run) -> str:
    """On how many queries this rests."""
    states = run.arrays.get("states_resid_post")
    if states is None or "query" not in states.dims:
        return ""
    return f"On a sample of {states.sizes['query']} queries"
