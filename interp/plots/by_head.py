"""Measures head by head and token by token: maps of what is compared, side by side on one scale.

    head_map(run, "content_js").show()
    layer_position(run, "relative_l2", "resid_post").show()
    head_changes(run).show()                # what a head's change from base is made of

All raise `NotMeasured` where the run has none of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair, pair_name
from interp.plots import style
from interp.plots.board import BAR, Board
from interp.plots.maps import (
    Grid,
    MapPanel,
    dot_words,
    draw_maps,
    map_height,
    position_columns,
    single_tokens,
)
from interp.plots.scales import ColourScale, finite
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.terms import influence_pairs
from interp.runs.view import NotMeasured, Run, of_pair
from interp.runs.words import title
from interp.selection import known_measure
from interp.showing import number

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

    `pairs`: these instead, as far as the run has them. A dot marks cells whose
    corrected p is at most 0.05.
    """
    site = site or known_measure(measure).head
    frame = run.rows(measure, site, position=position, queries=queries, heads=True)
    if frame.empty:
        raise NotMeasured(f"this run has no {measure} by head at {site}, position {position}")
    parts = [(p, part) for p in pairs or run.compared(frame) if len(part := of_pair(frame, p))]
    if not parts:
        raise NotMeasured(f"this run has no {measure} of the pairs asked for")
    where = f" of head outputs ({site})" if site == "z" else ""
    return _side_by_side(
        run,
        [Grid.of(p, part, part["head"], (run.n_layers, run.n_heads)) for p, part in parts],
        frame,
        f"{MEASURES[measure].title}{where}, layer by head",
        ("head", style.axis("head (from 0)", **style.integer_ticks(run.n_heads))),
        position,
        queries,
    )


def layer_position(
    run: Run, measure: str = "relative_l2", site: str = "resid_post", queries: str = "matched"
) -> go.Figure:
    """Layer x query position; the last token, wherever it falls, is a column of its own."""
    known_measure(measure)
    frame = single_tokens(run.rows(measure, site, queries=queries, heads=False))
    frame = frame[frame["layer"].notna()]
    if frame.empty:
        raise NotMeasured(f"this run has no {measure} by layer and position at {site}")
    columns, ticks = position_columns(frame)
    parts = [(pair, of_pair(frame, pair)) for pair in run.compared(frame)]
    shape = (run.n_layers, ticks["tickvals"][-1] + 1)
    return _side_by_side(
        run,
        [Grid.of(pair, part, columns[part.index], shape) for pair, part in parts],
        frame,
        f"{MEASURES[measure].title} of {site}, layer by query position",
        ("position", style.axis("query position (from 0)", **ticks)),
        "each, and last",
        queries,
    )


def _side_by_side(
    run: Run,
    grids: Sequence[Grid],
    frame: pd.DataFrame,
    words: str,
    columns: tuple[str, dict[str, Any]],
    position: str,
    queries: str,
) -> go.Figure:
    """Grids of one measure in a row, each with its pair's role above it."""
    across, x = columns
    last = {x["tickvals"][-1]: "last"} if across == "position" else {}
    fixed = {name: frame.iloc[0][name] for name in ("measure", "site", "queries")}
    panels = [
        MapPanel(grid, label(run.role(grid.pair)), fixed, dotted=True, columns=last)
        for grid in grids
    ]
    measure = str(fixed["measure"])
    scale = ColourScale.linear([g.values for g in grids], measure, title(measure, frame))
    board = Board(right=BAR)
    height = map_height(run)
    draw_maps(board, [panels], scale, x, style.layer_axis(run, most=16), height, across)
    return board.finish(
        run,
        words[0].upper() + words[1:],
        pairs=[grid.pair for grid in grids],
        notes=[
            dot_words(grids),
            f"One colour scale for all panels. Position: {position}",
        ],
        queries=queries,
    )


