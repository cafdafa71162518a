"""A measure against depth: one line with its interval, for the figures that draw lines.

    for trace in line(frame, Look("prompt vs lora", "#0072B2", "solid"), first=True):
        figure.add_trace(trace, row=1, col=1)

A marker is open where the row was tested against its control and p_adjusted is above `ALPHA`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style
from interp.plots.text import label
from interp.runs.view import Run
from interp.significance import ALPHA

if TYPE_CHECKING:
    import pandas as pd

_KEPT = ("ci_low", "ci_high", "n", "p_adjusted")


class Look(NamedTuple):
    """A line's name in the legend, its colour and its dash."""

    name: str
    colour: str
    dash: str = "solid"
    symbol: str = "circle"


def layer_rows(
    run: Run, measure: str, site: str, pair: Pair, position: str, queries: str = "matched"
) -> pd.DataFrame:
    """A pair's rows of whole layers, in layer order; empty where no value is defined."""
    frame = run.rows(measure, site, pair, position, queries)
    frame = frame[frame["head"].isna() & frame["layer"].notna()].sort_values("layer")
    return frame if frame["value"].notna().any() else frame.iloc[:0]


def line(
    frame: pd.DataFrame, look: Look, first: bool = True, across: str = "layer"
) -> list[go.Scatter]:
    """The band of the interval, then the line; `first`: it enters the legend. `across`: the column
    of whole numbers to draw it against."""
    at = frame[across].to_numpy(dtype=np.int16)
    numbers = {c: frame[c].to_numpy(dtype=np.float32, na_value=np.nan) for c in ("value", *_KEPT)}
    tested = np.isfinite(numbers["p_adjusted"])
    custom = np.stack([numbers[c] for c in _KEPT[: 4 if tested.any() else 3]], axis=1)
    name, row = label(look.name), frame.iloc[0]
    known = {k: row[k] for k in ("measure", "site", "position", "queries", "condition")}
    reference = row["reference"] if isinstance(row["reference"], str) else None
    hover = f"<b>{name}</b><br>{across} %{{x}}: %{{y:.4g}}<br>"
    hover += "interval %{customdata[0]:.3g} to %{customdata[1]:.3g}, n = %{customdata[2]:.0f}"
    hover += "<br>p (corrected) %{customdata[3]:.2g}" if tested.any() else ""
    drawn = go.Scatter(
        x=at,
        y=numbers["value"],
        customdata=custom,
        name=name,
        legendgroup=name,
        showlegend=first,
        mode="lines+markers",
        line={"color": look.colour, "width": 2.2, "dash": look.dash},
        marker=_markers(look, numbers["p_adjusted"]),
        hovertemplate=hover + "<extra></extra>",
        meta={
            "fixed": {**known, "reference": reference},
            "x": across,
            "y": "value",
            "custom": list(_KEPT[: custom.shape[1]]),
        },
    )
    return [band(at, numbers["ci_low"], numbers["ci_high"], look.colour, name), drawn]


def _markers(look: Look, p: np.ndarray) -> dict[str, object]:
    if not np.isfinite(p).any():
        return {"size": 5, "color": look.colour, "symbol": look.symbol}
    open_ = np.nan_to_num(p) > ALPHA
    return {
        "size": 7 if len(p) <= 16 else 5,
        "symbol": look.symbol,
        "color": ["white" if o else look.colour for o in open_],
        "line": {"width": 1.6 if len(p) <= 16 else 1.2, "color": look.colour},
    }


def band(
    layer: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, name: str
) -> go.Scatter:
    """One polygon for each stretch of layers that has an interval."""
    xs, ys = outline(layer, low, high)
    return go.Scatter(
        x=xs,
        y=ys,
        fill="toself",
        mode="lines",
        line={"width": 0.5, "color": style.faded(colour, 0.25)},
        fillcolor=style.faded(colour, 0.18),
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )


def outline(layer: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The polygons between two lines, one for each stretch where both are known."""
    xs: list[float] = []
    ys: list[float] = []
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        if len(run) == 1:  # a single layer has no width of its own
            at, half = float(layer[run[0]]), 0.2
            xs += [at - half, at + half, at + half, at - half, at - half, np.nan]
            ys += [low[run[0]], low[run[0]], high[run[0]], high[run[0]], low[run[0]], np.nan]
        elif len(run):
            xs += [*layer[run], *layer[run][::-1], layer[run][0], np.nan]
            ys += [*low[run], *high[run][::-1], low[run][0], np.nan]
    return np.array(xs, dtype=np.float32), np.array(ys, dtype=np.float32)


def tested(frames: list[pd.DataFrame]) -> bool:
    """Whether any of these rows carries a corrected p-value."""
    return any(frame["p_adjusted"].notna().any() for frame in frames)


def test_words(run: Run) -> str:
    """For a caption whose lines have tested pairs."""
    count = run.manifest.get("tests", {}).get("permutations")
    times = f"{count} " if count else ""
    return (
        f"Open markers: p > {ALPHA:g} against the pair's control ({times}paired sign flips over "
        "queries, corrected over the map), filled: below it"
    )
