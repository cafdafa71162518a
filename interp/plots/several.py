"""Several runs on shared scales: their headlines by depth, and their heads.

    several_layers({"tiny": load_run("A"), "large": load_run("B")}).show()
    several_heads(runs, "content_js").show()

Depth is the share of a model's layers, so that models of other depths lie on one axis.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.names import pair_name
from interp.plots import style
from interp.plots.board import BAR, Board
from interp.plots.lines import band
from interp.plots.maps import Grid, MapPanel, dot_words, draw_alike
from interp.plots.scales import ColourScale
from interp.plots.style import label
from interp.runs.view import NotMeasured, Run
from interp.runs.words import title
from interp.selection import known_measure

if TYPE_CHECKING:
    import pandas as pd

Runs = Mapping[str, Run]
"""Name -> run."""

_DASHES = ("solid", "dash", "dot", "dashdot")


def several_layers(
    runs: Runs,
    measures: tuple[str, ...] = ("relative_l2", "delta_alignment"),
    position: str = "last",
) -> go.Figure:
    """A panel per measure of the residual stream, a line per run's headline; thin: its null."""
    found = {m: _by_depth(runs, m, position) for m in measures}
    kept = [m for m in measures if found[m]]
    if not kept:
        raise NotMeasured(f"none of these runs has {', '.join(measures)} of a headline by layer")
    board = Board(left=72)
    depth = style.axis("depth (share of the model's layers)", range=[-0.02, 1.02])
    panels = board.row([label(known_measure(m).title) for m in kept], 300, depth, shared=False)
    for panel, measure in zip(panels, kept, strict=True):
        signed = known_measure(measure).rounding == "cosine"
        panel.y |= {"range": [-1.05, 1.05], **style.ZERO} if signed else {"rangemode": "tozero"}
        for at, (name, (own, null)) in enumerate(found[measure].items()):
            look = (style.PALETTE[at % len(style.PALETTE)], _DASHES[at % len(_DASHES)])
            panel.draw(_lines(name, _shown(name, runs[name]), own, null, look))
    words = [f"{name}: {_what(run)}" for name, run in runs.items()]
    notes = "Bands are intervals; thin lines of a run's colour are its null pair, where it has one"
    where = f"Residual stream (resid_post). Position: {position}"
    return board.dress(
        "Headlines of several runs by depth", ". ".join([notes, where, *words]) + "."
    )


def _by_depth(
    runs: Runs, measure: str, position: str
) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Rows of every run's headline and of its null, with their depth."""
    found = {}
    for name, run in runs.items():
        rows = [
            run.by_layer(measure, "resid_post", pair, position).assign(
                depth=lambda own, run=run: own["layer"].astype(float) / max(1, run.n_layers - 1)
            )
            if pair
            else run.table.iloc[:0].assign(depth=0.0)
            for pair in (run.headline, run.null_pair)
        ]
        if len(rows[0]):
            found[name] = (rows[0], rows[1])
    return found


def _shown(name: str, run: Run) -> str:
    """A run's name, with a warning where its outputs do not match."""
    return label(f"{name} (FAIL)" if run.verdict().passed is False else name)


def _lines(
    name: str, shown: str, own: pd.DataFrame, null: pd.DataFrame, look: tuple[str, str]
) -> list[go.Scatter]:
    """A run's headline with its interval, and its null; `shown`: how the legend calls it."""
    colour, dash = look
    depth = own["depth"].to_numpy(float)
    low, high = (own[end].to_numpy(float, na_value=np.nan) for end in ("ci_low", "ci_high"))
    first, fixed = own.iloc[0], ("measure", "site", "position", "queries", "condition", "reference")
    line = go.Scatter(
        x=depth,
        y=own["value"].to_numpy(float),
        customdata=np.column_stack([own["layer"].to_numpy(float), low, high]),
        name=shown,
        legendgroup=shown,
        mode="lines+markers",
        line={"color": colour, "dash": dash, "width": 2.2},
        marker={"size": 5, "color": colour},
        hovertemplate=f"<b>{shown}</b><br>layer %{{customdata[0]:.0f}}: %{{y:.4g}}<br>"
        "interval %{customdata[1]:.3g} to %{customdata[2]:.3g}<extra></extra>",
        meta={
            "fixed": {"run": name, **{key: first[key] for key in fixed}},
            "x": "depth",
            "y": "value",
            "custom": ["layer", "ci_low", "ci_high"],
        },
    )
    thin = go.Scatter(
        x=null["depth"].to_numpy(float),
        y=null["value"].to_numpy(float),
        mode="lines",
        line={"color": style.faded(colour, 0.6), "dash": "dot", "width": 1},
        legendgroup=shown,
        showlegend=False,
        hovertemplate=f"<b>{shown}, null</b>: %{{y:.4g}}<extra></extra>",
    )
    return [band(depth, low, high, colour, shown), thin, line]


def several_heads(runs: Runs, measure: str = "content_js", position: str = "last") -> go.Figure:
    """Layer x head of every run's headline, side by side on one scale."""
    known_measure(measure)
    frames: dict[str, pd.DataFrame] = {}
    for name, run in runs.items():
        site = known_measure(measure).head
        rows = run.rows(measure, site, run.headline, position, heads=True)
        if run.headline and len(rows):
            frames[name] = rows
    if not frames:
        raise NotMeasured(f"none of these runs has {measure} of a headline by head")
    cells = [_cells(runs[name], name, rows, position) for name, rows in frames.items()]
    scale = ColourScale.linear(
        [one.grid.values for one in cells], measure, title(measure, next(iter(frames.values())))
    )
    board = Board(right=BAR)
    columns = min(len(cells), 3)
    for start in range(0, len(cells), columns):
        some = cells[start : start + columns]
        height = max(160, min(520, 14 * max(one.grid.values.shape[0] for one in some)))
        x, y = style.axis("head (from 0)"), style.axis("layer (from 0)")
        headings = [one.heading for one in some]
        panels = board.row(headings, height, x, y, shared=False, gap=52, above=34, columns=columns)
        for panel, one in zip(panels, some, strict=True):
            layers, heads = one.grid.values.shape
            panel.x |= style.integer_ticks(heads)
            panel.y |= style.integer_ticks(layers)
    draw_alike(board.panels, cells, "head", scale)
    notes = [dot_words([one.grid for one in cells]), f"One colour scale. Position: {position}"]
    words = [f"{name}: {_what(runs[name])}" for name in frames]
    what = known_measure(measure).title
    return board.dress(
        f"{what[0].upper()}{what[1:]} of several runs, layer by head",
        ". ".join([note for note in [*notes, *words] if note]) + ".",
    )


def _cells(run: Run, name: str, rows: pd.DataFrame, position: str) -> MapPanel:
    pair = run.headline
    assert pair is not None
    grid = Grid.of(pair, rows, rows["head"], (run.n_layers, run.n_heads))
    first = rows.iloc[0]
    fixed: dict[str, Any] = {key: first[key] for key in ("measure", "site", "queries")}
    return MapPanel(
        grid, _shown(name, run), {"run": name, **fixed, "position": position}, dotted=True
    )


def _what(run: Run) -> str:
    """What a run compares, in a caption's words."""
    model, pair = run.manifest.get("model", {}), run.headline
    counted = run.manifest.get("queries", {}).get("matched", "?")
    return (
        f"{pair_name(pair) if pair else 'no headline'} in {model.get('name', 'unnamed')}, "
        f"n = {counted}, seed {run.manifest.get('seed', '?')}, {run.interval}, "
        f"{run.verdict().text.split(',')[0]}"
    )
