"""Curves of an experiment: a tidy table as panels of lines with intervals.

    look = Curves(title="...", x="virtual tokens", y="strength", log_x=True, levels={"floor": 0.99})
    curves(table, look, "caption")

The table has `panel`, `series`, `x`, `value`, `ci_low`, `ci_high`, `n`; `x` are numbers, or words
in the order in which they first occur.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots import style
from interp.plots.text import label

if TYPE_CHECKING:
    import pandas as pd

CURVE_COLUMNS = ("panel", "series", "x", "value", "ci_low", "ci_high", "n")
MOST_TICKS = 10
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
    panels = list(dict.fromkeys(table["panel"]))
    words = _words(table)
    figure = make_subplots(
        1,
        len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        column_titles=[label(str(panel)) for panel in panels] if len(panels) > 1 else None,
    )
    figure.update_annotations(font={"size": 13})
    looks = _looks(list(dict.fromkeys(table["series"])), look.grey)
    for column, panel in enumerate(panels, 1):
        for series, rows in table[table["panel"] == panel].groupby("series", sort=False):
            first = panel == table.loc[table["series"] == series, "panel"].iloc[0]
            trace = _line(str(series), rows, looks[str(series)], words, first)
            figure.add_trace(trace, row=1, col=column)
        for name, value in look.levels.items():
            line = {"color": style.MUTED, "width": 1, "dash": "dot"}
            figure.add_hline(value, line=line, row=1, col=column)
            if column == len(panels):
                # Unlike a line, a note on a logarithmic axis is placed by the logarithm.
                at = float(np.log10(value)) if look.log_y else value
                figure.add_annotation(_note(name), y=at, row=1, col=column)
    ticks: dict[str, object] = {"type": "log"} if look.log_x else {}
    if words:
        ticks = {"tickvals": list(range(len(words))), "ticktext": list(map(label, words))}
    elif look.log_x and len(places := sorted(set(table["x"]))) <= MOST_TICKS:
        ticks |= {"tickvals": places, "ticktext": list(map(_n, places))}
    elif look.log_x:
        ticks |= {"dtick": 1, "exponentformat": "power"}
    figure.update_xaxes(style.axis(look.x, **ticks))
    figure.update_yaxes(style.axis(None))
    figure.update_yaxes(title_text=label(look.y), col=1)
    if look.log_y:
        figure.update_yaxes(type="log", dtick=1, exponentformat="power")
    elif look.y_range:
        figure.update_yaxes(range=list(look.y_range))
    return style.dress(
        figure,
        title=look.title,
        words=caption,
        plot=look.plot,
        legend=len(looks) > 1,
        left=72,
        below=52,
    )


def _n(number: float) -> str:
    return f"{number:g}"


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
        name: ("#9A9A9A", _DASHES[1 + i % (len(_DASHES) - 1)]) for i, name in enumerate(controls)
    }


def _line(
    name: str, rows: pd.DataFrame, look: tuple[str, str], words: Sequence[str], first: bool
) -> go.Scatter:
    colour, dash = look
    at = [words.index(x) for x in rows["x"]] if words else rows["x"]
    value, low, high = (rows[c].to_numpy(float) for c in ("value", "ci_low", "ci_high"))
    shown = label(name)
    return go.Scatter(
        x=np.asarray(at),
        y=value,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": np.nan_to_num(high - value),
            "arrayminus": np.nan_to_num(value - low),
            "thickness": 1.2,
            "width": 3,
            "color": colour,
        },
        customdata=np.stack([low, high, rows["n"].to_numpy(float)], axis=1),
        hovertemplate=f"<b>{shown}</b><br>%{{x}}: %{{y:.4g}}<br>interval %{{customdata[0]:.3g}} to "
        "%{customdata[1]:.3g}, n = %{customdata[2]:.0f}<extra></extra>",
        name=shown,
        legendgroup=shown,
        showlegend=first,
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


def _note(name: str) -> dict[str, object]:
    font = {"size": 11, "color": style.MUTED}
    place = {"x": 1, "xref": "x domain", "xanchor": "right", "yanchor": "bottom"}
    return {"text": label(name), "font": font, "showarrow": False, **place, **_PALE}
