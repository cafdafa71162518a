"""The look that all figures share, and what each must carry: title, caption, certificate.

    figure = go.Figure(...)
    finish(figure, run.manifest, title="Relative L2 distance by layer", pairs=pairs, plot=420)
    figure.layout.meta["caption"]

Colours are Okabe and Ito's; sequential scales start at zero, diverging ones are centred there.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair, pair_name
from interp.plots.text import label, text_lines, wrapped
from interp.registry import MEASURES
from interp.runs.view import Run

WIDTH = 1000
INK, MUTED, GRID, UNDEFINED = "#222222", "#5F5F5F", "#E7E7E7", "#B4B4B4"
SEQUENTIAL, DIVERGING = "YlGnBu", "RdBu_r"
FONT = "'Helvetica Neue', Arial, 'Liberation Sans', 'DejaVu Sans', 'Noto Color Emoji', sans-serif"

_MAIN = ("#0072B2", "#555555", "#D55E00", "#009E73")
_OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
PALETTE = (*_MAIN, *_OTHERS)
"""Eight colours that the colour-blind tell apart."""

_REST = "#9A9A9A"
_DASHES = ("solid", "dash", "dot", "dashdot")
_TITLE_LINE, _CAPTION_LINE, _LEGEND, _HEADINGS = 24, 15, 30, 30
_CAPTION_WIDTH = 185


def colours(run: Run, pairs: Sequence[Pair] = ()) -> dict[Pair, str]:
    """Pair -> colour, the same in every figure of a run; pairs beside the main ones are grey."""
    main = run.main_pairs
    rest = [pair for pair in pairs if pair not in main]
    cycle = (*_MAIN, *_OTHERS)
    fixed = {pair: cycle[i % len(cycle)] for i, pair in enumerate(main)}
    return fixed | dict.fromkeys(rest, _REST)


def dashes(run: Run) -> dict[Pair, str]:
    """Pair -> dash of its line, so that colour is never alone."""
    return {p: _DASHES[i % len(_DASHES)] for i, p in enumerate(run.main_pairs)}


def family_looks(run: Run) -> dict[str, tuple[str, str]]:
    """Family -> colour and symbol; those of the headline have their sides' colours."""
    order = list(dict.fromkeys(str(f) for p in run.family_pairs for f in p))
    order += [name for name in run.families if name not in order]
    cycle, symbols = (*_MAIN[2:], *_OTHERS), ("circle", "square", "diamond", "triangle-up")
    return {
        name: (cycle[i % len(cycle)], symbols[i % len(symbols)]) for i, name in enumerate(order)
    }


def family_pair_looks(run: Run) -> dict[Pair, str]:
    """Pair of families -> colour; that of the headline has the headline's."""
    cycle = (_MAIN[0], *_OTHERS)
    return {p: cycle[i % len(cycle)] for i, p in enumerate(run.family_pairs)}


def condition_look(run: Run, name: str) -> tuple[str, str]:
    """Colour and dash of a condition by itself: a side's are those of its pair against base."""
    base, null = run.base, run.null_pair
    if name == base:
        return INK, "longdash"
    pair = null if null and name == run.null_control else (name, base)
    return colours(run).get(pair, _REST), dashes(run).get(pair, "solid")


def faded(colour: str, alpha: float) -> str:
    """A `#rrggbb` colour as rgba."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def colour_range(values: Sequence[np.ndarray], measure: str) -> tuple[float, float, str]:
    """(low, high, scale name) for all panels that are compared."""
    flat = np.concatenate([np.ravel(v) for v in values]) if values else np.empty(0)
    flat = flat[np.isfinite(flat)]
    top = float(np.abs(flat).max()) if flat.size else 0.0
    top = top if top > 0 else 1.0
    if MEASURES[measure].signed or (flat.size and flat.min() < 0):
        return -top, top, DIVERGING
    return 0.0, top, SEQUENTIAL


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


def finish(
    figure: go.Figure,
    run: Run,
    *,
    title: str,
    pairs: Sequence[Pair],
    plot: int,
    queries: str = "matched",
    note: str = "",
    legend: bool = False,
    left: int = 64,
    right: int = 20,
    below: int = 48,
) -> go.Figure:
    """Title and caption of a run's figure; `plot` is the height of the drawing in pixels."""
    warning = run.verdict().warning
    return dress(
        figure,
        title=f"{warning} - {title}" if warning else title,
        words=caption(run, pairs, queries, note),
        plot=plot,
        failed=bool(warning),
        legend=legend,
        left=left,
        right=right,
        below=below,
    )


