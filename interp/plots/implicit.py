"""A prompt as an update of the weights, by layer: are its updates one, and are they the LoRA's?

    implicit(run).show()

A line per prompt (controls among them), mean over the projections of a block; the bands are what
chance gives for the first: random directions, and queries that have each other's input.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.board import Board
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.view import Run
from interp.runs.weights import PROMPT_NULLS, Prompts, implicit_by_layer, prompts

_NULLS = {
    "shuffled": ("another query's input", "rgba(230,159,0,0.30)"),
    "random": ("random directions through the same weights", "rgba(86,180,233,0.25)"),
    "chance": ("random directions", "rgba(110,110,110,0.20)"),
}


def implicit(run: Run) -> go.Figure:
    """Effective rank, cosine, overlaps by layer. Raises `NotMeasured` without them."""
    of = prompts(run)
    measures = [m for m in PROMPT_NULLS if "overlap" not in m or of.adapter]
    board = Board()
    panels = board.row(
        [label(MEASURES[measure].title) for measure in measures],
        300,
        style.layer_axis(run, "layer", 8),
        style.axis(None, rangemode="tozero"),
        gap=50,
        shared=False,
    )
    for measure, panel in zip(measures, panels, strict=True):
        panel.draw(_band(run, of, measure, null) for null in PROMPT_NULLS[measure])
        panel.draw(_line(run, of, measure, name) for name in reversed(of.names))  # headline on top
    worst = max(run.manifest["weights"]["identity"].values())
    return board.finish(
        run,
        f"Is {of.names[0]}, as an update of the weights, the same for every query?",
        notes=[
            "ΔW = W(u − u₀)u₀ᵀ/‖u₀‖² of every query's last token, mean over the projections that "
            "read an MLP's input; the blocks so updated miss those with the prompt by at most "
            f"{worst:.0e}",
            f"Overlap: with {of.adapter}'s update of the same module" if of.adapter else "",
            "Bars: jackknife over queries (the bootstrap is the run's); thin grey: other prompts. "
            f"Bands: middle 95 % of chance for {of.names[0]}. What is read is base's own input, "
            "which no prompt changes",
        ],
    )


def _band(run: Run, of: Prompts, measure: str, null: str) -> go.Scatter:
    rows = implicit_by_layer(run, f"{measure}_{null}", of.names[0], of.adapter)
    name, colour = _NULLS[null]
    if null == "chance" and "overlap" in measure:
        name = "random spaces"
    layers = rows["layer"].to_numpy()
    return go.Scatter(
        x=np.concatenate([layers, layers[::-1]]),
        y=np.concatenate([rows["ci_high"], rows["ci_low"][::-1]]),
        fill="toself",
        fillcolor=colour,
        line={"width": 1, "color": colour},
        mode="lines",
        hoverinfo="skip",
        name=label(name),
        legendgroup=name,
        meta={"fixed": {"measure": f"{measure}_{null}"}, "x": "layer", "y": "end"},
    )


def _line(run: Run, of: Prompts, measure: str, name: str) -> go.Scatter:
    rows = implicit_by_layer(run, measure, name, of.adapter)
    colour, dash = style.condition_look(run, name)
    value, low, high = (rows[c].to_numpy() for c in ("value", "ci_low", "ci_high"))
    other = name not in (of.names[0], run.null_control)
    bars = style.whiskers(value, low, high, thickness=1.2, width=None, color=colour)
    return go.Scatter(
        x=rows["layer"].to_numpy(),
        y=value,
        error_y={**bars, "visible": not other},
        customdata=np.stack([low, high], axis=1),
        hovertemplate=f"<b>{label(name)}</b>, layer %{{x}}: %{{y:.3g}}<br>interval "
        "%{customdata[0]:.3g} to %{customdata[1]:.3g}<extra></extra>",
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 1 if other else 2.4},
        marker={"size": 4 if other else 7, "color": colour},
        name=label(name),
        legendgroup=name,
        meta={
            "fixed": {"measure": measure, "condition": name},
            "x": "layer",
            "y": "value",
            "custom": ["ci_low", "ci_high"],
        },
    )
