"""What a head's change from base is made of, for both sides: its output's, and its scores'.

    head_changes(run).show()
    score_changes(run).show()

The shares of a head sum to one; with cancellation some are above one and some below zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import Pair, pair_name
from interp.plots import grids, style
from interp.plots.grids import Grid
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.showing import number

if TYPE_CHECKING:
    import pandas as pd


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
    on one scale. Raises `NotMeasured` when the run has no change decomposition."""
    return _drawn(run, _OUTPUT, position, queries)


def score_changes(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """The same of the scores' change. Raises `NotMeasured` without `--score-split`."""
    return _drawn(run, _SCORES, position, queries)


def _drawn(run: Run, split: Split, position: str, queries: str) -> go.Figure:
    terms = split.terms
    pairs = [p for p in run.main_pairs if p[1] == run.base]
    frames = {
        (pair, term): _rows(run, term, split.site, pair, position, queries)
        for pair in pairs
        for term in terms
    }
    shown = [p for p in pairs if any(len(frames[p, t]) for t in terms)][:2]
    if not shown:
        raise NotMeasured(f"this run has no {split.check.replace('_', ' ')} at position {position}")
    model = run.manifest["model"]
    shape = (int(model["n_layers"]), int(model["n_heads"]))
    figure = make_subplots(
        len(shown),
        len(terms),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.02,
        vertical_spacing=0.08,
        column_titles=[MEASURES[t].title for t in terms],
        row_titles=[label(pair_name(p)) for p in shown],
    )
    figure.update_annotations(font={"size": 13})
    figure.for_each_annotation(lambda a: a.update(font={"size": 11}), {"textangle": 90})
    panels = []
    for row, pair in enumerate(shown, 1):
        for column, term in enumerate(terms, 1):
            frame = frames[pair, term]
            grid = Grid.of(pair, frame, frame["head"], shape)
            panels.append(grid)
            fixed = {"measure": term, "site": split.site, "position": position, "queries": queries}
            figure.add_trace(grids.cells(grid, fixed, "head"), row=row, col=column)
            if grid.holes.any():
                figure.add_trace(grids.undefined(grid, fixed, "head"), row=row, col=column)
    cut = _scale(figure, panels)
    figure.update_xaxes(style.axis(None, **style.integer_ticks(shape[1], 8)), showgrid=False)
    figure.update_yaxes(style.axis(None, **style.integer_ticks(shape[0], 8)), showgrid=False)
    figure.update_xaxes(title_text="head (from 0)", row=len(shown))
    figure.update_yaxes(title_text="layer", col=1)
    if any(g.holes.any() for g in panels):
        figure.add_trace(grids.key())
    return style.finish(
        figure,
        run,
        title=split.title,
        pairs=shown,
        queries=queries,
        note=_note(run, split, cut, position),
        plot=len(shown) * min(330, max(130, 16 * shape[0])),
        legend=any(g.holes.any() for g in panels),
        right=104,
    )


def _rows(run: Run, term: str, site: str, pair: Pair, position: str, queries: str) -> pd.DataFrame:
    frame = run.rows(term, site, pair, position, queries)
    return frame[frame["head"].notna()]


def _scale(figure: go.Figure, panels: list[Grid]) -> float | None:
    """One scale centred at zero, at least -1 to 1; its end where it leaves out the largest."""
    flat = np.abs(np.concatenate([g.cells["value"].ravel() for g in panels]))
    flat = flat[np.isfinite(flat)]
    largest = float(flat.max()) if flat.size else 1.0
    top = max(1.0, float(np.quantile(flat, 0.95)) if flat.size else 1.0)
    title = {"text": "share of the change", "side": "right", "font": {"size": 12}}
    bar = {"title": title, "thickness": 14, "outlinewidth": 0, "x": 1.05}
    figure.update_layout(
        coloraxis={"cmin": -top, "cmax": top, "colorscale": style.DIVERGING, "colorbar": bar}
    )
    return top if largest > top else None


def _note(run: Run, split: Split, cut: float | None, position: str) -> str:
    checks = run.manifest.get("checks") or {}
    closing = checks.get(split.check)
    parts = [
        split.words
        + (f" (largest closing error {number(closing, 2)})" if closing is not None else ""),
        f"Shares beyond {number(cut)} have the colour of the scale's end" if cut else "",
        "One colour scale for all panels",
        f"Position: {position}",
    ]
    return ". ".join(part for part in parts if part)
