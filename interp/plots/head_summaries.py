"""One head in numbers: prefix mass by condition, content JS by query, most attended tokens.

    summaries(figure, view, run, grid)             # the strip below the patterns
    rows = attended(HeadView.of(run), each=5)      # for a table beside the figure

Content JS is shown for every query: a mean may hide that few of them carry a difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import reading, style
from interp.plots.head_layout import Layout, axis_names, write_heading
from interp.plots.reading import Manifest
from interp.plots.text import Pair, label
from interp.results import HeadView, Run


def summaries(figure: go.Figure, view: HeadView, source: Run | Manifest, grid: Layout) -> None:
    """Draw prefix mass by condition and content JS by query into the strip at the bottom."""
    at, share = len(view.conditions), grid.strip / grid.span[1]
    halves = ([0.0, 0.36], [0.62, 1.0])
    for offset, (x_domain, drawn) in enumerate(
        zip(halves, (_prefix_mass, _content_js), strict=True)
    ):
        x_axis, y_axis = axis_names(at + offset)
        trace, names, title, heading = drawn(view, source)
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


def _prefix_mass(view: HeadView, source: Run | Manifest) -> _Summary:
    found = _table_masses(view, source) if isinstance(source, Run) else []
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
    frame = reading.rows(run, "prefix_mass", "pattern", position="last")
    frame = frame[(frame["layer"] == view.head.layer) & (frame["head"] == view.head.head)]
    rows = {row["condition"]: row for row in frame.to_dict("records")}
    found = [(c, rows[c]) for c in view.conditions if c in rows]
    return [(c, float(r["value"]), float(r["ci_low"]), float(r["ci_high"])) for c, r in found]


def _content_js(view: HeadView, source: Run | Manifest) -> _Summary:
    manifest = source.manifest if isinstance(source, Run) else source
    known: list[Pair] = list(view.pairs)
    palette = style.colours(manifest, known)
    kept = ([p for p in reading.main_pairs(manifest) if p in known] or known)[:6]
    boxes = [
        _box(view.content_js[known.index(pair)], at, pair, palette[pair])
        for at, pair in enumerate(kept)
    ]
    names = [label(reading.pair_name(pair), 26) for pair in kept]
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


def narrowed(view: HeadView, manifest: Manifest, most: int = 8) -> HeadView:
    """The view of the headline's two, base and the null's control, where it has more than
    `most` conditions; without a headline, of the first `most`."""
    if len(view.conditions) <= most:
        return view
    main = reading.main_conditions(manifest)
    kept = [c for c in view.conditions if c in main][:most] or view.conditions[:most]
    at = [view.conditions.index(c) for c in kept]
    return replace(
        view,
        conditions=kept,
        patterns=view.patterns[at],
        attended=[row for row in view.attended if row["condition"] in kept],
    )


def attended(view: HeadView, each: int = 5) -> list[Mapping[str, Any]]:
    """The `each` most attended tokens of every condition, in the conditions' order."""
    kept: list[Mapping[str, Any]] = []
    for condition in view.conditions:
        mine = [row for row in view.attended if row["condition"] == condition]
        kept += sorted(mine, key=lambda row: -row["mass"])[:each]
    return kept