def influence_heads(run: Run, queries: str = "matched") -> go.Figure:
    """Layer x head: the headline's difference beside both sides against base, centred at zero."""
    pair, *sides = reversed(influence_pairs(run))
    return head_map(run, "influence", "last", queries, pairs=[pair, *reversed(sides)])


# --- what a head's change is made of -------------------------------------------------------------


class Split(NamedTuple):
    """What is split: the site and the name of its closing check, the terms, and their words."""

    site: str
    check: str
    terms: tuple[str, ...]
    title: str
    words: str


_OUTPUT = Split(
    "z",
    "change_decomposition",
    ("change_pattern", "change_value", "change_prefix", "change_input"),
    "What each head's change from base is made of, layer by head",
    "Shares of a head's output change that come from its content pattern, its values, the prefix's "
    "mass and values (all at base's inputs), and its inputs; the four sum to 1",
)
_SCORES = Split(
    "attn_scores",
    "score_split",
    ("score_query", "score_key", "score_weights", "score_interaction"),
    "What the change of each head's scores from base is made of, layer by head",
    "Shares of the change of a head's pre-softmax scores over the query's own keys: what the "
    "queries' inputs, the keys' inputs and the weights do, averaged over all orders (Shapley); the "
    "three sum to 1. Only together: what none does alone, contained in the three in equal parts",
)


def head_changes(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """The output's change: layer x head, one row per side of the headline and one column per term,
    on one scale. The shares of a head sum to one; with cancellation some are above one and some
    below zero."""
    return _split(run, _OUTPUT, position, queries)


def score_changes(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """The same of the scores' change; `NotMeasured` without `--score-split`."""
    return _split(run, _SCORES, position, queries)


def _split(run: Run, split: Split, position: str, queries: str) -> go.Figure:
    sides = [pair for pair in run.main_pairs if pair[1] == run.base]
    shape = (run.n_layers, run.n_heads)
    rows: dict[Pair, list[MapPanel]] = {}
    for pair in sides:
        frames = [
            run.rows(term, split.site, pair, position, queries, heads=True) for term in split.terms
        ]
        if any(map(len, frames)):
            rows[pair] = [
                MapPanel(
                    Grid.of(pair, frame, frame["head"], shape),
                    label(MEASURES[term].title),
                    {"measure": term, "site": split.site, "position": position, "queries": queries},
                )
                for term, frame in zip(split.terms, frames, strict=True)
            ]
    shown = list(rows)[:2]
    if not shown:
        raise NotMeasured(f"this run has no {split.check.replace('_', ' ')} at position {position}")
    scale, cut = _shares([panel.grid.values for pair in shown for panel in rows[pair]])
    board = Board(right=BAR)
    x = style.axis("head (from 0)", **style.integer_ticks(shape[1], 8))
    y = style.layer_axis(run, "layer", 8)
    height = min(330, max(115, 16 * shape[0]))
    drawn = draw_maps(board, [rows[p] for p in shown], scale, x, y, height, "head", gap=20)
    for pair, panels in zip(shown, drawn, strict=True):
        panels[0].y["title"] = style.axis(f"{pair_name(pair)[:24]}: layer")["title"]
    closing = (run.manifest.get("checks") or {}).get(split.check)
    error = f" (largest closing error {number(closing, 2)})" if closing is not None else ""
    return board.finish(
        run,
        split.title,
        pairs=shown,
        notes=[
            split.words + error,
            f"Shares beyond {number(cut)} have the colour of the scale's end" if cut else "",
            f"One colour scale for all panels. Position: {position}",
        ],
        queries=queries,
    )


def _shares(values: Sequence[np.ndarray]) -> tuple[ColourScale, float | None]:
    """One scale centred at zero, at least -1 to 1; its end where it leaves out the largest."""
    flat = np.abs(finite(values))
    largest = float(flat.max()) if flat.size else 1.0
    top = max(1.0, float(np.quantile(flat, 0.95)) if flat.size else 1.0)
    scale = ColourScale((-top, top), style.DIVERGING, "share of the change")
    return scale, top if largest > top else None