def dress(
    figure: go.Figure,
    *,
    title: str,
    words: str,
    plot: int,
    failed: bool = False,
    legend: bool = False,
    left: int = 64,
    right: int = 20,
    below: int = 48,
) -> go.Figure:
    """Set title, caption (`words`), fonts and margins."""
    top = _HEADINGS + (_LEGEND + 21 * (_legend_rows(figure) - 1) if legend else 0)
    heading = 14 + _TITLE_LINE * len(text_lines(title, 100))
    footer = 12 + _CAPTION_LINE * len(text_lines(words, _CAPTION_WIDTH))
    figure.update_layout(
        template="none",
        width=WIDTH,
        height=heading + top + plot + below + footer,
        margin={"l": left, "r": right, "t": heading + top, "b": below + footer},
        font={"family": FONT, "size": 12, "color": INK},
        title=_title(title, failed),
        showlegend=legend,
        legend=_legend(heading / (heading + top + plot + below + footer)),
        hoverlabel={"align": "left", "font": {"family": FONT, "size": 12}},
        paper_bgcolor="white",
        plot_bgcolor="white",
        meta={"title": title, "caption": words, "heading": heading, "footer": footer, "top": top},
    )
    figure.add_annotation(_footnote(words, left, below))
    return figure


def _legend_rows(figure: go.Figure) -> int:
    """How many lines the legend takes, from the lengths of its names."""
    names = [t.name or "" for t in figure.data if t.showlegend is not False]
    rows, used = 1, 0.0
    for name in names:
        width = 50 + 6.1 * len(html.unescape(name))
        rows, used = (rows + 1, width) if used + width > WIDTH - 40 else (rows, used + width)
    return rows


def _title(title: str, failed: bool) -> dict[str, object]:
    colour = "#B00020" if failed else INK
    font = {"size": 17, "color": colour}
    more = len(text_lines(title, 100)) - 1  # plotly hangs a title by its middle line
    pad = {"l": 12, "t": 10 + more * _TITLE_LINE // 2}
    place = {"x": 0, "xref": "container", "xanchor": "left", "pad": pad}
    return {
        "text": wrapped(title, 100),
        "font": font,
        **place,
        "y": 1,
        "yref": "container",
        "yanchor": "top",
    }


def _legend(drop: float) -> dict[str, object]:
    place = {"x": 0.01, "xref": "container", "xanchor": "left", "yref": "container"}
    look = {"orientation": "h", "font": {"size": 12}, "bgcolor": "rgba(0,0,0,0)"}
    return {
        **place,
        **look,
        "y": 1 - drop,
        "yanchor": "top",
        "itemsizing": "trace",
        "tracegroupgap": 0,
    }


def _footnote(words: str, left: int, below: int) -> dict[str, object]:
    return {
        "name": "caption",
        "text": wrapped(words, _CAPTION_WIDTH),
        "showarrow": False,
        "align": "left",
        "font": {"size": 11, "color": MUTED},
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
    kept = [a for a in plain.layout.annotations if a.name != "caption"]
    margin, height = plain.layout.margin, plain.layout.height
    plain.layout.annotations = kept
    plain.layout.title = None
    plain.layout.width = None
    plain.layout.autosize = True
    plain.layout.height = height - meta["heading"] - meta["footer"]
    plain.layout.margin.t = margin.t - meta["heading"]
    plain.layout.margin.b = margin.b - meta["footer"]
    plain.layout.legend.y = 1
    return plain


def axis(title: str | None = None, **more: object) -> dict[str, object]:
    """A quiet axis: outside ticks, light grid, fixed margins."""
    look: dict[str, object] = {
        "showgrid": True,
        "gridcolor": GRID,
        "zeroline": False,
        "showline": True,
        "linecolor": "#9A9A9A",
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "#9A9A9A",
        "automargin": False,
        "title": {"text": label(title) if title else None, "standoff": 8, "font": {"size": 12}},
    }
    return {**look, **more}


def integer_ticks(count: int, most: int = 16) -> dict[str, object]:
    """Ticks at whole numbers 0..count-1, at most `most` of them, evenly stepped."""
    step = next(s for s in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 100, 500) if count / s <= most)
    return {"tickmode": "linear", "tick0": 0, "dtick": step, "range": [-0.5, count - 0.5]}
