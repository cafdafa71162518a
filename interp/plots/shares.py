"""Axes of shares of an effect: all of it at 1, none at 0.

figure.update_yaxes(range=share_range([rows]))
thin_lines(figure, {"xaxis": "x", "yaxis": "y"})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

if TYPE_CHECKING:
    import pandas as pd

LEAST, _MOST = -1.0, 2.0
"""Shares beyond are outside the panel: a part may do harm without bound."""

CUT = f"Shares below {LEAST:g} are outside the panel".replace("-", "−")


def share_range(frames: Sequence[pd.DataFrame]) -> list[float]:
    """From none, or what is below it, to all, or what is above."""
    flat = np.append(_flat(frames), (0.0, 1.0))
    low, high = max(float(flat.min()), LEAST), min(float(flat.max()), _MOST)
    return [low - 0.06 * (high - low), high + 0.06 * (high - low)]


def is_cut(frames: Sequence[pd.DataFrame]) -> bool:
    """Whether anything lies below the panel."""
    return bool((_flat(frames) < LEAST).any())


def _flat(frames: Sequence[pd.DataFrame]) -> np.ndarray:
    parts = [frame[["value", "ci_low", "ci_high"]].to_numpy(float).ravel() for frame in frames]
    flat = np.concatenate([*parts, np.empty(0)])
    return flat[np.isfinite(flat)]


def thin_lines(
    figure: go.Figure, axes: Mapping[str, str], levels: Sequence[float] = (0, 1)
) -> None:
    """Across a panel, at none and at all."""
    place = {"xref": f"{axes['xaxis']} domain", "yref": axes["yaxis"], "x0": 0, "x1": 1}
    for level in levels:
        line = {"color": "#9A9A9A", "width": 1}
        figure.add_shape(type="line", y0=level, y1=level, line=line, layer="below", **place)
