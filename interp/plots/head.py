"""One head, closely: what every condition makes it attend to, its prefix mass, its content JS.

    head_view(HeadView.of(run), run).show()
    attention(lab.run(["big ->"], sites=["pattern"]), "L3H2").show()

A column of its own holds the mass on everything before the query. Tokens label an integer axis:
the same token twice is two columns.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.names import Head, Pair, pair_name, short_name
from interp.plots import style
from interp.plots.board import Board, Panel
from interp.plots.style import label
from interp.runs.heads import HeadView
from interp.runs.view import Run

if TYPE_CHECKING:
    import xarray as xr

_PREFIX_AT = -2
"""The prefix column; column -1 stays empty, 0 is the query's first token."""

_ROWS = "Rows: query tokens; columns: all {} before the query (prefix), then the query's own tokens"
_TITLE = "Attention of head {} under each condition"


def head_view(view: HeadView, run: Run) -> go.Figure:
    """Patterns of every condition on one scale, a menu of example queries, and two summaries.

    Prefix mass comes from the run's table, with intervals, where it has it.
    """
    everything, view = len(view.conditions), view.narrowed(run)
    board = Board(left=110, right=90, below=50)
    panels = _patterns(board, view)
    names = [f"Prefix mass ({_table_or_examples(view, run)[1]})", "Content JS, one dot per query"]
    height, x = max(150, 22 * len(view.conditions)), style.axis(None, rangemode="tozero")
    mass, content = board.row(names, height, x, shared=False, gap=208, above=88)
    _prefix_mass(mass, view, run)
    _content_js(content, view, run)
    _menu(board.figure, view, panels)
    narrowed = f"{len(view.conditions)} of {everything} conditions"
    return board.finish(
        run,
        _TITLE.format(view.head),
        pairs=_shown_pairs(view, run),
        notes=[
            _ROWS.format("mass"),
            f"Shown first: example query 1 of {len(view.tokens)}",
            narrowed if everything > len(view.conditions) else "",
        ],
    )


def attention(acts: xr.Dataset, head: str | Head, query: int = 0) -> go.Figure:
    """One head's attention on one query under every condition, on one scale.

    `acts` is of `Lab.run`, with the site `pattern`; `head` is written `L3H2`. A `ConfigError` names
    what there is where the patterns, the head or the query are not in it.
    """
    view = HeadView.read(acts, Head.parse(head) if isinstance(head, str) else head, query)
    board = Board(left=110, right=90, below=92)
    _patterns(board, view)
    words = (
        f"{_ROWS.format('attention')}. Model: "
        f"{short_name(str(acts.attrs.get('model', 'unnamed')))}. Compared: "
        f"{', '.join(view.conditions)}. n = 1 query, without interval. Not certified: their "
        "outputs may differ."
    )
    return board.dress(_TITLE.format(view.head), words)


# --- patterns ------------------------------------------------------------------------------------


def _patterns(board: Board, view: HeadView) -> list[Panel]:
    """A panel per condition, on one scale, with a trace per example query; the first is shown.

    Few tokens give many narrow panels side by side, many tokens two wide ones.
    """
    count, longest = len(view.conditions), max(map(len, view.tokens), default=1)
    most = min(count, 4 if longest <= 12 else 3 if longest <= 18 else 2)
    columns = math.ceil(count / math.ceil(count / most))
    height = min(max(13 * longest + 10, 110), 460)
    font = {"tickfont": {"size": 10}, "showgrid": False}
    x, y = (style.axis(None, **own, **font) for own in _ticks(view.tokens[0]))
    names, rows = [label(name) for name in view.conditions], []
    for at in range(0, count, columns):
        headings = names[at : at + columns]
        rows.append(
            board.row(headings, height, {**x, "tickangle": -60}, y, gap=26, columns=columns)
        )
    board.one_x(rows)
    panels = [panel for row in rows for panel in row]
    top = float(np.nanmax(view.patterns)) if np.isfinite(view.patterns).any() else 1.0
    scale = {"coloraxis": board.colours(rows[0], (0, top or 1), "Blues", "attention weight")}
    for at, panel in enumerate(panels):
        panel.draw(_cells(view, at, query).update(scale) for query in range(len(view.tokens)))
    return panels


def _cells(view: HeadView, at: int, query: int) -> go.Heatmap:
    """`[query_pos, 2 + key_pos]`: prefix, an empty column, the query's own keys."""
    tokens, condition = view.tokens[query], view.conditions[at]
    length = len(tokens)
    whole = np.asarray(view.patterns[at, query, :length, : length + 1], dtype=np.float32)
    named = {str(i): token for i, token in enumerate(tokens)}
    return go.Heatmap(
        z=np.insert(whole, 1, np.nan, axis=1),
        x=[_PREFIX_AT, -1, *range(length)],
        y=list(range(length)),
        visible=query == 0,
        hoverongaps=False,
        xgap=1,
        ygap=1,
        hovertemplate="at %{y}<br>to %{x}<br>weight %{z:.3f}"
        f"<extra>{label(condition)}</extra>",
        meta={
            "fixed": {"condition": condition, "query": query},
            "x": "key",
            "y": "query_pos",
            "z": "weight",
            "x_labels": {str(_PREFIX_AT): "prefix", **named},
            "y_labels": named,
        },
    )


