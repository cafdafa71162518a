"""A scale that is linear around zero and logarithmic beyond: for effects that span decades and
may be exactly nothing.

    scale = Symlog.of([damage], decades=3)
    figure.update_yaxes(scale.axis(low, high))
    for trace in lines.line(frame, look):
        figure.add_trace(scale.drawn(trace))

Hover and table keep the values; only the drawing is moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go


@dataclass(frozen=True)
class Symlog:
    """`sign(v) log10(1 + |v| / knee)`: linear up to about `knee`, a power of ten."""

    knee: float

    @classmethod
    def of(cls, values: Iterable[np.ndarray], decades: int) -> Symlog:
        """The knee that many powers of ten below that of the largest size."""
        flat = np.abs(np.concatenate([np.ravel(v) for v in values] or [np.zeros(1)]))
        flat = flat[np.isfinite(flat) & (flat > 0)]
        top = float(np.floor(np.log10(flat.max()))) if flat.size else 0.0
        return cls(10.0 ** (top - decades))

    def __call__(self, values: Any) -> np.ndarray:
        """Where on the axis values lie."""
        values = np.asarray(values, dtype=np.float64)
        return np.asarray(np.sign(values) * np.log10(1 + np.abs(values) / self.knee))

    def ticks(self, low: float, high: float) -> dict[str, Any]:
        """Zero and the powers of ten from the knee on, as far as both ends reach."""
        exponent = round(np.log10(self.knee))
        sizes = [10.0**e for e in range(exponent, exponent + 12)]
        steps = [-s for s in reversed(sizes) if -s >= low] + [0.0] + [s for s in sizes if s <= high]
        texts = [_power(s) for s in steps]
        return {"tickmode": "array", "tickvals": [*self(steps)], "ticktext": texts}

    def axis(self, low: float, high: float) -> dict[str, Any]:
        """Ticks and a range with some room at both ends."""
        ends = self([low, high])
        room = 0.05 * float(ends[1] - ends[0]) or 0.1
        return {**self.ticks(low, high), "range": [float(ends[0]) - room, float(ends[1]) + room]}

    def drawn(self, trace: go.Scatter) -> go.Scatter:
        """A line of `lines.line` on this axis; its values go where hover and table find them."""
        value = np.asarray(trace.y, dtype=np.float32)
        trace.y = self(value).astype(np.float32)
        if trace.meta is None:  # an interval's outline, of which nobody reads numbers
            return trace
        known = {k: v for k, v in trace.meta.items() if k != "y"}
        custom = np.column_stack([trace.customdata, value])
        at = f"%{{customdata[{custom.shape[1] - 1}]:.4g}}"
        hover = trace.hovertemplate.replace("%{y:.4g}", at)
        meta = {**known, "custom": [*known["custom"], "value"]}
        return trace.update(customdata=custom, meta=meta, hovertemplate=hover)


def _power(value: float) -> str:
    """A power of ten as a tick: in figures from 0.001 to 10000, as a power elsewhere."""
    sign, size = "−" if value < 0 else "", abs(value)
    if size == 0 or 0.0009 < size < 20000:
        return f"{sign}{size:g}"
    return f"{sign}10<sup>{round(np.log10(size))}</sup>".replace("-", "−")
