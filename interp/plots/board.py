"""The board that every figure stands on: panels in pixels, their axes, legend, colours, caption.

    board = Board(left=72)
    for panel, measure in zip(board.row(["one", "two"], 250, style.axis("layer")), measures):
        panel.draw(lines(...))
    board.finish(run, "Relative L2 by layer", pairs=pairs, notes=["Bands are intervals"])

Lengths are pixels; a board grows downwards. What enters the legend, which tick labels are drawn and
where colour bars stand is decided here, once for all figures.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair, pair_name
from interp.plots import style
from interp.plots.style import label, text_lines, wrapped
from interp.runs.view import Run

HEADING = 30
"""Room above a panel for its heading."""

_TITLE_LINE, _CAPTION_LINE, _LEGEND, _LEGEND_LINE = 24, 15, 30, 21
_CAPTION_WIDTH, _TITLE_WIDTH = 185, 100


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

    def domain(self, along: str) -> str:
        """plotly's reference to the panel's own 0 to 1."""
        return f"{self.axes[f'{along}axis']} domain"


class _Bar(NamedTuple):
    """A colour bar to be placed: its colour axis, look, and the panels that it stands beside."""

    axis: str
    look: dict[str, Any]
    beside: Sequence[Area]


@dataclass
class Board:
    """A figure in the making; `left`, `right`, `below` are its margins, `height` what is used;
    `above`: least room for what stands above the uppermost panels."""

    left: int = 64
    right: int = 20
    below: int = 48
    above: int = 12
    height: float = 0
    figure: go.Figure = field(default_factory=go.Figure)
    panels: list[Panel] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
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
                untitled = {**panel.y.get("title", {}), "text": None}
                panel.y |= {"matches": first.axes["yaxis"], "showticklabels": False}
                panel.y["title"] = untitled
            first = first or panel
            found.append(panel)
        return found

    def one_x(self, rows: Sequence[Sequence[Panel]]) -> None:
        """Panels below each other share their x axis; ticks and title are those of the lowest."""
        for column in range(max(map(len, rows))):
            stack = [row[column] for row in rows if column < len(row)]
            for panel in stack[:-1]:
                untitled = {**panel.x.get("title", {}), "text": None}
                panel.x |= {"showticklabels": False, "title": untitled}
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
        self.bars.append(_Bar(name, bar, [panel.area for panel in beside]))
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
        return self.dress(
            f"{warning} - {title}" if warning else title,
            caption(run, pairs, queries, words),
            failed=bool(warning),
        )

    def dress(self, title: str, words: str, failed: bool = False) -> go.Figure:
        """The figure with its title and its caption (`words`)."""
        for panel in self.panels:
            self._place(panel)
        for name, look, beside in self.bars:
            self.figure.layout[name].colorbar = {**self.bar(beside), **look}
        legend = any(t.name and t.showlegend is not False for t in self.figure.data)
        top = max(self.above, HEADING * any(p.heading for p in self.panels)) + legend * (
            _LEGEND + _LEGEND_LINE * (_legend_rows(self.figure) - 1)
        )
        heading = 14 + _TITLE_LINE * len(text_lines(title, _TITLE_WIDTH))
        footer = 12 + _CAPTION_LINE * len(text_lines(words, _CAPTION_WIDTH))
        height = heading + top + round(self.height) + self.below + footer
        self.figure.update_layout(
            template="none",
            width=style.WIDTH,
            height=height,
            margin={
                "l": self.left,
                "r": self.right,
                "t": heading + top,
                "b": self.below + footer,
            },
            font={"family": style.FONT, "size": 12, "color": style.INK},
            title=_title(title, failed),
            showlegend=legend,
            legend=_legend(heading / height),
            hoverlabel={"align": "left", "font": {"family": style.FONT, "size": 12}},
            paper_bgcolor="white",
            plot_bgcolor="white",
            meta={
                "title": title,
                "caption": words,
                "heading": heading,
                "footer": footer,
                "top": top,
            },
        )
        self.figure.add_annotation(_footnote(words, self.left, self.below))
        return self.figure

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
                text=panel.heading,
                x=across[0],
                y=up[1],
                xref="paper",
                yref="paper",
                xanchor="left",
                yanchor="bottom",
                showarrow=False,
                font={"size": 13},
            )


def undefined_key() -> go.Scatter:
    """The legend's entry for undefined cells."""
    marker = {"symbol": "square", "size": 11, "color": style.UNDEFINED}
    look: dict[str, Any] = {"mode": "markers", "marker": marker, "hoverinfo": "skip"}
    return go.Scatter(x=[None], y=[None], name="undefined", legendgroup="undefined", **look)


