"""Where labels stand so that they cover nothing: beside points, and beside the ends of lines.

sides = beside(points, names, marks, (400, 300))
heights = apart([12.0, 14.0, 90.0], 200, 14)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
    points: np.ndarray, names: list[str], others: np.ndarray, size: tuple[float, float]
) -> list[str | None]:
    """At which side of its point (plotly's `textposition`) each label covers nothing; None where
    it would cross another label or a mark everywhere, or leave the panel.

    `points`, `others` (all marks): `[point, 2]`, pixels from the panel's lower left corner; `size`:
    its width and height. Labels are placed in the order given.
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


def _fits(box: np.ndarray, boxes: list[np.ndarray], size: tuple[float, float]) -> bool:
    inside = (box[:2] >= 0).all() and (box[2:] <= size).all()
    return bool(inside) and not any(
        (box[:2] < other[2:]).all() and (other[:2] < box[2:]).all() for other in boxes
    )


def _clear(box: np.ndarray, marks: np.ndarray) -> bool:
    """Whether no mark (of radius 4) lies under a label."""
    return not ((marks > box[:2] - 4) & (marks < box[2:] + 4)).all(axis=1).any()


def apart(heights: Sequence[float], room: float, step: float) -> np.ndarray:
    """Heights within 0 to `room`, at least `step` from each other, in the order of those given and
    as near to them as can be (least squares).

    With more labels than there is room for (`room < step * (n - 1)`) they go on above it.
    """
    from scipy.optimize import isotonic_regression

    order = np.argsort(heights, kind="stable")
    steps = step * np.arange(len(order))
    free = np.asarray(heights, dtype=float)[order] - steps
    found = np.empty(len(order))
    found[order] = np.clip(isotonic_regression(free).x, 0, max(0, room - steps[-1])) + steps
    return found
