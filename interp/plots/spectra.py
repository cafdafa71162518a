"""What an adapter adds to the weights: its spectra, its size, its rank, its new directions.

    spectra(run).show()

Maps are layer by kind of module, the adapter above its control on one scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.colors
import plotly.graph_objects as go

from interp.plots import grids, style
from interp.plots.grids import Grid
from interp.plots.panels import Area, Drawing
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.weights import INTRUDERS, NORM, RANK, Weighed

if TYPE_CHECKING:
    import pandas as pd

LAYERS = 12
"""Most layers whose spectra are drawn."""

_LEFT, _RIGHT, _UPPER, _GAP = 72, 64, 190, 84


def spectra(run: Run) -> go.Figure:
    """Singular values of every module's update, a line per layer; below, relative norm, stable rank
    and intruder dimensions by layer and kind of module. Raises `NotMeasured` without them."""
    of = run.weights
    names = of.shown
    found = {name: _inside(of.matrices(name)) for name in names}
    found = {name: frame for name, frame in found.items() if len(frame)}
    if names[0] not in found:
        raise NotMeasured(f"{names[0]} changes no matrix of a block")
    kinds = _kinds(found[names[0]])
    depth = run.n_layers
    height = min(420, max(120, 16 * depth))
    lower = len(found) * (height + _GAP) - _GAP
    drawing = Drawing(go.Figure(), style.WIDTH - _LEFT - _RIGHT, _UPPER + _GAP + lower)
    _lines(of, drawing, names[0], [kind for kind in kinds if ":" not in kind], depth)
    _maps(of, drawing, found, kinds, height)
    control = f"; below it {names[1]}" if len(found) > 1 else ""
    return style.finish(
        drawing.figure,
        run,
        title=f"What {names[0]} adds to the weights, by module and layer{control}",
        pairs=[],
        note=_note(of, depth),
        plot=round(drawing.height),
        left=_LEFT,
        right=_RIGHT,
        below=66,
    )


def _inside(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["layer"].notna()]


def _kinds(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame.sort_values("order", kind="stable")["kind"]))


def _lines(of: Weighed, drawing: Drawing, condition: str, kinds: list[str], depth: int) -> None:
    """One panel per kind of module: singular values, largest first, on one logarithmic scale."""
    rows = of.rows("singular_value", condition)
    rows = rows[rows["head"].isna() & (rows["value"] > 0)]
    places = of.matrices(condition).set_index("site")[["kind", "name"]]
    rows = rows.join(places, on="site")
    step = -(-depth // LAYERS)
    drawn = [layer for layer in range(depth) if layer % step == 0 or layer == depth - 1]
    colours = _colours(depth)
    values = rows.loc[rows["kind"].isin(kinds), "value"]
    ends = [float(np.log10(values.min())) - 0.1, float(np.log10(values.max())) + 0.1]
    gap = 16
    width = (drawing.width - gap * (len(kinds) - 1)) / len(kinds)
    for at, kind in enumerate(kinds):
        own = rows[rows["kind"] == kind]
        count = int(own["position"].astype(int).max()) + 1
        ticks = style.integer_ticks(count, most=5)
        x = style.axis("direction" if at == 0 else None, **ticks)
        look: dict[str, Any] = {"type": "log", "range": ends, "showticklabels": at == 0}
        y = style.axis("singular value" if at == 0 else None, **look, dtick=1)
        place = Area(at * (width + gap), 0, width, _UPPER)
        axes = drawing.add(place, label(kind, 14), x, y)
        for layer in drawn:
            line = own[own["layer"] == layer]
            if len(line):
                drawing.draw([_line(line, condition, colours[layer], layer)], axes)
    drawing.figure.add_trace(_layer_key(drawing, depth))


def _line(rows: pd.DataFrame, condition: str, colour: str, layer: int) -> go.Scatter:
    name = str(rows.iloc[0]["name"])
    return go.Scatter(
        x=rows["position"].astype(int).to_numpy(),
        y=rows["value"].to_numpy(dtype=np.float32),
        mode="lines+markers",
        line={"color": colour, "width": 1.6},
        marker={"size": 4, "color": colour},
        name=label(name),
        showlegend=False,
        hovertemplate=f"<b>{label(name)}</b>, direction %{{x}}: %{{y:.3g}}<extra></extra>",
        meta={
            "fixed": {
                "measure": "singular_value",
                "condition": condition,
                "site": str(rows.iloc[0]["site"]),
                "layer": layer,
            },
            "x": "direction",
            "y": "value",
        },
    )


def _colours(depth: int) -> list[str]:
    """First layers light, last ones dark."""
    at = np.linspace(0.25, 1.0, depth) if depth > 1 else np.array([0.8])
    return plotly.colors.sample_colorscale(style.SEQUENTIAL, list(at))


def _layer_key(drawing: Drawing, depth: int) -> go.Scatter:
    """Nothing but the colour bar of the lines."""
    _, up = drawing.domains(Area(0, 0, drawing.width, _UPPER))
    scale = [[i / 8, c] for i, c in enumerate(_colours(9))]
    bar = drawing.bar(Area(0, 0, drawing.width, _UPPER)) | {"len": up[1] - up[0]}
    bar |= {"title": {"text": "layer", "side": "top", "font": {"size": 11}}}
    ends = {"cmin": 0, "cmax": max(depth - 1, 1), "colorscale": scale, "colorbar": bar}
    marker = {"color": [0], "size": 0.1, "showscale": True, **ends}
    look: dict[str, Any] = {"mode": "markers", "hoverinfo": "skip", "showlegend": False}
    return go.Scatter(x=[None], y=[None], marker=marker, **look)


def _maps(
    of: Weighed, drawing: Drawing, found: dict[str, pd.DataFrame], kinds: list[str], height: float
) -> None:
    """A row of maps per condition; what shares a measure shares its colours."""
    measures = [m for m in (NORM, RANK, INTRUDERS) if found[of.shown[0]][m].notna().any()]
    gap = 74
    width = (drawing.width - gap * (len(measures) - 1)) / len(measures)
    depth = of.run.n_layers
    for column, measure in enumerate(measures):
        panels = {name: _grid(frame, name, measure, kinds, depth) for name, frame in found.items()}
        scale_name = f"coloraxis{column + 2}"
        for row, (name, grid) in enumerate(panels.items()):
            top = _UPPER + _GAP + row * (height + _GAP)
            place = Area(column * (width + gap), top, width, height)
            trace = grids.cells(grid, {"measure": measure}, "module")
            labels = {str(i): kind for i, kind in enumerate(kinds)}
            trace.update(meta={**trace.meta, "x_labels": labels}, coloraxis=scale_name)
            x = style.axis(None, **module_ticks(kinds), showgrid=False)
            y_title = "layer (from 0)" if column == 0 else None
            y = style.axis(y_title, **style.integer_ticks(depth), showgrid=False)
            heading = f"{label(name, 20)}: {MEASURES[measure].title}"
            drawing.draw([trace], drawing.add(place, heading, x, y))
            if row == 0:
                bar = drawing.bar(place)
        low, high, scale = style.colour_range([g.cells["value"] for g in panels.values()], measure)
        look = {"cmin": low, "cmax": high, "colorscale": scale, "colorbar": bar}
        drawing.figure.layout[scale_name] = look


def _grid(frame: pd.DataFrame, condition: str, measure: str, kinds: list[str], depth: int) -> Grid:
    own = frame[frame["kind"].isin(kinds) & frame[measure].notna()]
    rows = own.rename(columns={measure: "value"})
    rows = rows.assign(**dict.fromkeys(("ci_low", "ci_high", "n", "p_adjusted"), np.nan))
    return Grid.of((condition, None), rows, own["kind"].map(kinds.index), (depth, len(kinds)))


def module_ticks(kinds: list[str]) -> dict[str, Any]:
    """An axis of kinds of modules."""
    ticks = {"tickmode": "array", "tickvals": list(range(len(kinds))), "tickangle": -60}
    names = [label(kind, 14) for kind in kinds]
    return {**ticks, "ticktext": names, "range": [-0.5, len(kinds) - 0.5]}


def _note(of: Weighed, depth: int) -> str:
    thinned = f". Spectra of {LAYERS + 1} layers at most" if depth > LAYERS else ""
    return (
        "Singular values of the update, largest first. Relative norm: ‖ΔW‖ / ‖W‖ (Frobenius). "
        "Stable rank: ‖ΔW‖² (Frobenius) / ‖ΔW‖² (spectral). Intruder dimensions: how many of the "
        f"{of.found['top']} strongest output directions of W + ΔW have a cosine below "
        f"{of.found['epsilon']:g} to all of W's. Weights are exact: no interval; outputs were "
        f"certified on the queries{thinned}"
    )
