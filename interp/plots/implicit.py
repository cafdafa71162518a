"""A prompt as an update of the weights, by layer: are its updates one, and are they the LoRA's?

    implicit(run).show()

A line per prompt (controls among them), mean over the projections of a block; the bands are what
chance gives for the first: random directions, and queries that have each other's input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots import style
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

PANELS = {
    "implicit_rank": ("chance", "shuffled"),
    "implicit_cosine": ("chance", "shuffled"),
    "implicit_overlap_left": ("chance", "random"),
    "implicit_overlap_right": ("chance",),
}
"""Measure -> its bands."""

_WORDS = {
    "shuffled": "another query's input",
    "random": "random directions through the same weights",
}
CHANCE = {"rank": "random directions", "cosine": "random directions"}
"""What chance is, by the measure's last word; random spaces elsewhere."""

_FILLS = {
    "chance": "rgba(110,110,110,0.20)",
    "random": "rgba(86,180,233,0.25)",
    "shuffled": "rgba(230,159,0,0.30)",
}


class Prompts(NamedTuple):
    """The prompts that were weighed, that of the headline first, and the adapter they stand
    beside."""

    names: list[str]
    adapter: str | None


def prompts(run: Run) -> Prompts:
    """Whose updates a figure shows; `NotMeasured` without any."""
    found = run.manifest.get("weights") or {}
    if not found.get("prompts"):
        raise NotMeasured("no prompt was weighed as an update: use `interp weights`")
    first = run.headline or ()
    names = sorted(map(str, found["prompts"]), key=lambda name: name not in first)
    known = run.table.loc[run.table["measure"] == "implicit_overlap_left", "reference"].unique()
    adapters = sorted(map(str, known), key=lambda name: name not in first)
    return Prompts(names, adapters[0] if adapters else None)


def implicit(run: Run) -> go.Figure:
    """Effective rank, cosine, overlaps by layer. Raises `NotMeasured` without them."""
    of = prompts(run)
    measures = [m for m in PANELS if "overlap" not in m or of.adapter]
    titles = [label(MEASURES[measure].title) for measure in measures]
    figure = make_subplots(1, len(measures), column_titles=titles, horizontal_spacing=0.055)
    figure.update_annotations(font={"size": 12})
    shown: set[str] = set()
    for column, measure in enumerate(measures, 1):
        for trace in _traces(run, of, measure):
            trace.showlegend = trace.legendgroup not in shown
            shown.add(str(trace.legendgroup))
            figure.add_trace(trace, row=1, col=column)
    depth = run.n_layers
    figure.update_xaxes(style.axis("layer", **style.integer_ticks(depth, most=8)))
    figure.update_yaxes(style.axis(None, rangemode="tozero"))
    return style.finish(
        figure,
        run,
        title=f"Is {of.names[0]}, as an update of the weights, the same for every query?",
        pairs=[],
        note=_note(of, run),
        plot=300,
        legend=True,
    )


def implicit_by_layer(run: Run, measure: str, prompt: str, adapter: str | None) -> pd.DataFrame:
    """`value`, `ci_low`, `ci_high` of a measure, mean over a block's projections."""
    own = run.table[(run.table["measure"] == measure) & (run.table["condition"] == prompt)]
    if "overlap" in measure:
        own = own[own["reference"] == adapter]
    columns = ["value", "ci_low", "ci_high"]
    return own.groupby("layer", as_index=False)[columns].mean().astype(float)


def _traces(run: Run, of: Prompts, measure: str) -> list[go.Scatter]:
    bands = [
        _band(implicit_by_layer(run, f"{measure}_{null}", of.names[0], of.adapter), measure, null)
        for null in PANELS[measure]
    ]
    lines = [_line(run, of, measure, name) for name in reversed(of.names)]  # the headline on top
    return [*bands, *lines]


def _band(rows: pd.DataFrame, measure: str, null: str) -> go.Scatter:
    known = CHANCE.get(measure.rpartition("_")[2], "random spaces")
    name = _WORDS.get(null, known)
    layers = rows["layer"].to_numpy()
    return go.Scatter(
        x=np.concatenate([layers, layers[::-1]]),
        y=np.concatenate([rows["ci_high"], rows["ci_low"][::-1]]),
        fill="toself",
        fillcolor=_FILLS[null],
        line={"width": 1, "color": _FILLS[null]},
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
    ends: dict[str, Any] = {"array": high - value, "arrayminus": value - low}
    other = name not in (of.names[0], run.null_control)
    return go.Scatter(
        x=rows["layer"].to_numpy(),
        y=value,
        error_y={
            "type": "data",
            "symmetric": False,
            **ends,
            "thickness": 1.2,
            "color": colour,
            "visible": not other,
        },
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


def _note(of: Prompts, run: Run) -> str:
    worst = max(run.manifest["weights"]["identity"].values())
    beside = f" Overlap: with {of.adapter}'s update of the same module." if of.adapter else ""
    return (
        "ΔW = W(u − u₀)u₀ᵀ/‖u₀‖² of every query's last token, mean over the projections that read "
        f"an MLP's input; the blocks so updated miss those with the prompt by at most {worst:.0e}."
        f"{beside} Bars: jackknife over queries (the bootstrap is the run's); thin grey: other "
        f"prompts. Bands: middle 95 % of chance for {of.names[0]}. What is read is base's own "
        "input, which no prompt changes"
    )
