"""Do the outputs match? JS divergence and top-1 agreement of every pair beside the tolerance.

    output(run).show()

A pair whose markers lie left of one line and right of the other has matched outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import OUTPUT, Pair
from interp.plots import style
from interp.plots.text import label
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

FLOOR = 1e-5
"""JS divergences below this are drawn at the edge of the logarithmic axis."""

_MOST = 16
"""How many pairs are drawn; all are in the table."""

_SETS = {"matched": ("circle", -0.16), "heldout": ("diamond-open", 0.16)}


def output(run: Run, position: str = "last") -> go.Figure:
    """One line per pair, headline first: filled for matched queries, open for held-out ones."""
    frames = {m: _rows(run, m, position) for m in ("js_divergence", "top1_agreement")}
    frame = frames["js_divergence"]
    if frame.empty:
        raise NotMeasured(f"this run has no output rows at position {position}")
    every = _order(frame, run)
    pairs = every[:_MOST]
    frames = {m: _of(part, pairs) for m, part in frames.items()}
    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04)
    for column, (measure, part) in enumerate(frames.items(), 1):
        for queries in _SETS:
            trace = _dots(run, part[part["queries"] == queries], measure, queries, pairs)
            figure.add_trace(trace, row=1, col=column)
        _tolerance(figure, run, measure, column)
    figure.add_traces([_key(queries) for queries in _SETS])
    figure.update_xaxes(_js_axis(frame), row=1, col=1)
    figure.update_xaxes(
        style.axis("top-1 agreement [share of queries]"), range=[-0.03, 1.03], col=2
    )
    more = len(every) > len(pairs)
    names = [label(run.role(p)) for p in pairs]
    ticks = {"tickmode": "array", "tickvals": list(range(len(pairs))), "ticktext": names}
    figure.update_yaxes(style.axis(None, **ticks), range=[len(pairs) - 0.5, -0.5])
    return style.finish(
        figure,
        run,
        title="Output match: JS divergence and top-1 agreement of every pair",
        pairs=pairs,
        note=f"Next-token distributions, position: {position}. Filled: matched queries, open: "
        f"held-out ones. JS below {FLOOR:g} is drawn at the edge"
        + (f". {_MOST} of {len(every)} pairs; the others are in the table" if more else ""),
        plot=max(120, (34 if len(pairs) < 10 else 27) * len(pairs)),
        legend=True,
        right=34,
        left=min(330, 40 + 7 * max(map(len, names))),
    )


def _rows(run: Run, measure: str, position: str) -> pd.DataFrame:
    parts = [run.rows(measure, OUTPUT, None, position, queries) for queries in _SETS]
    import pandas as pd

    return pd.concat(parts)


def _order(frame: pd.DataFrame, run: Run) -> list[Pair]:
    """Headline, nulls, sides and floors first, then the rest as the table has it."""
    pairs = zip(frame["condition"], frame["reference"], strict=True)
    return run.ordered([(str(c), str(r)) for c, r in pairs])


def _of(frame: pd.DataFrame, pairs: Sequence[Pair]) -> pd.DataFrame:
    keys = zip(frame["condition"], frame["reference"], strict=True)
    return frame[[key in pairs for key in keys]]


def _dots(
    run: Run, frame: pd.DataFrame, measure: str, queries: str, pairs: Sequence[Pair]
) -> go.Scatter:
    symbol, shift = _SETS[queries]
    order = [pairs.index(p) for p in zip(frame["condition"], frame["reference"], strict=True)]
    frame = frame.iloc[np.argsort(order, kind="stable")]
    keys = list(zip(frame["condition"], frame["reference"], strict=True))
    palette = style.colours(run, pairs)
    columns = ("value", "ci_low", "ci_high", "n")
    custom = np.stack([frame[c].to_numpy(dtype=float, na_value=np.nan) for c in columns], axis=1)
    value, low, high = (_drawn(custom[:, i], measure) for i in range(3))
    colour = [palette[key] for key in keys]
    return go.Scatter(
        x=value,
        y=[pairs.index(key) + shift for key in keys],
        mode="markers",
        showlegend=False,
        marker={
            "symbol": symbol,
            "size": 10,
            "color": colour,
            "line": {"width": 2, "color": colour},
        },
        error_x={
            "type": "data",
            "array": np.nan_to_num(high - value),
            "arrayminus": np.nan_to_num(value - low),
            "color": style.MUTED,
            "thickness": 1.4,
            "width": 3,
        },
        text=[label(run.role(key)) for key in keys],
        customdata=custom,
        hovertemplate="<b>%{text}</b><br>%{customdata[0]:.4g} (interval %{customdata[1]:.3g} to "
        "%{customdata[2]:.3g}), n = %{customdata[3]:.0f}<extra></extra>",
        meta={
            "fixed": {"measure": measure, "queries": queries},
            "columns": {"condition": [k[0] for k in keys], "reference": [k[1] for k in keys]},
            "custom": list(columns),
        },
    )


def _key(queries: str) -> go.Scatter:
    """The legend's entry: colour means the pair, so that this one has none."""
    name = "held-out queries" if queries == "heldout" else f"{queries} queries"
    marker = {"symbol": _SETS[queries][0], "size": 10, "color": style.MUTED, "line": {"width": 2}}
    return go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name)


def _drawn(values: np.ndarray, measure: str) -> np.ndarray:
    return np.maximum(values, FLOOR) if measure == "js_divergence" else values


def _js_axis(frame: pd.DataFrame) -> dict[str, object]:
    top = np.nanmax([float(frame["ci_high"].max()), float(frame["value"].max()), 0.1])
    decades = list(range(-5, 1))
    return style.axis(
        "JS divergence [nats, log scale]",
        type="log",
        range=[np.log10(FLOOR) - 0.15, np.log10(top) + 0.15],
        tickmode="array",
        tickvals=[10.0**d for d in decades],
        ticktext=["0.00001", "0.0001", "0.001", "0.01", "0.1", "1"],
    )


def _tolerance(figure: go.Figure, run: Run, measure: str, column: int) -> None:
    found = run.certified(run.headline)
    found = found or run.manifest.get("certificates", [])
    if not found:
        return
    key = "tolerance_js" if measure == "js_divergence" else "tolerance_top1"
    value, sign = found[0][key], "≤" if measure == "js_divergence" else "≥"
    red, axis = "#B00020", "" if column == 1 else "2"
    line = {"color": red, "width": 1.4, "dash": "dash"}
    ends = {"x0": value, "x1": value, "y0": 0, "y1": 1}
    figure.add_shape(type="line", xref=f"x{axis}", yref="paper", line=line, layer="below", **ends)
    figure.add_annotation(  # a logarithmic axis takes shapes in data units, annotations in decades
        x=np.log10(value) if column == 1 and value > 0 else value,
        xref=f"x{axis}",
        y=1,
        yref="paper",
        text=f"tolerance {sign} {value:g}",
        font={"size": 11, "color": red},
        showarrow=False,
        yanchor="bottom",
        xanchor="center",
    )
