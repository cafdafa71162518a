"""What differences between conditions say, by layer: do their means name the task words?

    reading(run).show()

A line per pair against base, controls among them; the band is what base's own states differ by.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style
from interp.plots.bands import outline
from interp.plots.board import Board
from interp.plots.lines import LinePanel, Look, draw_rows, pair_look
from interp.plots.style import label
from interp.runs.readings import WORD_RANDOM, WORD_SCORE, Readings
from interp.runs.view import NotMeasured, Run
from interp.significance import ALPHA

_BAND = "random differences of base (middle 95 %)"


def reading(run: Run) -> go.Figure:
    """Scores of the task words by layer, a row of panels per group of texts, a panel per position.
    Raises `NotMeasured` without them."""
    of = run.reading
    if not of.words:
        raise NotMeasured("this run's readings have no task words: name some with --words")
    found = {
        group: {position: _panel(of, group, position) for position in positions}
        for group, positions in of.groups.items()
    }
    shown = {g: panels for g, panels in found.items() if any(p.lines for p in panels.values())}
    if not shown:
        raise NotMeasured("this run's differences are no more than rounding")
    board = Board(left=72)
    rows = [[*panels.values()] for panels in shown.values()]
    drawn = draw_rows(board, rows, style.layer_axis(run, "layer"), 250)
    for panels, (group, own) in zip(drawn, shown.items(), strict=True):
        for panel, position in zip(panels, own, strict=True):
            panel.draw(_random(of, group, position))
    pairs = of.against_base
    words = ", ".join(of.words[:8]) + (f" and {len(of.words) - 8} more" if of.words[8:] else "")
    return board.finish(
        run,
        "Do mean differences of residual streams from base name the task words?",
        pairs=pairs,
        notes=[
            f"Score: standard deviations of the vocabulary by which the mean difference raises the "
            f"mean logit of the {len(of.words)} task words in the logit lens (0: words like any "
            f"other). Task words: {words}",
            "Narrow bands around lines are intervals; blue: base's states at two random queries, "
            f"middle 95 %. Open markers: p > {ALPHA:g} against these, corrected over layers and "
            "positions (max-T)",
            f"{of.found['scored']} matched queries are scored"
            + (", the others chose the words" if of.found["chosen"] else ""),
        ],
    )


def _panel(of: Readings, group: str, position: str) -> LinePanel:
    pairs = list(reversed(of.against_base))  # the first on top
    found = [(_look(of.run, p), of.rows(WORD_SCORE, p, group, position)) for p in pairs]
    lines = [(look, frame) for look, frame in found if len(frame)]
    n = of.found["n"][group]
    return LinePanel(lines, heading=f"{n} {group} texts, position {position}", unit="score [SD]")


def _look(run: Run, pair: Pair) -> Look:
    """A pair of the main ones as everywhere; another control by its own dash."""
    if pair in run.main_pairs:
        return pair_look(run, pair)
    colour, dash = style.condition_look(run, pair[0])
    return Look(run.role(pair), colour, "dot" if dash == "solid" else dash, "diamond")


def _random(of: Readings, group: str, position: str) -> Iterator[go.Scatter]:
    """What random differences give."""
    base = str(of.run.base)
    rows = of.rows(WORD_RANDOM, (base, base), group, position)
    if rows.empty:
        return
    layer, low, high = (rows[c].to_numpy(dtype=float) for c in ("layer", "ci_low", "ci_high"))
    known = np.isfinite(low)
    if not known.any():
        return
    xs, ys = outline(layer, low, high)
    yield go.Scatter(
        x=xs,
        y=ys,
        fill="toself",
        mode="lines",
        line={"width": 0},
        fillcolor="rgba(86,180,233,0.20)",
        name=label(_BAND),
        legendgroup=_BAND,
        hoverinfo="skip",
        meta={
            "fixed": {"measure": WORD_RANDOM, "queries": group, "position": position},
            "table": {"layer": layer.tolist(), "low": low.tolist(), "high": high.tolist()},
        },
    )
