"""The equivalence ladder by layer: how much of the KL goes at every rung, map by map.

    equivalence_ladder(run).show()

Above, mapped states in the run of the condition that they are mapped to; below, base's mapped
states in base's own run, and maps within a family. `NotMeasured` where the run has no ladder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style
from interp.plots.bands import outline
from interp.plots.board import Board
from interp.plots.exchanges import LOWEST
from interp.plots.lines import LinePanel, Look, line
from interp.plots.style import label
from interp.runs.ladder import INTERCHANGED, STREAM_SITE, Laddered
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

_LOOKS = {
    "constant": Look("constant", "#E69F00", "dash", "square"),
    "gated": Look("gated", "#CC79A7", "dot", "triangle-up"),
    "rigid": Look("rigid", "#009E73", "dashdot", "diamond"),
    "affine": Look("affine", "#D55E00", "solid", "x"),
    INTERCHANGED: Look("full interchange", style.INK, "longdash", "circle-open"),
}
_BLUES = ("#9ECAE1", "#6BAED6", "#4292C6", "#2171B5", "#08519C", "#08306B")
"""Of low-rank maps, the lowest first."""
_BANDED = ("constant", "affine", INTERCHANGED)
"""Lines whose intervals are drawn; of the others they are seen on hovering."""
_BETWEEN = 44
"""Room between rows, for the ticks and the title of the upper one."""
_ARROWS = {"mapped": "→", "steered": "steered to"}
_NULL = "null: control in a condition's place"


def equivalence_ladder(run: Run, position: str = "all") -> go.Figure:
    """Recovery by layer and rung at all tokens (or those of a segment); null maps as bands."""
    run = run.climbed()
    of = run.ladder
    stitched = [
        _panel(of, a, b, "mapped", position) for a, b, k in of.maps if k in ("base", "pair")
    ]
    others = [_panel(of, a, b, "steered", position) for a, b, k in of.maps if k == "base"]
    others += [_panel(of, a, b, "mapped", position) for a, b, k in of.maps if k == "within"]
    rows = [kept for row in (stitched, others) if (kept := [panel for panel in row if panel.lines])]
    if not rows:
        raise NotMeasured("no map of this run's ladder has a recovery")
    board = Board(left=72)
    for row in rows:
        _draw(board, row, style.layer_axis(run, most=8), max(map(len, rows)))
    return board.finish(run, _title(position), notes=_notes(of, rows), queries=of.deciding)


def _draw(board: Board, row: Sequence[RungPanel], x: dict[str, Any], columns: int) -> None:
    """Panels on one range of recovery, from the largest harm that is shown."""
    low = max(LOWEST, min(0.0, *(panel.ends[0] for panel in row))) - 0.06
    y = style.axis(row[0].unit, range=[low, 1.08])
    headings = [panel.heading for panel in row]
    for drawn, panel in zip(
        board.row(headings, 250, x, y, columns=columns, above=_BETWEEN), row, strict=True
    ):
        drawn.draw(panel.traces())
        drawn.level(0, 1)


@dataclass(frozen=True)
class RungPanel(LinePanel):
    """The rungs of one map above the band of its nulls."""

    null: go.Scatter | None = None

    def traces(self) -> list[go.Scatter]:
        """The null's band, then lines, a few of them with intervals."""
        drawn = [] if self.null is None else [self.null]
        banded = {_LOOKS[name].name for name in _BANDED}
        for look, frame in self.lines:
            drawn += line(frame, look)[look.name not in banded :]
        return drawn


def _panel(of: Laddered, source: str, target: str, prefix: str, position: str) -> RungPanel:
    """All rungs of a map, in one of its receiving runs."""
    measure, pair = f"{prefix}_recovery", (source, target)
    found = [(look, _rows(of, measure, pair, rung, position)) for rung, look in looks(of).items()]
    return RungPanel(
        [(look, frame) for look, frame in found if len(frame)],
        heading=f"{label(source, 14)} {_ARROWS[prefix]} {label(target, 14)}",
        unit="recovery in the target's run" if prefix == "mapped" else "recovery",
        null=_null(of, measure, of.nulls_of(source, target), position),
    )


def looks(of: Laddered) -> dict[str, Look]:
    """Rung -> its line, full interchange last."""
    low = [rung for rung in of.rungs if rung not in _LOOKS]
    at = np.linspace(0, len(_BLUES) - 1, max(2, len(low))).round().astype(int)
    blues = {
        rung: Look(rung.replace("_", " "), _BLUES[i]) for rung, i in zip(low, at, strict=False)
    }
    return {rung: {**_LOOKS, **blues}[rung] for rung in [*of.rungs, INTERCHANGED]}


def _rows(of: Laddered, measure: str, pair: Pair, rung: str, position: str) -> pd.DataFrame:
    return of.run.by_layer(measure, f"{STREAM_SITE}:{rung}", pair, position, of.deciding)


def _null(of: Laddered, measure: str, pairs: Sequence[Pair], position: str) -> go.Scatter | None:
    """From the least to the most that any rung recovers of the null maps."""
    frames = [_rows(of, measure, pair, rung, position) for pair in pairs for rung in of.rungs]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return None
    layers = sorted({int(layer) for frame in frames for layer in frame["layer"]})
    values = np.full((len(frames), len(layers)), np.nan)
    for row, frame in zip(values, frames, strict=True):
        row[[layers.index(int(layer)) for layer in frame["layer"]]] = frame["value"].to_numpy(float)
    known = np.isfinite(values).any(0)
    at, values = np.array(layers)[known], values[:, known]
    low, high = np.nanmin(values, 0), np.nanmax(values, 0)
    xs, ys = outline(at, low, high)
    return go.Scatter(
        x=xs,
        y=ys,
        fill="toself",
        fillcolor="rgba(110,110,110,0.20)",
        mode="lines",
        line={"width": 0.6, "color": "rgba(110,110,110,0.6)"},
        name=_NULL,
        legendgroup="null",
        legendrank=1001,
        hoverinfo="skip",
        meta={
            "fixed": {"measure": measure, "band": "; ".join(f"{a} to {b}" for a, b in pairs)},
            "table": {"layer": at.tolist(), "low": low.tolist(), "high": high.tolist()},
        },
    )


def _title(position: str) -> str:
    where = "" if position == "all" else f", {position} tokens"
    return f"Which map makes one condition's states do for the other's?{where}"


def _notes(of: Laddered, rows: Sequence[Sequence[RungPanel]]) -> list[str]:
    least = min(panel.ends[0] for row in rows for panel in row)
    fitted = of.found["n"]["fitted"]
    return [
        "Recovery: the part that goes of KL(target ‖ run) with the source's unmapped state in its "
        "place, summed over the answer's tokens; undefined, and left out, where that KL is within "
        f"{of.found['tolerance']:g} nats",
        f"Maps of the residual stream, fitted on {fitted} other queries ({of.found['tokens']} "
        f"tokens; width {of.run.manifest['model']['d_model']}); a gate reads the source's state of "
        "that token alone",
        "Grey: from the least to the most that constant to affine recover with neutral text or a "
        "random LoRA in a condition's place"
        if any(p.null for row in rows for p in row)
        else "",
        f"A rung suffices within {of.margin:g} of full interchange. Bands: intervals of constant, "
        "affine and full interchange",
        f"Recovery below −{-LOWEST:g} is off the axis" if least < LOWEST else "",
    ]
