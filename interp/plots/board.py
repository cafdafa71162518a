"""The board that every figure stands on: panels in pixels, their axes, legend, colours, caption.

    board = Board(left=72)
    for panel, measure in zip(board.row(["one", "two"], 250, style.axis("layer")), measures):
        panel.draw(lines(...))
    board.finish(run, "Relative L2 by layer", pairs=pairs, notes=["Bands are intervals"])

Lengths are pixels; a board grows downwards. What enters the legend, which tick labels are drawn and
where colour bars stand is decided here, once for all figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style
from interp.plots.frame import Margins, caption, framed, provenance_words
from interp.plots.labels import apart
from interp.plots.style import label
from interp.runs.view import Run

HEADING = 30
"""Room above a panel for its heading."""

BAR = 96
"""Room at the right of a board for a colour bar."""


_NAME, _LEADER, _LONGEST = 14, 18, 32
"""How high the name of a line is, how far from its panel, and of how many characters at most."""


class LineEnd(NamedTuple):
    """The name of a line, to stand beside the height where it ends: the line's colour and
    `legendgroup`; `strong`: what the figure is about; `quiet`: a control."""

    value: float
    text: str
    colour: str
    group: str
    strong: bool = False
    quiet: bool = False


def names_room(ends: Iterable[LineEnd]) -> int:
    """The right margin that the names of lines need."""
    longest = max((len(end.text) for end in ends), default=0)
    return _LEADER + 14 + round(6.2 * min(longest, _LONGEST))


class Area(NamedTuple):
    """A panel's rectangle, from the board's upper left corner."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """Where it ends on the right."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """Where it ends below."""
        return self.top + self.height


@dataclass
class Panel:
    """A rectangle of a board with two axes of its own; `x` and `y` are their looks."""

    board: Board
    area: Area
    heading: str
    x: dict[str, Any]
    y: dict[str, Any]
    number: int

    @property
    def axes(self) -> dict[str, str]:
        """Names of its axes, as its traces carry them."""
        suffix = "" if self.number == 0 else str(self.number + 1)
        return {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}

    def draw(self, traces: Iterable[Any]) -> None:
        """Traces into this panel; of those of one `legendgroup` the legend shows the first."""
        for trace in traces:
            if trace.legendgroup and trace.showlegend is not False:
                trace.showlegend = trace.legendgroup not in self.board.named
                self.board.named.add(trace.legendgroup)
            self.board.figure.add_trace(trace.update(self.axes))

    def level(self, *values: float, along: str = "y", layer: str = "below", **line: Any) -> None:
        """Thin lines across the panel, at values of its y axis (`along="x"`: upright, of its x);
        `layer="above"`: over its grid and traces."""
        look = {"color": style.RULE, "width": 1, **line}
        other = "x" if along == "y" else "y"
        place = {f"{along}ref": self.axes[f"{along}axis"], f"{other}ref": self.domain(other)}
        for value in values:
            ends = {f"{along}0": value, f"{along}1": value, f"{other}0": 0, f"{other}1": 1}
            shape = {"type": "line", "line": look, "layer": layer, **ends, **place}
            self.board.figure.add_shape(shape)

    def write(self, text: str, **look: Any) -> None:
        """A note in the panel, at its own coordinates unless `xref` or `yref` say otherwise."""
        refs = {"xref": self.axes["xaxis"], "yref": self.axes["yaxis"]}
        self.board.figure.add_annotation({"text": text, "showarrow": False, **refs, **look})

    def name(self, ends: Sequence[LineEnd]) -> None:
        """Names of lines in the margin at the right of the panel, instead of the legend's; where
        there are too many for its height, they are left to the legend. Its y axis has a range."""
        height, (low, high) = self.area.height, self.y["range"]
        if not ends or _NAME * len(ends) > height + _NAME:
            return
        own = [float(np.clip((e.value - low) / (high - low), 0, 1)) * height for e in ends]
        for end, at, up in zip(ends, own, apart(own, height, _NAME), strict=True):
            self.write(
                f"<b>{label(end.text, _LONGEST)}</b>" if end.strong else label(end.text, _LONGEST),
                name=end.group,
                x=1,
                xref=self.domain("x"),
                y=at / height,
                yref=self.domain("y"),
                ax=_LEADER,
                ay=at - up,
                xanchor="left",
                font={"size": 11, "color": style.MUTED if end.quiet else style.INK},
                showarrow=True,
                arrowhead=0,
                arrowwidth=1 if end.quiet else 1.6,
                arrowcolor=end.colour,
                captureevents=True,
            )
            self.board.spoken.add(end.group)

    def domain(self, along: str) -> str:
        """plotly's reference to the panel's own 0 to 1."""
        return f"{self.axes[f'{along}axis']} domain"


class _Bar(NamedTuple):
    """A colour bar to be placed: its colour axis, look, and the panels that it stands beside."""

    axis: str
    look: dict[str, Any]
    beside: Sequence[Panel]


@dataclass
class Board:
    """A figure in the making; `left`, `right`, `below` are its margins, `height` what is used;
    `above`: least room for what stands above the uppermost panels; `spoken`: legend groups whose
    names stand beside their lines."""

    left: int = 64
    right: int = 20
    below: int = 48
    above: int = 12
    height: float = 0
    figure: go.Figure = field(default_factory=go.Figure)
    panels: list[Panel] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    spoken: set[str] = field(default_factory=set)
    bars: list[_Bar] = field(default_factory=list)

    @property
    def width(self) -> float:
        """Between the margins."""
        return style.WIDTH - self.left - self.right

    # --- panels ----------------------------------------------------------------------------------

    def add(
        self, area: Area, heading: str, x: Mapping[str, Any], y: Mapping[str, Any] | None = None
    ) -> Panel:
        """A panel anywhere; the board grows to hold it."""
        panel = Panel(self, area, heading, {**x}, {**(y or style.axis())}, len(self.panels))
        self.panels.append(panel)
        self.height = max(self.height, area.bottom)
        return panel

    def row(
        self,
        headings: Sequence[str],
        height: float,
        x: Mapping[str, Any],
        y: Mapping[str, Any] | None = None,
        *,
        gap: float = 24,
        shared: bool = True,
        above: float = 0,
        columns: int | None = None,
        shares: Sequence[float] = (),
    ) -> list[Panel]:
        """Panels side by side below all others, `above` pixels further down; `shared`: their y axis
        is one. `columns`: as wide as if there were so many. `shares`: how wide each is beside the
        others, where they differ."""
        top = self.height + (above + HEADING) * bool(self.panels)
        parts = shares or [1.0] * (columns or len(headings))
        room = self.width - gap * (len(parts) - 1)
        first: Panel | None = None
        found = []
        for at, heading in enumerate(headings):
            left, width = (room * part / sum(parts) for part in (sum(parts[:at]), parts[at]))
            panel = self.add(Area(left + at * gap, top, width, height), heading, x, y)
            if shared and first:
                panel.y |= {"matches": first.axes["yaxis"], **_unlabelled(panel.y)}
            first = first or panel
            found.append(panel)
        return found

    def one_x(self, rows: Sequence[Sequence[Panel]]) -> None:
        """Panels below each other share their x axis; ticks and title are those of the lowest."""
        for column in range(max(map(len, rows))):
            stack = [row[column] for row in rows if column < len(row)]
            for panel in stack[:-1]:
                panel.x |= _unlabelled(panel.x)
            for panel in stack[1:]:
                panel.x["matches"] = stack[0].axes["xaxis"]

    # --- colours ---------------------------------------------------------------------------------

    def colours(
        self,
        beside: Sequence[Panel],
        ends: tuple[float, float],
        scale: Any,
        title: str = "",
        **look: Any,
    ) -> str:
        """A colour axis that panels share, its bar at the right of them; returns its name."""
        name = f"coloraxis{len(self.bars) + 1 if self.bars else ''}"
        words = {"text": label(title), "side": "right", "font": {"size": 12}}
        bar = {"title": words, "thickness": 14, "outlinewidth": 0, "xpad": 0, "ypad": 0, **look}
        self.figure.layout[name] = {"cmin": ends[0], "cmax": ends[1], "colorscale": scale}
        self.bars.append(_Bar(name, bar, beside))
        return name

    def bar(self, beside: Sequence[Area]) -> dict[str, Any]:
        """Where a colour bar stands: at the right of these, as high as they are together."""
        top, bottom = min(a.top for a in beside), max(a.bottom for a in beside)
        where = {"x": (max(a.right for a in beside) + 8) / self.width, "xanchor": "left"}
        return {**where, "y": 1 - bottom / self.height, "yanchor": "bottom"} | {
            "len": (bottom - top) / self.height,
            "lenmode": "fraction",
        }

    # --- the finished figure ---------------------------------------------------------------------

    def finish(
        self,
        run: Run,
        title: str,
        *,
        pairs: Sequence[Pair] = (),
        notes: Iterable[str] = (),
        queries: str = "matched",
    ) -> go.Figure:
        """Title and caption of a run's figure; empty notes are left out."""
        warning = run.verdict().warning
        words = ". ".join(note.rstrip(".") for note in notes if note)
        figure = self.dress(
            f"{warning} - {title}" if warning else title,
            caption(run, pairs, queries, words),
            failed=bool(warning),
        )
        figure.layout.meta = {**figure.layout.meta, "provenance": provenance_words(run)}
        return figure

    def dress(self, title: str, words: str, failed: bool = False) -> go.Figure:
        """The figure with its title and its caption (`words`)."""
        for panel in self.panels:
            self._place(panel)
        for trace in self.figure.data:
            if trace.legendgroup in self.spoken:
                trace.showlegend = False
        for name, look, beside in self.bars:
            where = self.bar([panel.area for panel in beside])
            self.figure.layout[name].colorbar = {**where, **look}
        above = max(self.above, HEADING * any(panel.heading for panel in self.panels))
        around = Margins(self.left, self.right, above, self.below)
        figure = framed(self.figure, title, words, around, round(self.height), failed)
        bars = {name: [panel.axes["xaxis"] for panel in beside] for name, _, beside in self.bars}
        figure.layout.meta = {**figure.layout.meta, "bars": bars}
        return figure

    def _place(self, panel: Panel) -> None:
        """Axes and heading, now that the board has its height."""
        area, axes = panel.area, panel.axes
        across = np.clip([area.left / self.width, area.right / self.width], 0, 1).tolist()
        up = np.clip([1 - area.bottom / self.height, 1 - area.top / self.height], 0, 1).tolist()
        x, y = (f"{part}axis{axes[f'{part}axis'][1:]}" for part in "xy")
        self.figure.layout[x] = {**panel.x, "domain": across, "anchor": axes["yaxis"]}
        self.figure.layout[y] = {**panel.y, "domain": up, "anchor": axes["xaxis"]}
        if panel.heading:
            self.figure.add_annotation(
                name="heading",
                text=panel.heading,
                x=0,
                y=1,
                xref=panel.domain("x"),
                yref=panel.domain("y"),
                xanchor="left",
                yanchor="bottom",
                showarrow=False,
                font={"size": 13},
            )


def _unlabelled(axis: Mapping[str, Any]) -> dict[str, Any]:
    """What takes tick labels and title from an axis that another one speaks for."""
    return {"showticklabels": False, "title": {**axis.get("title", {}), "text": None}}
