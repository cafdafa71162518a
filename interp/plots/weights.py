"""What an adapter adds to the weights, and whether two add the same directions.

    spectra(run).show()             # singular values; norm, rank, intruders by layer and module
    weights_overlap(run).show()     # adapter by adapter, then layer by kind of module

Maps are layer by kind of module, on one scale with what they are compared with.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.colors
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.board import Board
from interp.plots.maps import by_module, draw_alike, module_axis
from interp.plots.scales import ColourScale
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.weights import INTRUDERS, NORM, RANK, SIDES, Weighed
from interp.showing import number

if TYPE_CHECKING:
    import pandas as pd

_SPECTRA = 12
"""Most layers whose spectra are drawn, the last one aside."""

_LETTERED = 14
"""Most conditions whose overlaps are written into the cells."""

_EXACT = "Weights are exact: no interval; outputs were certified on the queries"


def spectra(run: Run) -> go.Figure:
    """Singular values of every module's update, a line per layer; below, relative norm, stable rank
    and intruder dimensions by layer and kind of module. Raises `NotMeasured` without them."""
    of = run.weights
    names = of.shown
    found = {name: _in_blocks(of.matrices(name)) for name in names}
    found = {name: frame for name, frame in found.items() if len(frame)}
    if names[0] not in found:
        raise NotMeasured(f"{names[0]} changes no matrix of a block")
    kinds = _kinds(found[names[0]])
    board = Board(left=72, right=72, below=66)
    _lines(of, board, names[0], [kind for kind in kinds if ":" not in kind])
    _maps(run, board, found, kinds)
    control = f"; below it {names[1]}" if len(found) > 1 else ""
    return board.finish(
        run,
        f"What {names[0]} adds to the weights, by module and layer{control}",
        notes=[
            "Singular values of the update, largest first. Relative norm: ‖ΔW‖ / ‖W‖ (Frobenius). "
            "Stable rank: ‖ΔW‖² (Frobenius) / ‖ΔW‖² (spectral). Intruder dimensions: how many of "
            f"the {of.found['top']} strongest output directions of W + ΔW have a cosine below "
            f"{of.found['epsilon']:g} to all of W's",
            _EXACT,
            f"Spectra of {_SPECTRA + 1} layers at most" if run.n_layers > _SPECTRA else "",
        ],
    )


def _in_blocks(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["layer"].notna()]


def _kinds(frame: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(frame.sort_values("order", kind="stable")["kind"]))


def _lines(of: Weighed, board: Board, condition: str, kinds: list[str]) -> None:
    """One panel per kind of module: singular values, largest first, on one logarithmic scale."""
    rows = of.rows("singular_value", condition)
    rows = rows[rows["head"].isna() & (rows["value"] > 0)]
    rows = rows.join(of.matrices(condition).set_index("site")[["kind", "name"]], on="site")
    depth = of.run.n_layers
    step = -(-depth // _SPECTRA)
    drawn = [layer for layer in range(depth) if layer % step == 0 or layer == depth - 1]
    colours = _layer_colours(depth)
    values = rows.loc[rows["kind"].isin(kinds), "value"]
    ends = [float(np.log10(values.min())) - 0.1, float(np.log10(values.max())) + 0.1]
    y = style.axis("singular value", type="log", range=ends, dtick=1)
    panels = board.row([label(kind, 14) for kind in kinds], 190, style.axis("direction"), y, gap=16)
    for kind, panel in zip(kinds, panels, strict=True):
        own = rows[rows["kind"] == kind]
        panel.x |= style.integer_ticks(int(own["position"].astype(int).max()) + 1, most=5)
        by_layer = ((layer, own[own["layer"] == layer]) for layer in drawn)
        panel.draw(_spectrum(part, condition, colours[at]) for at, part in by_layer if len(part))
    scale = [[i / 8, colour] for i, colour in enumerate(_layer_colours(9))]
    axis = board.colours(panels, (0, max(depth - 1, 1)), scale, "layer")
    marker = {"color": [0], "size": 0.1, "coloraxis": axis}  # what the colour bar hangs on
    look = {"mode": "markers", "hoverinfo": "skip", "showlegend": False}
    panels[0].draw([go.Scatter(x=[None], y=[None], marker=marker, **look)])


def _spectrum(rows: pd.DataFrame, condition: str, colour: str) -> go.Scatter:
    name = label(str(rows.iloc[0]["name"]))
    place = {"site": str(rows.iloc[0]["site"]), "layer": int(rows.iloc[0]["layer"])}
    fixed = {"measure": "singular_value", "condition": condition, **place}
    return go.Scatter(
        x=rows["position"].astype(int).to_numpy(),
        y=rows["value"].to_numpy(dtype=np.float32),
        mode="lines+markers",
        line={"color": colour, "width": 1.6},
        marker={"size": 4, "color": colour},
        name=name,
        showlegend=False,
        hovertemplate=f"<b>{name}</b>, direction %{{x}}: %{{y:.3g}}<extra></extra>",
        meta={"fixed": fixed, "x": "direction", "y": "value"},
    )


def _layer_colours(depth: int) -> list[str]:
    """First layers light, last ones dark."""
    at = np.linspace(0.25, 1.0, depth) if depth > 1 else np.array([0.8])
    return plotly.colors.sample_colorscale(style.SEQUENTIAL, list(at))


def _maps(run: Run, board: Board, found: dict[str, pd.DataFrame], kinds: list[str]) -> None:
    """A row of maps per condition; what shares a measure shares its colours."""
    first = next(iter(found.values()))
    measures = [m for m in (NORM, RANK, INTRUDERS) if first[m].notna().any()]
    y = style.layer_axis(run, most=16)
    rows = []
    for at, name in enumerate(found):
        headings = [f"{label(name, 20)}: {MEASURES[m].title}" for m in measures]
        above = 54 if at == 0 else 0
        rows.append(board.row(headings, _height(run), module_axis(kinds), y, gap=74, above=above))
    board.one_x(rows)
    for measure, panels in zip(measures, zip(*rows, strict=True), strict=True):
        cells = []
        for name, frame in found.items():
            own = frame[frame["kind"].isin(kinds) & frame[measure].notna()]
            own = own.assign(value=own[measure])
            cells.append(by_module(own, kinds, run.n_layers, name, "", {"measure": measure}))
        scale = ColourScale.linear([one.grid.values for one in cells], measure)
        draw_alike(panels, cells, "module", scale)


def _height(run: Run) -> int:
    return min(420, max(120, 16 * run.n_layers))


# --- do they add the same directions? ------------------------------------------------------------


def weights_overlap(run: Run) -> go.Figure:
    """Mean overlap of every two conditions over their matrices, left and right; below, the mean of
    the pairs within the headline's family by layer and kind. Raises `NotMeasured` without pairs.

    Chance is the rank over the dimensions; a space overlaps with itself by 1, which is left blank.
    """
    of = run.weights
    frames = {side: of.overlaps(side) for side in SIDES}
    if all(frame.empty for frame in frames.values()):
        raise NotMeasured("this run has no two changes of the same matrix")
    present = set(frames["left"]["condition"]) | set(frames["left"]["reference"])
    names = [name for name in of.conditions if name in present]
    board = Board(left=132, below=66, right=64)
    _squares(board, frames, names)
    inside = {side: _in_blocks(of.of_family(frame)) for side, frame in frames.items()}
    if all(map(len, inside.values())):
        _family_maps(run, board, inside)
    left, right = (number(float(frame["chance"].mean()), 2) for frame in frames.values())
    return board.finish(
        run,
        "Do different weights change the same directions? Overlap of their strongest ones",
        notes=[
            "Overlap: (1/r)‖U₁ᵀU₂‖² of the r strongest singular directions of two updates, 1: the "
            "same space; mean over matrices. r: the smaller rank, at most "
            f"{of.found['overlap']}. Chance (r/d): {left} left, {right} right on average",
            _family_words(of),
            _EXACT,
        ],
    )


def _squares(board: Board, frames: dict[str, pd.DataFrame], names: list[str]) -> None:
    """Condition by condition, a square per side."""
    x = style.axis(None, **style.named_ticks(names, 18), showgrid=False, tickangle=-40)
    y = style.axis(None, **style.named_ticks(names, 18, down=True), showgrid=False)
    panels = board.row([*SIDES.values()], 34 * max(len(names), 4), x, y, gap=40)
    cells = [_pairwise(frame, names) for frame in frames.values()]
    scale = ColourScale.linear([one[0] for one in cells], "subspace_overlap_left")
    axis = board.colours(panels, scale.ends, scale.colours)
    for side, panel, one in zip(SIDES, panels, cells, strict=True):
        panel.draw([_square(one, names, side).update(coloraxis=axis)])


def _pairwise(frame: pd.DataFrame, names: list[str]) -> np.ndarray:
    """`[3, condition, condition]`: mean overlap, mean chance, number of matrices."""
    pairs = frame.groupby(["condition", "reference"])
    means = pairs[["value", "chance"]].mean().assign(n=pairs.size())
    cells = np.full((3, len(names), len(names)), np.nan, dtype=np.float32)
    for (a, b), row in means.iterrows():
        for i, j in ((a, b), (b, a)):
            cells[:, names.index(i), names.index(j)] = row[["value", "chance", "n"]]
    return cells


def _square(cells: np.ndarray, names: list[str], side: str) -> go.Heatmap:
    labels = {str(i): name for i, name in enumerate(names)}
    return go.Heatmap(
        z=cells[0],
        x=list(range(len(names))),
        y=list(range(len(names))),
        customdata=np.moveaxis(cells[1:], 0, 2),
        texttemplate="%{z:.2f}" if len(names) <= _LETTERED else None,
        textfont={"size": 11},
        xgap=1,
        ygap=1,
        hoverongaps=False,
        hovertemplate="overlap %{z:.3f}, chance %{customdata[0]:.3f}<br>mean of "
        "%{customdata[1]:.0f} matrices<extra></extra>",
        meta={
            "fixed": {"measure": f"subspace_overlap_{side}", "site": "mean over matrices"},
            "x": "reference",
            "y": "condition",
            "x_labels": labels,
            "y_labels": labels,
            "z": "value",
            "custom": ["chance", "matrices"],
        },
    )


def _family_maps(run: Run, board: Board, frames: dict[str, pd.DataFrame]) -> None:
    cells = []
    kinds = list(dict.fromkeys(kind for frame in frames.values() for kind in _kinds(frame)))
    for side, frame in frames.items():
        mean = frame.groupby(["layer", "kind"], as_index=False)["value"].mean()
        chance = number(float(frame["chance"].mean()), 2)
        heading = f"within the family (chance {chance})"
        fixed = {"measure": f"subspace_overlap_{side}"}
        cells.append(by_module(mean, kinds, run.n_layers, "family", heading, fixed))
    y = style.layer_axis(run, most=16)
    headings = [one.heading for one in cells]
    panels = board.row(headings, _height(run), module_axis(kinds), y, gap=40, above=86)
    scale = ColourScale.linear([one.grid.values for one in cells], "subspace_overlap_left")
    draw_alike(panels, cells, "module", scale)


def _family_words(of: Weighed, most: int = 6) -> str:
    names = list(dict.fromkeys(str(name) for pair in of.family for name in pair))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    pairs = f"{len(of.family)} pairs"
    return f"Family: {', '.join(names[:most])}{more}, {pairs}" if names else ""