def caption(run: Run, pairs: Sequence[Pair], queries: str, note: str = "") -> str:
    """Model, conditions, n, interval, seed and certificate, in one paragraph."""
    model = run.manifest.get("model", {})
    shape = f"{model.get('n_layers', '?')} layers × {model.get('n_heads', '?')} heads"
    count = run.manifest.get("queries", {}).get(queries)
    parts = [
        note,
        f"Model: {model.get('name', 'unnamed')} ({model.get('architecture', '?')}, {shape})",
        _listed(pairs),
        f"n = {'?' if count is None else count} {queries} queries",
        run.interval,
        f"Seed {run.manifest.get('seed', '?')}",
        f"Match certificate: {run.verdict().text}",
    ]
    return ". ".join(part.rstrip(".") for part in parts if part) + "."


def _listed(pairs: Sequence[Pair], most: int = 6) -> str:
    more = f"; and {len(pairs) - most} further pairs" if len(pairs) > most else ""
    return f"Compared: {'; '.join(map(pair_name, pairs[:most]))}{more}" if pairs else ""


def _legend_rows(figure: go.Figure) -> int:
    """How many lines the legend takes, from the lengths of its names."""
    names = [t.name or "" for t in figure.data if t.showlegend is not False]
    rows, used = 1, 0.0
    for name in names:
        width = 50 + 6.1 * len(html.unescape(name))
        rows, used = (rows + 1, width) if used + width > style.WIDTH - 40 else (rows, used + width)
    return rows


def _title(title: str, failed: bool) -> dict[str, object]:
    more = len(text_lines(title, _TITLE_WIDTH)) - 1  # plotly hangs a title by its middle line
    return {
        "text": wrapped(title, _TITLE_WIDTH),
        "font": {"size": 17, "color": "#B00020" if failed else style.INK},
        "x": 0,
        "xref": "container",
        "xanchor": "left",
        "pad": {"l": 12, "t": 10 + more * _TITLE_LINE // 2},
        "y": 1,
        "yref": "container",
        "yanchor": "top",
    }


def _legend(drop: float) -> dict[str, object]:
    return {
        "x": 0.01,
        "xref": "container",
        "xanchor": "left",
        "y": 1 - drop,
        "yref": "container",
        "yanchor": "top",
        "orientation": "h",
        "font": {"size": 12},
        "bgcolor": "rgba(0,0,0,0)",
        "itemsizing": "trace",
        "tracegroupgap": 0,
    }


def _footnote(words: str, left: int, below: int) -> dict[str, object]:
    return {
        "name": "caption",
        "text": wrapped(words, _CAPTION_WIDTH),
        "showarrow": False,
        "align": "left",
        "font": {"size": 11, "color": style.MUTED},
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": 0,
        "xanchor": "left",
        "yanchor": "top",
        "xshift": 12 - left,
        "yshift": -below,
    }


def bare(figure: go.Figure) -> go.Figure:
    """A copy without title and caption, and of free width: the page around it shows both."""
    plain = copy.deepcopy(figure)
    meta = figure.layout.meta
    margin, height = plain.layout.margin, plain.layout.height
    plain.layout.annotations = [a for a in plain.layout.annotations if a.name != "caption"]
    plain.layout.title = None
    plain.layout.width = None
    plain.layout.autosize = True
    plain.layout.height = height - meta["heading"] - meta["footer"]
    plain.layout.margin.t = margin.t - meta["heading"]
    plain.layout.margin.b = margin.b - meta["footer"]
    plain.layout.legend.y = 1
    return plain
