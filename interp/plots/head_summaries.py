"""One head in numbers: prefix mass by condition, content JS by query.

    summaries(figure, view, run, grid)             # the strip below the patterns

Content JS is shown for every query: a mean may hide that few of them carry a difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair, pair_name
from interp.plots import style
from interp.plots.head_layout import Layout, axis_names, write_heading
from interp.plots.text import label
from interp.runs.heads import HeadView
from interp.runs.view import Run


def summaries(figure: go.Figure, view: HeadView, run: Run, grid: Layout) -> None:
    """Draw prefix mass by condition and content JS by query into the strip at the bottom."""
    at, share = len(view.conditions), grid.strip / grid.span[1]
    halves = ([0.0, 0.36], [0.62, 1.0])
    for offset, (x_domain, drawn) in enumerate(
        zip(halves, (_prefix_mass, _content_js), strict=True)
    ):
        x_axis, y_axis = axis_names(at + offset)
        trace, names, title, heading = drawn(view, run)
        for part in trace:
            figure.add_trace(part.update(xaxis=x_axis, yaxis=y_axis))
        x_look = style.axis(title, domain=x_domain, anchor=y_axis, rangemode="tozero")
        y_look = style.axis(None, domain=[0, share], anchor=x_axis, tickmode="array")
        marks = {"tickvals": list(range(len(names))), "ticktext": names, "showgrid": False}
        figure.layout[f"xaxis{x_axis[1:]}"] = x_look
        figure.layout[f"yaxis{y_axis[1:]}"] = {
            **y_look,
            **marks,
            "range": [len(names) - 0.4, -0.6],
            "tickfont": {"size": 11},
        }
        write_heading(figure, heading, x_domain[0], share)


_Summary = tuple[list[Any], list[str], str, str]


def _prefix_mass(view: HeadView, run: Run) -> _Summary:
    found = _table_masses(view, run)
    where = "last token"
    if not found:
        where = "last token, example queries"
        ends = [len(tokens) - 1 for tokens in view.tokens]
        for i, condition in enumerate(view.conditions):
            mass = [view.patterns[i, q, end, 0] for q, end in enumerate(ends)]
            found.append((condition, float(np.mean(mass)), np.nan, np.nan))
    names = [label(f[0], 16) for f in found]
    value, low, high = (np.array([f[i] for f in found], dtype=float) for i in (1, 2, 3))
    dots = go.Scatter(
        x=value,
        y=list(range(len(found))),
        mode="markers",
        marker={"size": 9, "color": style.INK},
        error_x={
            "type": "data",
            "array": np.nan_to_num(high - value),
            "arrayminus": np.nan_to_num(value - low),
            "thickness": 1.4,
            "width": 3,
        },
        customdata=np.stack([low, high], axis=1),
        hovertemplate="%{y}: %{x:.3g}, interval %{customdata[0]:.3g} to %{customdata[1]:.3g}"
        "<extra></extra>",
        meta={
            "fixed": {"measure": "prefix_mass"},
            "columns": {"condition": [f[0] for f in found]},
            "x": "value",
            "custom": ["ci_low", "ci_high"],
        },
    )
    return [dots], names, "share of attention", f"Prefix mass ({where})"


def _table_masses(view: HeadView, run: Run) -> list[tuple[str, float, float, float]]:
    frame = run.rows("prefix_mass", "pattern", position="last")
    frame = frame[(frame["layer"] == view.head.layer) & (frame["head"] == view.head.head)]
    rows = {row["condition"]: row for row in frame.to_dict("records")}
    found = [(c, rows[c]) for c in view.conditions if c in rows]
    return [(c, float(r["value"]), float(r["ci_low"]), float(r["ci_high"])) for c, r in found]


def _content_js(view: HeadView, run: Run) -> _Summary:
    known: list[Pair] = list(view.pairs)
    palette = style.colours(run, known)
    kept = ([p for p in run.main_pairs if p in known] or known)[:6]
    boxes = [
        _box(view.content_js[known.index(pair)], at, pair, palette[pair])
        for at, pair in enumerate(kept)
    ]
    names = [label(pair_name(pair), 26) for pair in kept]
    return boxes, names, "JS divergence [nats]", "Content JS, one dot per query"


def _box(values: np.ndarray, at: int, pair: Pair, colour: str) -> go.Box:
    return go.Box(
        x=np.asarray(values, dtype=np.float32),
        y=np.full(len(values), at),
        orientation="h",
        boxpoints="all" if len(values) <= 300 else "outliers",
        jitter=0.6,
        pointpos=0,
        marker={"size": 4, "color": style.faded(colour, 0.55)},
        line={"color": colour, "width": 1.4},
        fillcolor="rgba(255,255,255,0)",
        hoverinfo="x",
        showlegend=False,
        meta={
            "fixed": {"measure": "content_js", "condition": pair[0], "reference": pair[1]},
            "x": "value",
        },
    )
