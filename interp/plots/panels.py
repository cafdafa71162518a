"""Panels of unequal size in one drawing: where they stand, their axes, headings and colour bars.

    drawing = Drawing(go.Figure(), width=860, height=540)
    axes = drawing.add(Place(0, 0, 340, 230), "blocks", style.axis("layer"), style.axis("kept"))
    drawing.figure.add_trace(trace.update(**axes))

All lengths are pixels from the drawing's upper left corner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from interp.plots.head_layout import axis_names, write_heading


class Area(NamedTuple):
    """A panel's rectangle."""

    left: float
    top: float
    width: float
    height: float


@dataclass
class Drawing:
    """A figure, and the size of the rectangle between its margins that all panels share."""

    figure: go.Figure
    width: float
    height: float
    panels: int = 0

    def add(
        self, place: Area, heading: str, x: Mapping[str, Any], y: Mapping[str, Any]
    ) -> dict[str, str]:
        """A new panel with these axes and heading; returns what a trace in it must carry."""
        across, up = self.domains(place)
        x_axis, y_axis = axis_names(self.panels)
        self.figure.layout[f"xaxis{x_axis[1:]}"] = {**x, "domain": across, "anchor": y_axis}
        self.figure.layout[f"yaxis{y_axis[1:]}"] = {**y, "domain": up, "anchor": x_axis}
        if heading:
            write_heading(self.figure, heading, across[0], up[1])
        self.panels += 1
        return {"xaxis": x_axis, "yaxis": y_axis}

    def draw(self, traces: Sequence[Any], axes: Mapping[str, str]) -> None:
        """Traces into a panel, whose axes `add` returned."""
        self.figure.add_traces([trace.update(**axes) for trace in traces])

    def domains(self, place: Area) -> tuple[list[float], list[float]]:
        """The rectangle in paper units."""
        right, bottom = place.left + place.width, place.top + place.height
        up = [1 - bottom / self.height, 1 - place.top / self.height]
        across = [place.left / self.width, right / self.width]
        return [min(max(v, 0.0), 1.0) for v in across], [min(max(v, 0.0), 1.0) for v in up]

    def bar(self, place: Area) -> dict[str, Any]:
        """A colour bar at the right of a panel, as high as it."""
        across, up = self.domains(place)
        where = {"x": across[1] + 6 / self.width, "xanchor": "left", "y": up[0]}
        look = {"thickness": 12, "outlinewidth": 0, "tickfont": {"size": 10}, "xpad": 0, "ypad": 0}
        return {**where, **look, "yanchor": "bottom", "len": up[1] - up[0]}


_SIDES = {
    "middle right": (0.5, 0.0),
    "middle left": (-0.5, 0.0),
    "top center": (0.0, 0.5),
    "bottom center": (0.0, -0.5),
    "top right": (0.5, 0.5),
    "top left": (-0.5, 0.5),
    "bottom right": (0.5, -0.5),
    "bottom left": (-0.5, -0.5),
}


def beside(
    points: np.ndarray, names: list[str], others: np.ndarray, size: Area
) -> list[str | None]:
    """At which side of its point (plotly's `textposition`) each label covers nothing; None where
    it would cross another label or a mark everywhere, or leave the panel.

    `points`, `others` (all marks): `[point, 2]`, pixels from the panel's lower left corner. Labels
    are placed in the order given.
    """
    boxes: list[np.ndarray] = []
    chosen: list[str | None] = []
    for point, name in zip(points, names, strict=True):
        found = {side: _box(point, name, *shift) for side, shift in _SIDES.items()}
        free = [s for s, box in found.items() if _fits(box, boxes, size) and _clear(box, others)]
        side = free[0] if free else None
        chosen.append(side)
        boxes += [found[side]] if side else []
    return chosen


def _box(point: np.ndarray, name: str, right: float, up: float) -> np.ndarray:
    """Left, bottom, right, top of a label."""
    half = np.array([3.1 * len(name) + 2, 7.0])
    centre = point + np.array([right * (2 * half[0] + 10), up * 24])
    return np.concatenate([centre - half, centre + half])


def _fits(box: np.ndarray, boxes: list[np.ndarray], size: Area) -> bool:
    inside = (box[:2] >= 0).all() and (box[2:] <= [size.width, size.height]).all()
    return bool(inside) and not any(
        (box[:2] < other[2:]).all() and (other[:2] < box[2:]).all() for other in boxes
    )


def _clear(box: np.ndarray, marks: np.ndarray) -> bool:
    """Whether no mark (of radius 4) lies under a label."""
    return not ((marks > box[:2] - 4) & (marks < box[2:] + 4)).all(axis=1).any()
