"""A prompt as an update of the weights, by layer: are its updates one, and are they the LoRA's?

    implicit(run).show()

A line per prompt (controls among them), mean over the projections of a block; the bands are what
chance gives for the first: random directions, and queries that have each other's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.plots import lines, style
from interp.plots.board import Board, LineEnd, names_room
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.view import Run
from interp.runs.weights import PROMPT_NULLS, Prompts, implicit_by_layer, prompts

if TYPE_CHECKING:
    import pandas as pd

_ROWS = (
    ("implicit_rank", "implicit_cosine"),
    ("implicit_overlap_right", "implicit_overlap_left"),
)
"""Are the updates one, and are they the adapter's? Names of lines stand beside the second panel."""

_NULLS = {
    "shuffled": ("another query's input", "#E69F00", 0.30),
    "random": ("random, same weights", "#56B4E9", 0.25),
    "chance": ("random directions", "#6E6E6E", 0.20),
}
"""Null -> its name, its colour, and how much of it its band has."""

_Curves = Mapping[str, "pd.DataFrame"]
"""Prompt (or null of the first one) -> its rows by layer."""


def implicit(run: Run) -> go.Figure:
    """Cosine and effective rank; below, overlaps, on one scale. Raises `NotMeasured` without."""
    of = prompts(run)
    rows = [row for row in _ROWS if of.adapter or "overlap" not in row[0]]
    found = {measure: _curves(run, of, measure) for measure in chain(*rows)}
    ends = {row: _ends(run, of, found[row[-1]]) for row in rows}
    board = Board(left=72, right=names_room(chain(*ends.values())))
    x = style.layer_axis(run, most=10, close=True)
    for at, row in enumerate(rows):
        shared = "overlap" in row[0]
        headings = [label(MEASURES[measure].title) for measure in row]
        gap, above = 24 if shared else 48, 40 * bool(at)
        y = style.axis(None, range=_range([found[measure] for measure in row]))
        panels = board.row(headings, 220, x, y, gap=gap, shared=shared, above=above)
        for measure, panel in zip(row, panels, strict=True):
            panel.y |= {} if shared else {"range": _range([found[measure]])}
            for name, curve in found[measure].items():
                draw = _band if name in _NULLS else _line
                panel.draw([draw(run, of, measure, name, curve)])
        panels[-1].name(ends[row])
    worst = max(run.manifest["weights"]["identity"].values())
    return board.finish(
        run,
        _title(run, of, found),
        notes=[
            "ΔW = W(u − u₀)u₀ᵀ/‖u₀‖² of every query's last token, mean over the projections that "
            "read an MLP's input; the blocks so updated miss those with the prompt by at most "
            f"{worst:.0e}",
            f"Overlap: with {of.adapter}'s update of the same module. What is read is base's own "
            "input, which no prompt changes"
            if of.adapter
            else "",
            "Bars: jackknife over queries (the bootstrap is the run's), of the first prompt and of "
            f"its null control; bands: middle 95 % of chance for {of.names[0]}",
        ],
    )


def _title(run: Run, of: Prompts, found: Mapping[str, _Curves]) -> str:
    """Into how many directions the first prompt's updates go, and whether they are the LoRA's more
    than those of neutral text are."""
    first, null = of.names[0], str(run.null_control)
    own = found["implicit_rank"][first]
    said = f"As updates of the weights, {first} takes {lines.span(own)} directions over its queries"
    if not of.adapter:
        return said
    overlaps = found["implicit_overlap_left"]
    beside = ""
    if null in overlaps:
        beside = f" is {lines.lies_beside(overlaps[first], overlaps[null], null)}"
    return f"{said}; overlap with what {of.adapter} writes ({lines.span(overlaps[first])}){beside}"


def _curves(run: Run, of: Prompts, measure: str) -> _Curves:
    """Bands first, then prompts, that of the headline last, on top."""
    nulls = {null: (f"{measure}_{null}", of.names[0]) for null in PROMPT_NULLS[measure]}
    every = nulls | {name: (measure, name) for name in reversed(of.names)}
    return {name: implicit_by_layer(run, *key, of.adapter) for name, key in every.items()}


def _range(curves: list[_Curves]) -> list[float]:
    """From zero, or what is below it, to the largest number drawn."""
    ends = [
        rows[["value", "ci_low", "ci_high"]].to_numpy() for own in curves for rows in own.values()
    ]
    flat = np.concatenate([part.ravel() for part in ends])
    room = 0.05 * float(np.nanmax(flat))
    low = float(np.nanmin(flat))
    return [low - room if low < 0 else 0.0, float(np.nanmax(flat)) + room]


def _ends(run: Run, of: Prompts, curves: _Curves) -> list[LineEnd]:
    """Names of bands and lines, where they end."""
    found = []
    for name, rows in curves.items():
        if name in _NULLS:
            words, colour, _ = _NULLS[name]
            middle = float(rows[["ci_low", "ci_high"]].iloc[-1].mean())
            found.append(LineEnd(middle, words, colour, words, quiet=True))
        else:
            value, (colour, _) = float(rows["value"].iloc[-1]), style.condition_look(run, name)
            found.append(
                LineEnd(
                    value, name, colour, label(name), name == of.names[0], not _leads(run, of, name)
                )
            )
    return found


def _leads(run: Run, of: Prompts, name: str) -> bool:
    """Whether it is the first prompt or its null control; all others are thin."""
    return name in (of.names[0], run.null_control)


def _band(run: Run, of: Prompts, measure: str, null: str, rows: pd.DataFrame) -> go.Scatter:
    name, colour, share = _NULLS[null]
    layers = rows["layer"].to_numpy()
    return go.Scatter(
        x=np.concatenate([layers, layers[::-1]]),
        y=np.concatenate([rows["ci_high"], rows["ci_low"][::-1]]),
        fill="toself",
        fillcolor=style.faded(colour, share),
        line={"width": 1, "color": style.faded(colour, share)},
        mode="lines",
        hoverinfo="skip",
        name=label(name),
        legendgroup=name,
        meta={"fixed": {"measure": f"{measure}_{null}"}, "x": "layer", "y": "end"},
    )


def _line(run: Run, of: Prompts, measure: str, name: str, rows: pd.DataFrame) -> go.Scatter:
    colour, dash = style.condition_look(run, name)
    value, low, high = (rows[c].to_numpy() for c in ("value", "ci_low", "ci_high"))
    leads = _leads(run, of, name)
    bars = style.whiskers(value, low, high, thickness=1.2, width=None, color=colour)
    return go.Scatter(
        x=rows["layer"].to_numpy(dtype=int),
        y=value,
        error_y={**bars, "visible": leads},
        customdata=np.stack([low, high], axis=1),
        hovertemplate=f"<b>{label(name)}</b>, layer %{{x}}: %{{y:.3g}}<br>interval "
        "%{customdata[0]:.3g} to %{customdata[1]:.3g}<extra></extra>",
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 2.4 if leads else 1},
        marker={"size": 7 if leads else 4, "color": colour},
        name=label(name),
        legendgroup=label(name),
        legendrank=1000 if leads else 2000,
        meta={
            "fixed": {"measure": measure, "condition": name},
            "x": "layer",
            "y": "value",
            "custom": ["ci_low", "ci_high"],
        },
    )
