"""Curves of an experiment: a tidy table as panels of lines with intervals.

    look = Curves(title="...", x="virtual tokens", y="strength", log_x=True, levels={"floor": 0.99})
    curves(table, look, "caption")

The table has `panel`, `series`, `x`, `value`, `ci_low`, `ci_high`, `n`; `x` are numbers, or words
in the order in which they first occur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.board import Board
from interp.plots.style import label

if TYPE_CHECKING:
    import pandas as pd

CURVE_COLUMNS = ("panel", "series", "x", "value", "ci_low", "ci_high", "n")
_MOST_TICKS = 10
"""So many places of a logarithmic axis are named one by one; of more, the powers of ten."""
_PALE = {"bgcolor": "rgba(255,255,255,0.7)", "borderpad": 1}
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")


@dataclass(frozen=True)
class Curves:
    """Titles and axes. `levels`: named horizontal lines; `grey`: series that are controls;
    `y_range` fixes the axis; `log_x`, `log_y`: logarithmic (`log_y` needs positive values)."""

    title: str
    x: str
    y: str
    log_x: bool = False
    log_y: bool = False
    levels: Mapping[str, float] = field(default_factory=dict)
    grey: Sequence[str] = ()
    y_range: tuple[float, float] | None = None
    plot: int = 320


def curves(table: pd.DataFrame, look: Curves, caption: str) -> go.Figure:
    """One panel per `panel`, one line per `series`, a bar of the interval on every point."""
    names, words = list(dict.fromkeys(table["panel"])), _words(table)
    looks = _looks(list(dict.fromkeys(table["series"])), look.grey)
    headings = [label(str(name)) for name in names] if len(names) > 1 else [""]
    board = Board(left=72, below=52)
    x = style.axis(look.x, **_x_ticks(table, look, words))
    panels = board.row(headings, look.plot, x, style.axis(look.y, **_y_look(look)), gap=28)
    for name, panel in zip(names, panels, strict=True):
        for series, rows in table[table["panel"] == name].groupby("series", sort=False):
            one = _line(str(series), rows, looks[str(series)], words)
            panel.draw([one if len(looks) > 1 else one.update(showlegend=False)])
        panel.level(*look.levels.values(), layer="above", color=style.MUTED, dash="dot")
    for name, value in look.levels.items():
        # Unlike a line, a note on a logarithmic axis is placed by the logarithm.
        place = {"y": float(np.log10(value)) if look.log_y else value, "yanchor": "bottom"}
        place |= {"x": 1, "xref": panels[-1].domain("x"), "xanchor": "right"}
        panels[-1].write(label(name), font={"size": 11, "color": style.MUTED}, **place, **_PALE)
    return board.dress(look.title, caption)


def _x_ticks(table: pd.DataFrame, look: Curves, words: Sequence[str]) -> dict[str, Any]:
    if words:
        return {"tickvals": list(range(len(words))), "ticktext": [label(word) for word in words]}
    if not look.log_x:
        return {}
    places = sorted(set(table["x"]))
    if len(places) > _MOST_TICKS:
        return {"type": "log", "dtick": 1, "exponentformat": "power"}
    return {"type": "log", "tickvals": places, "ticktext": [f"{place:g}" for place in places]}


def _y_look(look: Curves) -> dict[str, Any]:
    if look.log_y:
        return {"type": "log", "dtick": 1, "exponentformat": "power"}
    return {"range": list(look.y_range)} if look.y_range else {}


def _words(table: pd.DataFrame) -> list[str]:
    """The labels of an axis of words; none where x are numbers."""
    return list(dict.fromkeys(table["x"])) if table["x"].map(type).eq(str).any() else []


def _looks(names: Sequence[str], grey: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dash of every series: controls are grey."""
    coloured = [name for name in names if name not in grey]
    controls = [name for name in names if name in grey]
    found = {
        name: (style.PALETTE[i % len(style.PALETTE)], "solid") for i, name in enumerate(coloured)
    }
    return found | {
        name: (style.RULE, _DASHES[1 + i % (len(_DASHES) - 1)]) for i, name in enumerate(controls)
    }


def _line(name: str, rows: pd.DataFrame, look: tuple[str, str], words: Sequence[str]) -> go.Scatter:
    colour, dash = look
    at = [words.index(x) for x in rows["x"]] if words else rows["x"]
    value, low, high = (rows[c].to_numpy(float) for c in ("value", "ci_low", "ci_high"))
    shown = label(name)
    return go.Scatter(
        x=np.asarray(at),
        y=value,
        error_y=style.whiskers(value, low, high, thickness=1.2, color=colour),
        customdata=np.stack([low, high, rows["n"].to_numpy(float)], axis=1),
        hovertemplate=f"<b>{shown}</b><br>%{{x}}: %{{y:.4g}}<br>interval %{{customdata[0]:.3g}} to "
        "%{customdata[1]:.3g}, n = %{customdata[2]:.0f}<extra></extra>",
        name=shown,
        legendgroup=shown,
        mode="lines+markers",
        line={"color": colour, "width": 2.2, "dash": dash},
        marker={"size": 7, "color": colour},
        meta={
            "fixed": {"series": name, "panel": str(rows["panel"].iloc[0])},
            "x": "x",
            "y": "value",
            "custom": ["ci_low", "ci_high", "n"],
        },
    )
