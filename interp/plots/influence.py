"""The equation of influence: what moves the answer's logit, layer by layer and head by head.

    waterfall(run).show()

Terms sum to the total change of the logit (the run's `checks` say how closely).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style
from interp.plots.board import Board
from interp.plots.style import label
from interp.runs.terms import OTHER, TOTAL, Term, in_order, influence_pairs, terms, total
from interp.runs.view import NotMeasured, Run
from interp.showing import number

_KINDS = {
    "attention": "#0072B2",
    "MLP": "#E69F00",
    OTHER: style.RULE,
    TOTAL: style.INK,
}


def waterfall(run: Run, queries: str = "matched") -> go.Figure:
    """Each side of the headline against base, and one against the other, on one scale.

    Bars are means over queries and start where the last one ended. Raises `NotMeasured` without
    rows of influence.
    """
    found = {pair: terms(run, pair, queries) for pair in influence_pairs(run)}
    found = {pair: parts for pair, parts in found.items() if parts}
    if not found:
        raise NotMeasured("this run has no influence rows")
    columns = list(dict.fromkeys(t.name for t in in_order(found.values())))
    low, high = _reach(run, found, queries)
    room = 0.08 * (high - low)
    x = {**_ticks(columns), "showgrid": False}
    y = style.axis("logit", range=[low - room, high + room], **style.ZERO)
    board = Board(below=70)
    board.figure.update_layout(bargap=0.12, barmode="overlay")
    rows = [board.row([label(run.role(pair))], 160, x, y) for pair in found]
    board.one_x(rows)
    for [panel], (pair, parts) in zip(rows, found.items(), strict=True):
        panel.draw([*_bars(pair, parts, columns, queries), *_whisker(run, pair, columns, queries)])
    closing = run.manifest.get("checks", {}).get("influence")
    return board.finish(
        run,
        f"Equation of influence: what moves {_split(run)}",
        pairs=list(found),
        notes=[
            f"Change of {_split(run)} (the answer's first token), as a sum: embedding, attention "
            "(heads and bias) and MLP of each layer, then the rest. Bars are means over queries "
            "and start where the last one ended; the whisker on the total is its interval. One "
            "scale for all panels",
            f"Largest closing error {number(closing, 2)}" if closing is not None else "",
        ],
        queries=queries,
    )


def _reach(run: Run, groups: dict[Pair, list[Term]], queries: str) -> tuple[float, float]:
    ends = [0.0]
    for pair, parts in groups.items():
        ends += np.cumsum([t.value for t in parts if t.kind != TOTAL]).tolist()
        ends += total(run, pair, queries) or []
    return min(ends), max(ends)


def _bars(
    pair: Pair, parts: list[Term], columns: list[str], queries: str
) -> list[go.Bar | go.Scatter]:
    sizes = [0.0 if t.kind == TOTAL else t.value for t in parts]
    starts = np.concatenate([[0.0], np.cumsum(sizes)])[: len(parts)]
    starts[[t.kind == TOTAL for t in parts]] = 0.0
    traces: list[go.Bar | go.Scatter] = [_steps(parts, starts, columns)]
    fixed = {"measure": "influence", "condition": pair[0], "reference": pair[1], "queries": queries}
    for kind, colour in _KINDS.items():
        own = [at for at, part in enumerate(parts) if part.kind == kind]
        if not own:
            continue
        bars, begin = [parts[at] for at in own], starts[own].tolist()
        names = [part.name for part in bars]
        bar = go.Bar(
            x=[columns.index(name) for name in names],
            y=[part.value for part in bars],
            base=begin,
            width=0.82,
            marker={"color": colour},
            name=kind,
            legendgroup=kind,
            text=names,
            textposition="none",
            hovertemplate="<b>%{text}</b><br>%{y:+.4g}<extra></extra>",
            customdata=np.array([[part.value] for part in bars]),
            meta={
                "fixed": fixed,
                "columns": {"term": names, "layer": [p.layer for p in bars], "start": begin},
                "custom": ["value"],
            },
        )
        traces.append(bar)
    return traces


def _steps(parts: list[Term], starts: np.ndarray, columns: list[str]) -> go.Scatter:
    """Thin lines from the end of a bar to the start of the next."""
    xs: list[float] = []
    ys: list[float] = []
    for i, term in enumerate(parts[:-1]):
        end = starts[i] + term.value
        xs += [columns.index(term.name), columns.index(parts[i + 1].name), np.nan]
        ys += [end, end, np.nan]
    line = {"width": 1, "color": style.RULE}
    return go.Scatter(x=xs, y=ys, mode="lines", line=line, showlegend=False, hoverinfo="skip")


def _whisker(run: Run, pair: Pair, columns: list[str], queries: str) -> list[go.Scatter]:
    """The interval of the total, where it has one."""
    found = total(run, pair, queries)
    if found is None:
        return []
    value, low, high = np.array(found)[:, None]
    bar = go.Scatter(
        x=[columns.index(TOTAL)],
        y=value,
        mode="markers",
        marker={"size": 1, "color": style.RULE},
        error_y=style.whiskers(value, low, high, color=style.RULE, thickness=1.6, width=4),
        showlegend=False,
        hoverinfo="skip",
    )
    return [bar]


def _ticks(columns: list[str]) -> dict[str, Any]:
    """Every term's name where there are few; in a deep model every few layers and the total."""
    at = {name: place for place, name in enumerate(columns)}
    if len(columns) > 32:
        layers = [c for c in columns if c.startswith("attention ")]
        step = -(-len(layers) // 10)
        names = {c: c.removeprefix("attention ") for c in layers[::step]} | {TOTAL: TOTAL}
        title = "layer (attention, then MLP)"
    else:
        names, title = {c: c for c in columns}, None
    look = {"tickvals": [at[c] for c in names], "ticktext": [label(n) for n in names.values()]}
    look |= {"tickangle": 0 if title else -45, "range": [-0.7, len(columns) - 0.3]}
    return style.axis(title, tickmode="array", **look)


def _split(run: Run) -> str:
    """What the run split into its parts."""
    against = run.manifest.get("config", {}).get("against")
    return f"the lead of the answer over “{against}”" if against else "the logit of the answer"
