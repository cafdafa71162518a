"""One head, closely: what every condition makes it attend to, its prefix mass, its content JS.

    head_view(HeadView.of(run), run).show()

A column of its own holds the mass on everything before the query. Tokens label an integer axis:
the same token twice is two columns.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style
from interp.plots.head_layout import Layout, axis_names, layout_for, write_heading
from interp.plots.head_summaries import summaries
from interp.plots.text import label
from interp.runs.heads import HeadView
from interp.runs.view import Run

PREFIX_AT = -2
"""The prefix column; column -1 stays empty, 0 is the query's first token."""


def head_view(view: HeadView, run: Run) -> go.Figure:
    """Patterns of every condition on one scale, a menu of example queries, and two summaries.

    Prefix mass comes from the run's table, with intervals, where it has it.
    """
    everything, view = len(view.conditions), view.narrowed(run)
    longest = max((len(t) for t in view.tokens), default=1)
    grid = layout_for(len(view.conditions), longest)
    figure = go.Figure()
    draw_patterns(figure, view, grid)
    summaries(figure, view, run, grid)
    _menu(figure, view, grid)
    drops = everything > len(view.conditions)
    known: list[Pair] = list(view.pairs)
    pairs = [p for p in run.main_pairs if p in known] or known
    return style.finish(
        figure,
        run,
        title=f"Attention of head {view.head} under each condition",
        pairs=pairs,
        note="Rows: query tokens; columns: all mass before the query (prefix), then the query's "
        f"own tokens. Shown first: example query 1 of {len(view.tokens)}"
        + (f". {len(view.conditions)} of {everything} conditions" if drops else ""),
        plot=round(grid.span[1]),
        left=round(grid.left),
        right=90,
        below=44,
    )


def draw_patterns(figure: go.Figure, view: HeadView, grid: Layout) -> None:
    """A panel per condition, on one scale, with a trace per example query; the first is shown."""
    top = float(np.nanmax(view.patterns)) if np.isfinite(view.patterns).any() else 1.0
    for panel, condition in enumerate(view.conditions):
        x_axis, y_axis = axis_names(panel)
        x_domain, y_domain = grid.panel(panel)
        for query, tokens in enumerate(view.tokens):
            cells = _cells(view.patterns[panel, query], len(tokens))
            figure.add_trace(_heatmap(cells, condition, query, tokens, (x_axis, y_axis)))
        low = panel in grid.bottom(len(view.conditions))
        ticks = _ticks(view.tokens[0])
        x_look = style.axis(None, **ticks["x"], domain=x_domain, anchor=y_axis, tickangle=-60)
        y_look = style.axis(None, **ticks["y"], domain=y_domain, anchor=x_axis)
        font = {"tickfont": {"size": 10}, "showgrid": False}
        figure.layout[f"xaxis{x_axis[1:]}"] = {**x_look, **font, "showticklabels": low}
        side = {"showticklabels": panel % grid.columns == 0}
        figure.layout[f"yaxis{y_axis[1:]}"] = {**y_look, **font, **side}
        write_heading(figure, label(condition), x_domain[0], y_domain[1])
    unit = {
        "title": {"text": "attention weight", "side": "right", "font": {"size": 12}},
        "thickness": 14,
    }
    bar = {**unit, "outlinewidth": 0, "x": 1.01, "y": 1, "yanchor": "top", "lenmode": "pixels"}
    length = max(120, min(300, grid.height * grid.rows))
    figure.update_layout(
        coloraxis={
            "cmin": 0,
            "cmax": max(top, 1e-6),
            "colorscale": "Blues",
            "colorbar": {**bar, "len": length},
        }
    )


def _cells(pattern: np.ndarray, length: int) -> np.ndarray:
    """`[query_pos, 2 + key_pos]`: prefix, an empty column, the query's own keys."""
    own = np.asarray(pattern[:length, 1 : length + 1], dtype=np.float32)
    prefix = np.asarray(pattern[:length, :1], dtype=np.float32)
    return np.concatenate([prefix, np.full_like(prefix, np.nan), own], axis=1)


def _heatmap(
    cells: np.ndarray, condition: str, query: int, tokens: list[str], axes: tuple[str, str]
) -> go.Heatmap:
    length = len(tokens)
    return go.Heatmap(
        z=cells,
        x=[PREFIX_AT, -1, *range(length)],
        y=list(range(length)),
        xaxis=axes[0],
        yaxis=axes[1],
        coloraxis="coloraxis",
        visible=query == 0,
        hoverongaps=False,
        xgap=1,
        ygap=1,
        hovertemplate="at %{y}<br>to %{x}<br>weight %{z:.3f}<extra>"
        + label(condition)
        + "</extra>",
        meta={
            "fixed": {"condition": condition, "query": query},
            "x": "key",
            "y": "query_pos",
            "z": "weight",
            "x_labels": {str(PREFIX_AT): "prefix"} | {str(i): t for i, t in enumerate(tokens)},
            "y_labels": {str(i): t for i, t in enumerate(tokens)},
        },
    )


def _ticks(tokens: list[str]) -> dict[str, dict[str, Any]]:
    names, length = [label(t, 14) for t in tokens], len(tokens)
    x = {"tickvals": [PREFIX_AT, *range(length)], "ticktext": ["prefix", *names]}
    y = {"tickvals": list(range(length)), "ticktext": names}
    x_range, y_range = [PREFIX_AT - 0.5, length - 0.5], [length - 0.5, -0.5]
    return {
        "x": {"tickmode": "array", **x, "range": x_range},
        "y": {"tickmode": "array", **y, "range": y_range},
    }


def _menu(figure: go.Figure, view: HeadView, grid: Layout) -> None:
    """A drop-down over the example queries; a still picture shows the first."""
    if len(view.tokens) < 2:
        return
    count = len(view.tokens)
    traces = list(range(count * len(view.conditions)))
    buttons = []
    for query, tokens in enumerate(view.tokens):
        ticks = _ticks(tokens)
        change: dict[str, Any] = {}
        for panel in range(len(view.conditions)):
            for axis, part in zip(axis_names(panel), ("x", "y"), strict=True):
                name = f"{part}axis{axis[1:]}"
                change |= {f"{name}.{k}": v for k, v in ticks[part].items() if k != "tickmode"}
        shown = {"visible": [t % count == query for t in traces]}
        words = label(f"{query + 1}: " + "".join(tokens).strip(), 48)
        buttons.append({"method": "update", "label": words, "args": [shown, change, traces]})
    place = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 20, "r": 0}}
    look = {"bgcolor": "white", "font": {"size": 11}, "showactive": True}
    figure.update_layout(updatemenus=[{"type": "dropdown", "buttons": buttons, **place, **look}])