def _ticks(tokens: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of keys and of queries."""
    y = style.named_ticks(tokens, 14, down=True)
    places, names = [_PREFIX_AT, *y["tickvals"]], ["prefix", *y["ticktext"]]
    ends = [_PREFIX_AT - 0.5, len(tokens) - 0.5]
    return {**y, "tickvals": places, "ticktext": names, "range": ends}, y


def _menu(figure: go.Figure, view: HeadView, panels: list[Panel]) -> None:
    """A drop-down over the example queries; a still picture shows the first."""
    count = len(view.tokens)
    if count < 2:
        return
    traces = list(range(count * len(panels)))
    buttons = []
    for query, tokens in enumerate(view.tokens):
        change = {
            f"{part}axis{panel.axes[f'{part}axis'][1:]}.{name}": value
            for panel in panels
            for part, ticks in zip("xy", _ticks(tokens), strict=True)
            for name, value in ticks.items()
            if name != "tickmode"
        }
        shown = {"visible": [trace % count == query for trace in traces]}
        words = label(f"{query + 1}: {view.labels[query]}", 48)
        buttons.append({"method": "update", "label": words, "args": [shown, change, traces]})
    place = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 20, "r": 0}}
    look = {"bgcolor": "white", "font": {"size": 11}, "showactive": True}
    figure.update_layout(updatemenus=[{"type": "dropdown", "buttons": buttons, **place, **look}])


# --- the head in numbers -------------------------------------------------------------------------


def _rows_below(panel: Panel, unit: str, names: list[str], limit: int) -> None:
    """A panel with a row for each of these, the first on top."""
    panel.x["title"] = style.axis(unit)["title"]
    ticks = style.named_ticks(names, limit, 0.6, down=True)
    panel.y |= {**ticks, "showgrid": False, "tickfont": {"size": 11}}


_Mass = tuple[str, float, float, float]


def _table_or_examples(view: HeadView, run: Run) -> tuple[list[_Mass], str]:
    """Prefix mass by condition with its interval, and over which tokens: of the run's table, or
    without interval over the example queries."""
    frame = run.rows("prefix_mass", "pattern", position="last")
    frame = frame[(frame["layer"] == view.head.layer) & (frame["head"] == view.head.head)]
    rows = frame.set_index("condition")[["value", "ci_low", "ci_high"]].astype(float)
    known = {str(name): row.tolist() for name, row in rows.iterrows()}
    found = [(name, *known[name]) for name in view.conditions if name in known]
    if found:
        return found, "last token"
    ends = [len(tokens) - 1 for tokens in view.tokens]
    for at, condition in enumerate(view.conditions):
        mass = [view.patterns[at, query, end, 0] for query, end in enumerate(ends)]
        found.append((condition, float(np.mean(mass)), np.nan, np.nan))
    return found, "last token, example queries"


def _prefix_mass(panel: Panel, view: HeadView, run: Run) -> None:
    found, _ = _table_or_examples(view, run)
    names = [mass[0] for mass in found]
    value, low, high = np.array([mass[1:] for mass in found], dtype=float).T
    _rows_below(panel, "share of attention", names, 16)
    dots = go.Scatter(
        x=value,
        y=list(range(len(found))),
        mode="markers",
        marker={"size": 9, "color": style.INK},
        showlegend=False,
        error_x=style.whiskers(value, low, high),
        customdata=np.stack([low, high], axis=1),
        hovertemplate="%{y}: %{x:.3g}, interval %{customdata[0]:.3g} to %{customdata[1]:.3g}"
        "<extra></extra>",
        meta={
            "fixed": {"measure": "prefix_mass"},
            "columns": {"condition": names},
            "x": "value",
            "custom": ["ci_low", "ci_high"],
        },
    )
    panel.draw([dots])


def _shown_pairs(view: HeadView, run: Run) -> list[Pair]:
    known: list[Pair] = list(view.pairs)
    return [pair for pair in run.main_pairs if pair in known] or known


def _content_js(panel: Panel, view: HeadView, run: Run) -> None:
    """Every query a dot: a mean may hide that few of them carry a difference."""
    known: list[Pair] = list(view.pairs)
    palette, kept = style.colours(run, known), _shown_pairs(view, run)[:6]
    _rows_below(panel, "JS divergence [nats]", [pair_name(pair) for pair in kept], 26)
    for at, pair in enumerate(kept):
        values, colour = view.content_js[known.index(pair)], palette[pair]
        box = go.Box(
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
        panel.draw([box])
