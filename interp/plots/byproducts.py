"""Modules off, one mark each: what it costs the output against what it changes inside.

    scatter(Parts.of(run, "lora"), drawing, Place(0, 0, 420, 300), "modules")

High: needed. Low and far to the right: a by-product. Both axes are logarithmic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.panels import Area, Drawing, beside
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.parts import (
    CHANGE,
    DAMAGE,
    KEPT,
    NEEDED,
    NUMBERS,
    TELLING,
    Parts,
    by_product,
    needed,
)

if TYPE_CHECKING:
    import pandas as pd

FLOORS = {DAMAGE: 1e-5, CHANGE: 1e-3}
"""Smaller numbers are drawn at the edge."""

_MOST, SPARE = 6, 3
"""How many of the needed modules and of the clearest by-products have their names."""

_SHADE = {"fillcolor": style.faded("#56B4E9", 0.12), "line": {"width": 0}}
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")


def marks(frame: pd.DataFrame, condition: str, names: Sequence[str]) -> go.Scatter:
    """Markers that carry all numbers of these parts; where they stand is the panel's affair."""
    columns = (*NUMBERS, "n")
    custom = np.stack([frame[c].to_numpy(float, na_value=np.nan) for c in columns], axis=1)
    hover = "".join(
        f"<br>{MEASURES[m].title} %{{customdata[{i}]:.3g}}, interval "
        f"%{{customdata[{i + 1}]:.3g}} to %{{customdata[{i + 2}]:.3g}}"
        for m, i in ((DAMAGE, 0), (KEPT, 3), (CHANGE, 6))
    )
    layers = [None if number != number else int(number) for number in frame["layer"].astype(float)]
    places = {name: frame[name].tolist() for name in ("site", "position")}
    return go.Scatter(
        mode="markers",
        showlegend=False,
        text=[label(name) for name in names],
        customdata=custom.astype(np.float32),
        hovertemplate=f"<b>%{{text}}</b>{hover}<br>n = %{{customdata[9]:.0f}}<extra></extra>",
        meta={
            "fixed": {"condition": condition},
            "columns": {**places, "layer": layers},
            "custom": list(columns),
        },
    )


def scatter(parts: Parts, drawing: Drawing, place: Area, heading: str) -> None:
    """One colour and symbol per kind of module; the needed and the by-products named."""
    frame = parts.modules[parts.modules[[DAMAGE, CHANGE]].notna().all(axis=1)]
    if frame.empty:
        return
    limits = {CHANGE: TELLING, DAMAGE: np.fmax(NEEDED * parts.effect, FLOORS[DAMAGE])}
    ends = {m: _ends(np.append(frame[m].to_numpy(float), limits[m]), m) for m in limits}
    axes = drawing.add(
        place,
        heading,
        style.axis("internal change [share of the LoRA's]", **_log(ends[CHANGE])),
        style.axis("damage [nats]", **_log(ends[DAMAGE])),
    )
    groups = list(dict.fromkeys(frame["group"]))
    palette = style.PALETTE
    for number, kind in enumerate(parts.kinds):
        own = frame[frame["kind"] == kind]
        trace = marks(own, parts.condition, own["name"].tolist())
        symbol = _SYMBOLS[groups.index(own["group"].iloc[0]) % len(_SYMBOLS)] if len(own) else None
        look = {"size": 7, "color": palette[number % len(palette)], "symbol": symbol}
        trace.update(
            x=_drawn(own, CHANGE),
            y=_drawn(own, DAMAGE),
            name=label(kind),
            legendgroup=label(kind),
            showlegend=True,
            marker={**look, "opacity": 0.85, "line": {"width": 0.6, "color": "white"}},
        )
        drawing.draw([trace], axes)
    _names(frame, drawing, place, axes, ends)
    _corner(drawing.figure, axes, ends, limits)


def _names(
    frame: pd.DataFrame,
    drawing: Drawing,
    place: Area,
    axes: dict[str, str],
    ends: dict[str, list[float]],
) -> None:
    """Of the needed modules the most damaging, of the by-products those that change most."""
    worst = frame[needed(frame[KEPT])].nlargest(_MOST, DAMAGE)
    spare = frame[by_product(frame[KEPT], frame[CHANGE])].nlargest(SPARE, CHANGE)
    named, size = frame.loc[[*worst.index, *spare.index]], [place.width, place.height]
    pixels, others = (_fractions(part, ends) * size for part in (named, frame))
    sides = beside(pixels, named["name"].tolist(), others, place)
    shown = [side is not None for side in sides]
    text = go.Scatter(
        x=_drawn(named, CHANGE)[shown],
        y=_drawn(named, DAMAGE)[shown],
        mode="text",
        text=[f"\u00a0\u00a0{label(name)}\u00a0\u00a0" for name in named["name"][shown]],
        textposition=[side for side in sides if side],
        textfont={"size": 11, "color": style.INK},
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )
    drawing.draw([text], axes)


def _fractions(frame: pd.DataFrame, ends: dict[str, list[float]]) -> np.ndarray:
    """`[part, 2]`: where marks stand, as fractions of the panel."""
    found = [(np.log10(_drawn(frame, m)) - ends[m][0]) / np.ptp(ends[m]) for m in (CHANGE, DAMAGE)]
    return np.stack(found, axis=1)


def _corner(
    figure: go.Figure,
    axes: dict[str, str],
    ends: dict[str, list[float]],
    limits: dict[str, float],
) -> None:
    """The by-products' corner, shaded and named."""
    inside = {"xref": f"{axes['xaxis']} domain", "yref": f"{axes['yaxis']} domain"}
    left, top = ((np.log10(limits[m]) - ends[m][0]) / np.ptp(ends[m]) for m in (CHANGE, DAMAGE))
    figure.add_shape(type="rect", x0=left, x1=1, y0=0, y1=top, **inside, **_SHADE, layer="below")
    look = {"font": {"size": 11, "color": style.MUTED}, "showarrow": False}
    place = {"x": 1, "y": 0, "xanchor": "right", "yanchor": "bottom"}
    figure.add_annotation(text="<i>by-products</i>", **place, **inside, **look)


def _drawn(frame: pd.DataFrame, measure: str) -> np.ndarray:
    return np.maximum(frame[measure].to_numpy(float), FLOORS[measure])


def _ends(values: np.ndarray, measure: str) -> list[float]:
    """The axis in decades, with room for names."""
    low, high = (np.log10(max(float(f(values)), FLOORS[measure])) for f in (np.min, np.max))
    room = 0.1 * max(high - low, 0.5)
    return [low - room, high + room]


def _log(ends: list[float]) -> dict[str, Any]:
    """Ticks at decades, or at 1, 2 and 5 of each where there are few."""
    few = ends[1] - ends[0] < 2
    steps = (1, 2, 5) if few else (1,)
    decades = range(int(np.floor(ends[0])), int(np.ceil(ends[1])) + 1)
    at = [
        s * 10.0**d for d in decades for s in steps if ends[0] <= np.log10(s * 10.0**d) <= ends[1]
    ]
    look = {
        "tickmode": "array",
        "tickvals": at,
        "ticktext": [f"{v:.6f}".rstrip("0").rstrip(".") for v in at],
    }
    return {"type": "log", "range": ends, **look}
