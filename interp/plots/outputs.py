"""Do the outputs match? JS divergence and top-1 agreement of every pair beside the tolerance.

    output(run).show()

A pair whose markers lie left of one line and right of the other has matched outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.names import OUTPUT, Pair
from interp.plots import style
from interp.plots.board import Board, Panel
from interp.plots.style import label
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

_FLOOR = 1e-5
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
    every = run.ordered(frame["pair"].tolist())
    pairs = every[:_MOST]
    names = [run.role(pair) for pair in pairs]
    board = Board(left=min(330, 40 + 7 * max(map(len, map(label, names)))), right=34, above=22)
    height = max(120, (34 if len(pairs) < 10 else 27) * len(pairs))
    agreement = style.axis("top-1 agreement [share of queries]", range=[-0.03, 1.03])
    y = style.axis(None, **style.named_ticks(names, down=True))
    panels = board.row(["", ""], height, agreement, y, gap=28)
    panels[0].x = _js_axis(frame)
    for panel, (measure, part) in zip(panels, frames.items(), strict=True):
        for queries in _SETS:
            own = part[(part["queries"] == queries) & part["pair"].isin(pairs)]
            panel.draw([_dots(run, own, measure, queries, pairs)])
        _tolerance(panel, run, measure)
    panels[0].draw(map(_key, _SETS))
    more = f"{_MOST} of {len(every)} pairs; the others are in the table"
    return board.finish(
        run,
        "Output match: JS divergence and top-1 agreement of every pair",
        pairs=pairs,
        notes=[
            f"Next-token distributions, position: {position}. Filled: matched queries, open: "
            f"held-out ones. JS below {_FLOOR:g} is drawn at the edge",
            more if len(every) > len(pairs) else "",
        ],
    )


def _rows(run: Run, measure: str, position: str) -> pd.DataFrame:
    """Rows of all pairs, with `pair`."""
    import pandas as pd

    frame = pd.concat([run.rows(measure, OUTPUT, None, position, queries) for queries in _SETS])
    return frame.assign(pair=[*zip(frame["condition"], frame["reference"], strict=True)])


def _dots(
    run: Run, frame: pd.DataFrame, measure: str, queries: str, pairs: Sequence[Pair]
) -> go.Scatter:
    symbol, shift = _SETS[queries]
    frame = frame.sort_values("pair", key=lambda own: own.map(pairs.index), kind="stable")
    keys = frame["pair"].tolist()
    palette = style.colours(run, pairs)
    columns = ("value", "ci_low", "ci_high", "n")
    custom = np.stack([frame[c].to_numpy(dtype=float, na_value=np.nan) for c in columns], axis=1)
    value, low, high = (_drawn(custom[:, i], measure) for i in range(3))
    colour = [palette[key] for key in keys]
    rim = {"width": 2, "color": colour}
    return go.Scatter(
        x=value,
        y=[pairs.index(key) + shift for key in keys],
        mode="markers",
        showlegend=False,
        marker={"symbol": symbol, "size": 10, "color": colour, "line": rim},
        error_x=style.whiskers(value, low, high, color=style.MUTED),
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
    return np.maximum(values, _FLOOR) if measure == "js_divergence" else values


def _js_axis(frame: pd.DataFrame) -> dict[str, object]:
    top = np.nanmax([float(frame["ci_high"].max()), float(frame["value"].max()), 0.1])
    decades = list(range(-5, 1))
    return style.axis(
        "JS divergence [nats, log scale]",
        type="log",
        range=[np.log10(_FLOOR) - 0.15, np.log10(top) + 0.15],
        tickmode="array",
        tickvals=[10.0**d for d in decades],
        ticktext=[*(f"10<sup>−{-d}</sup>" for d in decades[:-1]), "1"],
    )


def _tolerance(panel: Panel, run: Run, measure: str) -> None:
    found = run.certified(run.headline) or run.manifest.get("certificates", [])
    if not found:
        return
    js = measure == "js_divergence"
    value, sign = found[0]["tolerance_js" if js else "tolerance_top1"], "≤" if js else "≥"
    red = style.LIMIT
    panel.level(value, along="x", color=red, width=1.4, dash="dash")
    panel.write(  # a logarithmic axis takes shapes in data units, annotations in decades
        f"tolerance {sign} {value:g}",
        x=np.log10(value) if js and value > 0 else value,
        y=1,
        yref=panel.domain("y"),
        font={"size": 11, "color": red},
        yanchor="bottom",
        xanchor="center",
    )
