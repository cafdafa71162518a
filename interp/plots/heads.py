"""One head, closely: what every condition makes it attend to, its prefix mass, its content JS.

    head_view(HeadView.of(run), run).show()
    rows = attended(HeadView.of(run), each=5)      # the most attended tokens, for a table

A column of its own holds the mass on everything before the query. Tokens label an integer axis:
the same token twice is two columns.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import reading, style
from interp.plots.reading import Manifest
from interp.plots.text import Pair, label
from interp.results import HeadView, Run

PREFIX_AT = -2
"""The prefix column; column -1 stays empty, 0 is the query's first token."""


@dataclass(frozen=True)
class _Layout:
    """Panels in pixels: `columns` x `rows` of `width` x `height`, then one strip at the bottom."""

    columns: int
    rows: int
    width: float
    height: float
    left: float = 110
    gap_x: float = 26
    gap_y: float = 30
    ticks: float = 74
    strip: float = 150

    @property
    def span(self) -> tuple[float, float]:
        """Width and height of the drawing."""
        across = self.columns * self.width + (self.columns - 1) * self.gap_x
        down = self.rows * (self.height + self.gap_y) - self.gap_y
        return across, down + self.ticks + self.gap_y + 14 + self.strip

    def panel(self, index: int) -> tuple[list[float], list[float]]:
        """Domains (x, y) of panel `index`, in paper units."""
        row, column = divmod(index, self.columns)
        across, down = self.span
        x = column * (self.width + self.gap_x)
        y = row * (self.height + self.gap_y)
        x_domain = [x / across, min(1.0, (x + self.width) / across)]
        return x_domain, [max(0.0, 1 - (y + self.height) / down), 1 - y / down]

    def bottom(self, panels: int) -> list[int]:
        """The lowest panel of each column."""
        return [i for i in range(panels) if i + self.columns >= panels]


def head_view(view: HeadView, source: Run | Manifest) -> go.Figure:
    """Patterns of every condition on one scale, a menu of example queries, and two summaries.

    `source`: the run (prefix mass then comes from its table, with intervals) or a manifest.
    """
    manifest = source.manifest if isinstance(source, Run) else source
    longest = max((len(t) for t in view.tokens), default=1)
    grid = _layout(len(view.conditions), longest)
    figure = go.Figure()
    _patterns(figure, view, grid)
    _summaries(figure, view, source, grid)
    _menu(figure, view, grid)
    known: list[Pair] = list(view.pairs)
    pairs = [p for p in reading.main_pairs(manifest) if p in known] or known
    return style.finish(
        figure,
        manifest,
        title=f"Attention of head {view.head} under each condition",
        pairs=pairs,
        note="Rows: query tokens; columns: all mass before the query (prefix), then the query's "
        f"own tokens. Example query 1 of {len(view.tokens)}",
        plot=round(grid.span[1]),
        left=round(grid.left),
        right=90,
        below=44,
    )


def _layout(panels: int, tokens: int) -> _Layout:
    most = min(panels, 4 if tokens <= 12 else 3 if tokens <= 18 else 2)
    columns = math.ceil(panels / math.ceil(panels / most))
    width = (style.WIDTH - 200 - 26 * (columns - 1)) / columns
    height = min(max(13 * tokens + 10, 90), 460)
    return _Layout(columns, math.ceil(panels / columns), width, height)


def _axes(at: int) -> tuple[str, str]:
    suffix = "" if at == 0 else str(at + 1)
    return f"x{suffix}", f"y{suffix}"


def _patterns(figure: go.Figure, view: HeadView, grid: _Layout) -> None:
    top = float(np.nanmax(view.patterns)) if np.isfinite(view.patterns).any() else 1.0
    for panel, condition in enumerate(view.conditions):
        x_axis, y_axis = _axes(panel)
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
        _heading(figure, label(condition), x_domain[0], y_domain[1])
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


def _menu(figure: go.Figure, view: HeadView, grid: _Layout) -> None:
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
            for axis, part in zip(_axes(panel), ("x", "y"), strict=True):
                name = f"{part}axis{axis[1:]}"
                change |= {f"{name}.{k}": v for k, v in ticks[part].items() if k != "tickmode"}
        shown = {"visible": [t % count == query for t in traces]}
        words = label(f"{query + 1}: " + "".join(tokens).strip(), 48)
        buttons.append({"method": "update", "label": words, "args": [shown, change, traces]})
    place = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 20, "r": 0}}
    look = {"bgcolor": "white", "font": {"size": 11}, "showactive": True}
    figure.update_layout(updatemenus=[{"type": "dropdown", "buttons": buttons, **place, **look}])


def _heading(figure: go.Figure, text: str, x: float, y: float) -> None:
    place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    figure.add_annotation(text=text, x=x, y=y, showarrow=False, font={"size": 13}, **place)


def _summaries(figure: go.Figure, view: HeadView, source: Run | Manifest, grid: _Layout) -> None:
    at, share = len(view.conditions), grid.strip / grid.span[1]
    halves = ([0.0, 0.36], [0.62, 1.0])
    for offset, (x_domain, drawn) in enumerate(
        zip(halves, (_prefix_mass, _content_js), strict=True)
    ):
        x_axis, y_axis = _axes(at + offset)
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
        _heading(figure, heading, x_domain[0], share)


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


def attended(view: HeadView, each: int = 5) -> list[Mapping[str, Any]]:
    """The `each` most attended tokens of every condition, in the conditions' order."""
    kept: list[Mapping[str, Any]] = []
    for condition in view.conditions:
        mine = [row for row in view.attended if row["condition"] == condition]
        kept += sorted(mine, key=lambda row: -row["mass"])[:each]
    return kept
