"""The look that all figures share: colours, dashes and symbols, axes, and text shown literally.

    style.colours(run)[pair], style.dashes(run)[pair]     # the same in every figure of a run
    label("<b>%{z}")                                      # plotly shows exactly <b>%{z}

Colours are Okabe and Ito's; sequential scales start at zero, diverging ones are centred there.
Plotly reads `<b>`, `<a href>` and entities in every label, and `%{...}` in hover templates.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from interp.names import Pair
from interp.runs.view import Run
from interp.showing import visible

WIDTH = 1000
INK, MUTED, RULE, GRID, UNDEFINED = "#222222", "#5F5F5F", "#9A9A9A", "#E7E7E7", "#B4B4B4"
LIMIT = "#B00020"
"""Of tolerances and goals."""
ZERO = {"zeroline": True, "zerolinecolor": RULE, "zerolinewidth": 1}
"""An axis that shows where zero is."""

SEQUENTIAL, DIVERGING = "YlGnBu", "RdBu_r"
FONT = "'Helvetica Neue', Arial, 'Liberation Sans', 'DejaVu Sans', 'Noto Color Emoji', sans-serif"

_MAIN = ("#0072B2", "#555555", "#D55E00", "#009E73")
_OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1")
PALETTE = (*_MAIN, *_OTHERS)
"""Eight colours that the colour-blind tell apart."""

_DASHES = ("solid", "dash", "dot", "dashdot")
_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;", "}": "&#125;"})


def label(text: str, limit: int | None = None) -> str:
    """The text for any plotly label, tick, name, button or hover: shown character by character."""
    shown = visible(text)
    if limit is not None and len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return shown.translate(_ENTITIES)


def wrapped(text: str, width: int) -> str:
    """The text for a plotly annotation, in lines of at most `width` characters."""
    return "<br>".join(label(line) for line in text_lines(text, width))


def text_lines(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` characters; at least one line."""
    return textwrap.wrap(text, width) or [""]


def colours(run: Run, pairs: Sequence[Pair] = ()) -> dict[Pair, str]:
    """Pair -> colour, the same in every figure of a run; pairs beside the main ones are grey."""
    main = run.main_pairs
    rest = [pair for pair in pairs if pair not in main]
    cycle = (*_MAIN, *_OTHERS)
    fixed = {pair: cycle[i % len(cycle)] for i, pair in enumerate(main)}
    return fixed | dict.fromkeys(rest, RULE)


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
    return colours(run).get(pair, RULE), dashes(run).get(pair, "solid")


def faded(colour: str, alpha: float) -> str:
    """A `#rrggbb` colour as rgba."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def axis(title: str | None = None, **more: Any) -> dict[str, Any]:
    """A quiet axis: outside ticks, light grid, fixed margins."""
    look: dict[str, Any] = {
        "showgrid": True,
        "gridcolor": GRID,
        "zeroline": False,
        "showline": True,
        "linecolor": RULE,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": RULE,
        "automargin": False,
        "title": {"text": label(title) if title else None, "standoff": 8, "font": {"size": 12}},
    }
    return {**look, **more}


def integer_ticks(count: int, most: int = 16) -> dict[str, Any]:
    """Ticks at whole numbers 0..count-1, at most `most` of them, evenly stepped."""
    step = next(s for s in (1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 100, 500) if count / s <= most)
    return {"tickmode": "linear", "tick0": 0, "dtick": step, "range": [-0.5, count - 0.5]}


def layer_axis(
    run: Run, title: str = "layer (from 0)", most: int = 12, close: bool = False, **more: Any
) -> Any:
    """An axis of the model's layers; `close`: its ends are near the first and last one."""
    look = axis(title, **integer_ticks(run.n_layers, most), **more)
    return look | {"range": [-0.25, run.n_layers - 0.75]} if close else look


def ticks_until(at: Sequence[int], end: int, name: str) -> dict[str, Any]:
    """Ticks at these numbers, and one with a name at the end of the axis."""
    texts = [*map(str, at), name]
    return {"tickmode": "array", "tickvals": [*at, end], "ticktext": texts}


def named_ticks(
    names: Sequence[str], limit: int | None = None, room: float = 0.5, down: bool = False
) -> Any:
    """Ticks with these names at 0, 1, ...; `down`: the first on top."""
    texts = [label(name, limit) for name in names]
    ends = [-room, len(texts) - 1 + room]
    ends = ends[::-1] if down else ends
    return {
        "tickmode": "array",
        "tickvals": list(range(len(texts))),
        "ticktext": texts,
        "range": ends,
    }


def whiskers(value: np.ndarray, low: np.ndarray, high: np.ndarray, **look: Any) -> dict[str, Any]:
    """Bars of intervals around values; none where an end is unknown."""
    ends = {"array": np.nan_to_num(high - value), "arrayminus": np.nan_to_num(value - low)}
    return {"type": "data", "symmetric": False, **ends, "thickness": 1.4, "width": 3, **look}
