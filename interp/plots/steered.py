"""What base writes with a mean difference added: how much of it is task words.

    steered_samples(run).show()

A row of panels per group of texts that the differences are of, a panel per strength; beside every
mean difference a random direction of its length, above them base alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair, pair_name
from interp.plots import style
from interp.plots.board import Board
from interp.plots.exchanges import GREY
from interp.plots.reading import against_base_look
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.readings import STEERED_RANDOM, STEERED_WORDS, Readings
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

_ALONE = "base alone"
_SYMBOLS = {False: ("mean difference", "circle"), True: ("random direction as long", "x")}
"""Whether it is random -> its name and mark."""
_BELOW = 0.26
"""How far below a mean difference its random direction stands, in rows."""


def steered_samples(run: Run) -> go.Figure:
    """The share of the written tokens that are task words, with its interval, by difference and
    strength. Raises `NotMeasured` without samples."""
    of = run.reading
    table = of.steered
    strengths = sorted(set(table["strength"]) - {0.0})
    if not strengths:
        raise NotMeasured(
            "this run has no steered samples: name task words, and strengths by --steer"
        )
    both = zip(table["condition"], table["reference"], strict=True)
    table = table.assign(difference=[_name(of, pair) for pair in both])
    names = list(dict.fromkeys(table["difference"]))
    board = Board(left=min(300, 40 + 7 * max(map(len, map(label, names)))))
    y = style.axis(None, **style.named_ticks(names, down=True))
    x = style.axis(MEASURES[STEERED_WORDS].title, range=_range(table), **style.ZERO)
    rows = []
    for number, (group, part) in enumerate(table.groupby("queries", sort=False)):
        headings = [f"{strength:g} x the mean difference" for strength in strengths]
        headings[0] += f" on {of.found['n'][group]} {group} texts"
        panels = board.row(headings, 26 * len(names), x, y, above=26 if number else 0)
        for panel, strength in zip(panels, strengths, strict=True):
            own = part[part["strength"].isin([strength, 0.0])]
            panel.draw(
                [_marks(of, own[own["random"]], names), _marks(of, own[~own["random"]], names)]
            )
        rows.append(panels)
    rows[0][0].draw(map(_key, _SYMBOLS))
    board.one_x(rows)
    layer, n = table[["layer", "n"]].max()
    return board.finish(
        run,
        "With a mean difference added, does base write the task words?",
        pairs=of.against_base,
        notes=[
            f"Added to resid_post of layer {layer} at every token, while base writes greedily "
            f"behind {n} unrelated texts. Bars are intervals over these texts. Grey crosses: a "
            "random direction as long as the mean difference",
            f"{len(of.words)} task words",
        ],
    )


def _name(of: Readings, pair: Pair) -> str:
    return _ALONE if pair[0] == of.run.base else pair_name(pair)


def _range(table: pd.DataFrame) -> list[float]:
    """From none to the largest share with its interval, a tenth at least."""
    top = max(0.1, float(np.nanmax(table[["value", "ci_high"]].to_numpy(float))))
    return [-0.04 * top, 1.06 * top]


def _marks(of: Readings, rows: pd.DataFrame, names: list[str]) -> go.Scatter:
    """A mark and its interval for every difference: of itself, or of its random direction."""
    pairs = [*zip(rows["condition"], rows["reference"], strict=True)]
    random = bool(rows["random"].any())
    columns = ("value", "ci_low", "ci_high", "n")
    custom = np.stack([rows[c].to_numpy(float, na_value=np.nan) for c in columns], axis=1)
    places = np.array([float(names.index(name)) for name in rows["difference"]]) + _BELOW * random
    colours = [GREY if random else _colour(of, pair) for pair in pairs]
    hover = "<b>%{text}</b><br>%{customdata[0]:.4g} (interval %{customdata[1]:.3g} to "
    hover += "%{customdata[2]:.3g}), n = %{customdata[3]:.0f}<extra></extra>"
    return go.Scatter(
        x=custom[:, 0],
        y=places,
        mode="markers",
        showlegend=False,
        marker={"symbol": _SYMBOLS[random][1], "size": 9, "color": colours},
        error_x=style.whiskers(*custom[:, :3].T, color=style.MUTED),
        text=[label(f"{_SYMBOLS[random][0]}: {name}") for name in rows["difference"]],
        customdata=custom,
        hovertemplate=hover,
        meta={
            "fixed": {"measure": STEERED_RANDOM if random else STEERED_WORDS},
            "columns": {
                c: rows[c].tolist()
                for c in ("queries", "condition", "reference", "strength", "layer")
            },
            "y": "difference",
            "y_labels": {str(y): name for y, name in zip(places, rows["difference"], strict=True)},
            "custom": list(columns),
        },
    )


def _colour(of: Readings, pair: Pair) -> str:
    """Its colour against base; what is no difference from base is grey."""
    if pair[0] == of.run.base:
        return style.INK
    return against_base_look(of.run, pair).colour if pair in of.against_base else style.MUTED


def _key(random: bool) -> go.Scatter:
    """The legend's entry; colour means the difference."""
    name, symbol = _SYMBOLS[random]
    marker = {"symbol": symbol, "size": 9, "color": GREY if random else style.MUTED}
    return go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=name)
