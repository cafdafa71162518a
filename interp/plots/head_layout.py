"""Where the panels of one head stand: patterns in rows, then a strip of two summaries.

    grid = layout_for(panels=4, tokens=12)
    x_domain, y_domain = grid.panel(0)

Few tokens give many narrow panels side by side, many tokens two wide ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import plotly.graph_objects as go

from interp.plots import style


@dataclass(frozen=True)
class Layout:
    """Panels in pixels: `columns` x `rows` of `width` x `height`, then one strip at the bottom."""

    columns: int
    rows: int
    width: float
    height: float
    left: float = 110
    gap_x: float = 26
    gap_y: float = 30
    ticks: float = 74
    strip: float = 150

    @property
    def span(self) -> tuple[float, float]:
        """Width and height of the drawing."""
        across = self.columns * self.width + (self.columns - 1) * self.gap_x
        down = self.rows * (self.height + self.gap_y) - self.gap_y
        return across, down + self.ticks + self.gap_y + 14 + self.strip

    def panel(self, index: int) -> tuple[list[float], list[float]]:
        """Domains (x, y) of panel `index`, in paper units."""
        row, column = divmod(index, self.columns)
        across, down = self.span
        x = column * (self.width + self.gap_x)
        y = row * (self.height + self.gap_y)
        x_domain = [x / across, min(1.0, (x + self.width) / across)]
        return x_domain, [max(0.0, 1 - (y + self.height) / down), 1 - y / down]

    def bottom(self, panels: int) -> list[int]:
        """The lowest panel of each column."""
        return [i for i in range(panels) if i + self.columns >= panels]


def layout_for(panels: int, tokens: int, strip: float | None = None) -> Layout:
    """Rows of equally many panels, as wide as the tokens' labels need; the strip as high as its
    summaries need, unless `strip` says."""
    most = min(panels, 4 if tokens <= 12 else 3 if tokens <= 18 else 2)
    columns = math.ceil(panels / math.ceil(panels / most))
    width = (style.WIDTH - 200 - 26 * (columns - 1)) / columns
    height = min(max(13 * tokens + 10, 90), 460)
    rows, summaries = math.ceil(panels / columns), max(150, 22 * panels)
    return Layout(columns, rows, width, height, strip=summaries if strip is None else strip)


def axis_names(at: int) -> tuple[str, str]:
    """plotly's names of the x and y axis of panel `at`."""
    suffix = "" if at == 0 else str(at + 1)
    return f"x{suffix}", f"y{suffix}"


def write_heading(figure: go.Figure, text: str, x: float, y: float) -> None:
    """A panel's heading, above its upper left corner (paper units)."""
    place = {"xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
    figure.add_annotation(text=text, x=x, y=y, showarrow=False, font={"size": 13}, **place)
