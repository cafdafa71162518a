"""Scales of axes and colours: linear, logarithmic beyond a knee, of ratios, of shares.

    scale = Symlog.of([damage], decades=3)             # linear around zero, logarithmic beyond
    panel.y |= scale.axis(low, high)
    panel.draw(map(scale.drawn, line(frame, look)))
    ColourScale.linear([grid.cells["value"]], "content_js", "nats")

Hover and table keep the values; only the drawing is moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.registry import MEASURES

if TYPE_CHECKING:
    import pandas as pd


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


@dataclass(frozen=True)
class ColourScale:
    """Colours that maps share: ends, plotly's scale, the bar's title and look.

    `transform`: where colours are not linear in the values; `name` is what the transformed number
    is called in a figure's table.
    """

    ends: tuple[float, float]
    colours: Any
    title: str
    bar: dict[str, Any] = field(default_factory=dict)
    transform: Callable[[np.ndarray], np.ndarray] | None = None
    name: str = "value"

    @classmethod
    def linear(cls, values: Sequence[np.ndarray], measure: str, title: str = "") -> ColourScale:
        """From zero, or centred there where the measure is signed or a value is negative."""
        flat = finite(values)
        top = float(np.abs(flat).max()) if flat.size else 0.0
        top = top if top > 0 else 1.0
        if MEASURES[measure].signed or (flat.size and flat.min() < 0):
            return cls((-top, top), style.DIVERGING, title)
        return cls((0.0, top), style.SEQUENTIAL, title)

    @classmethod
    def symlog(cls, values: Sequence[np.ndarray], measure: str, title: str = "") -> ColourScale:
        """The same on a logarithmic scale, linear below a hundredth of the largest size."""
        plain, scale = cls.linear(values, measure, title), Symlog.of(values, 2)
        low, high = map(float, scale(plain.ends))
        bar = scale.ticks(*plain.ends)
        return cls((low, high), plain.colours, title, bar, scale, "symlog_value")

    @classmethod
    def ratio(cls, values: Sequence[np.ndarray], title: str) -> ColourScale:
        """Of ratios, centred at 1: colour is log2 of the value."""
        with np.errstate(divide="ignore"):
            flat = np.abs(np.log2(finite(values)))
        flat = flat[np.isfinite(flat)]
        top = max(float(flat.max()) if flat.size else 1.0, 0.5)
        step = max(1, round(top / 4))
        ticks = [t for t in range(-12, 13, step) if abs(t) <= top] if top >= 1 else [-0.5, 0, 0.5]
        bar = {"tickvals": ticks, "ticktext": [f"{2.0**t:.3g}" for t in ticks]}
        return cls((-top, top), style.DIVERGING, title, bar, _log2, "log2_value")


def finite(values: Sequence[np.ndarray]) -> np.ndarray:
    """All defined numbers of some arrays."""
    flat = np.concatenate([np.ravel(v) for v in values]) if len(values) else np.empty(0)
    return flat[np.isfinite(flat)]


def _log2(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log2(values)


# --- shares of an effect -------------------------------------------------------------------------

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
    return finite([frame[["value", "ci_low", "ci_high"]].to_numpy(float) for frame in frames])
