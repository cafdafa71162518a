"""What stands around every drawing: its title, its legend, its caption.

    framed(figure, "Relative L2 by layer", caption(run, pairs, "matched"), margins, 250)
    bare(figure)             # without title and caption, for a page that shows both

A title warns where outputs did not match; a caption carries model, conditions, n, interval, seed
and the match certificate.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from interp.names import Pair, pair_name
from interp.plots import style
from interp.plots.style import text_lines, wrapped
from interp.runs.view import Run

_TITLE_LINE, _CAPTION_LINE, _LEGEND, _LEGEND_LINE = 24, 15, 30, 21
_CAPTION_WIDTH, _TITLE_WIDTH = 185, 100


class Margins(NamedTuple):
    """Pixels around a drawing, for its axes and headings."""

    left: int
    right: int
    above: int
    below: int


def framed(
    figure: go.Figure, title: str, words: str, around: Margins, drawing: int, failed: bool = False
) -> go.Figure:
    """The figure with title, legend and caption (`words`) around a drawing of this height;
    `failed`: the title is a warning."""
    legend = any(t.name and t.showlegend is not False for t in figure.data)
    rows = _legend_rows(figure) if legend else 0
    top = around.above + (_LEGEND + _LEGEND_LINE * (rows - 1) if legend else 0)
    heading = 14 + _TITLE_LINE * len(text_lines(title, _TITLE_WIDTH))
    footer = 12 + _CAPTION_LINE * len(text_lines(words, _CAPTION_WIDTH))
    height = heading + top + drawing + around.below + footer
    bottom = around.below + footer
    figure.update_layout(
        template="none",
        width=style.WIDTH,
        height=height,
        margin={"l": around.left, "r": around.right, "t": heading + top, "b": bottom},
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
            "above": around.above,
        },
    )
    figure.add_annotation(_footnote(words, around))
    return figure


def caption(run: Run, pairs: Sequence[Pair], queries: str, note: str = "") -> str:
    """Model, conditions, n, interval, seed and certificate, in one paragraph."""
    count = run.manifest.get("queries", {}).get(queries)
    count_words = f"n = {'?' if count is None else count} {queries} queries"
    return f"{_sentences([note, _listed(pairs), count_words])} {provenance_words(run)}"


def provenance_words(run: Run) -> str:
    """What all figures of a run share of their captions: it ends each of them."""
    model = run.manifest.get("model", {})
    shape = f"{model.get('n_layers', '?')} layers × {model.get('n_heads', '?')} heads"
    return _sentences(
        [
            f"Model: {model.get('name', 'unnamed')} ({model.get('architecture', '?')}, {shape})",
            run.interval,
            f"Seed {run.manifest.get('seed', '?')}",
            f"Match certificate: {run.verdict().text}",
        ]
    )


def _sentences(parts: Sequence[str]) -> str:
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
        "font": {"size": 17, "color": style.LIMIT if failed else style.INK},
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


def _footnote(words: str, around: Margins) -> dict[str, object]:
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
        "xshift": 12 - around.left,
        "yshift": -around.below,
    }


def bare(figure: go.Figure) -> dict[str, Any]:
    """The figure as plotly.js reads it, without title and caption, and of free width: the page
    around it shows both. What a picture of it needs again is in `layout.meta.still`."""
    plain = figure.to_dict()
    layout = plain["layout"]
    meta, margin = layout["meta"], layout["margin"]
    notes = [note for note in layout["annotations"] if note.get("name") != "caption"]
    meta["still"] = {
        "title": layout.pop("title"),
        "width": layout.pop("width"),
        "caption": [note for note in layout["annotations"] if note not in notes],
        "legend_y": layout["legend"]["y"],
    }
    layout["annotations"] = notes
    layout["autosize"] = True
    layout["height"] -= meta["heading"] + meta["footer"]
    margin["t"] -= meta["heading"]
    margin["b"] -= meta["footer"]
    layout["legend"]["y"] = 1
    return plain
