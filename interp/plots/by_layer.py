"""Divergence layer by layer: lines with intervals, sites as columns and measures as rows.

    layers(run).show()
    layers(run, position="mean", measures=("cosine",))

Pairs keep their colour and dash in every panel; a pair without defined values is not drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots import reading, style
from interp.plots.text import Pair, label
from interp.results import Run

if TYPE_CHECKING:
    import pandas as pd

SITES = {
    "resid_post": "residual stream",
    "attn_out": "attention output",
    "mlp_out": "MLP output",
}


def layers(
    run: Run,
    position: str = "last",
    measures: Sequence[str] = ("relative_l2", "delta_alignment"),
    queries: str = "matched",
) -> go.Figure:
    """Measures of whole layers against depth: headline, its null, and both sides against base.

    One colour and one dash per pair, bands are the table's intervals, one y axis per measure.
    Raises `NotMeasured` when the run has no such rows.
    """
    pairs = reading.main_pairs(run.manifest)
    cells = {(m, s): _by_pair(run, m, s, pairs, position, queries) for m in measures for s in SITES}
    sites = [s for s in SITES if any(cells[m, s] for m in measures)]
    kept = [m for m in measures if any(cells[m, s] for s in sites)]
    if not kept:
        raise reading.NotMeasured(
            f"no per-layer rows of {', '.join(measures)} at position {position}"
        )
    figure = make_subplots(
        len(kept),
        len(sites),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.025,
        vertical_spacing=0.06,
        column_titles=[f"{SITES[s]} ({s})" for s in sites],
    )
    figure.update_annotations(font={"size": 13})
    _draw(figure, run, cells, kept, sites)
    shown = [p for p in pairs if any(p in cell for cell in cells.values())]
    first = " and ".join(reading.NAMES.get(m, m) for m in kept)
    return style.finish(
        figure,
        run.manifest,
        title=f"{first[0].upper()}{first[1:]} by layer, {_where(position)}",
        pairs=shown,
        queries=queries,
        note=f"Bands are intervals. Position: {position}",
        plot=250 * len(kept),
        legend=True,
        left=72,
    )


def _where(position: str) -> str:
    named = {"last": "last query token", "mean": "mean over query tokens"}
    return named.get(position, f"query token {position}")


def _by_pair(
    run: Run, measure: str, site: str, pairs: Sequence[Pair], position: str, queries: str
) -> dict[Pair, pd.DataFrame]:
    """Pair -> its rows in layer order; pairs without a single defined value are left out."""
    found = {}
    for pair in pairs:
        frame = reading.rows(run, measure, site, pair, position, queries)
        frame = frame[frame["head"].isna() & frame["layer"].notna()].sort_values("layer")
        if frame["value"].notna().any():
            found[pair] = frame
    return found


def _draw(
    figure: go.Figure,
    run: Run,
    cells: dict[tuple[str, str], dict[Pair, pd.DataFrame]],
    measures: Sequence[str],
    sites: Sequence[str],
) -> None:
    depth = int(run.manifest["model"]["n_layers"])
    named: set[Pair] = set()
    for row, measure in enumerate(measures, 1):
        frames = [frame for site in sites for frame in cells[measure, site].values()]
        for column, site in enumerate(sites, 1):
            for pair, frame in cells[measure, site].items():
                for trace in _line(run, pair, frame, pair not in named):
                    figure.add_trace(trace, row=row, col=column)
                named.add(pair)
        title = reading.NAMES.get(measure, measure) + reading.units(frames[0])
        figure.update_yaxes(style.axis(None), row=row)
        figure.update_yaxes(title_text=label(title), row=row, col=1)
        _limits(figure, row, measure, frames)
    ticks = style.integer_ticks(depth, most=12)
    figure.update_xaxes(style.axis(None, **ticks))
    figure.update_xaxes(title_text="layer (from 0)", row=len(measures))


def _limits(figure: go.Figure, row: int, measure: str, frames: list[pd.DataFrame]) -> None:
    if measure in reading.SIGNED:
        zero = {"zeroline": True, "zerolinecolor": "#9A9A9A", "zerolinewidth": 1}
        figure.update_yaxes(range=[-1.05, 1.05], row=row, **zero)
    else:
        ends = [np.nanmax(f[["value", "ci_high"]].to_numpy(dtype=float)) for f in frames]
        figure.update_yaxes(range=[0, 1.08 * max(ends) or 1], row=row)


def _line(run: Run, pair: Pair, frame: pd.DataFrame, first: bool) -> list[go.Scatter]:
    colour = style.colours(run.manifest)[pair]
    layer = frame["layer"].to_numpy(dtype=np.int16)
    value, low, high = (frame[c].to_numpy(dtype=np.float32) for c in ("value", "ci_low", "ci_high"))
    custom = np.stack([low, high, frame["n"].to_numpy(dtype=np.float32, na_value=np.nan)], axis=1)
    name = label(reading.role(pair, run.manifest))
    row = frame.iloc[0]
    line = go.Scatter(
        x=layer,
        y=value,
        customdata=custom,
        name=name,
        legendgroup=name,
        showlegend=first,
        mode="lines+markers",
        line={"color": colour, "width": 2.2, "dash": style.dashes(run.manifest)[pair]},
        marker={"size": 5, "color": colour},
        hovertemplate=f"<b>{name}</b><br>layer %{{x}}: %{{y:.4g}}<br>"
        "interval %{customdata[0]:.3g} to %{customdata[1]:.3g}, n = %{customdata[2]:.0f}"
        "<extra></extra>",
        meta={
            "fixed": {k: row[k] for k in ("measure", "site", "position", "queries")}
            | {"condition": pair[0], "reference": pair[1]},
            "x": "layer",
            "y": "value",
            "custom": ["ci_low", "ci_high", "n"],
        },
    )
    return [_band(layer, low, high, colour, name), line]


def _band(
    layer: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, name: str
) -> go.Scatter:
    """One polygon for each stretch of layers that has an interval."""
    xs: list[float] = []
    ys: list[float] = []
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        if len(run):
            xs += [*layer[run], *layer[run][::-1], layer[run][0], np.nan]
            ys += [*low[run], *high[run][::-1], low[run][0], np.nan]
    return go.Scatter(
        x=np.array(xs, dtype=np.float32),
        y=np.array(ys, dtype=np.float32),
        fill="toself",
        mode="lines",
        line={"width": 0.5, "color": style.faded(colour, 0.25)},
        fillcolor=style.faded(colour, 0.18),
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )
