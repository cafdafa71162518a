"""What differences between conditions say, by layer: do their means name the task words?

    reading(run).show()
    reading(run, PATCHSCOPE).show()      # written into a neutral prompt

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
from interp.runs.readings import JACOBIAN_LENS, LOGIT_LENS, PATCHSCOPE, Readings, WordLens
from interp.runs.view import NotMeasured, Run
from interp.significance import ALPHA

_BAND = "random differences of base (middle 95 %)"
_TITLES = {
    LOGIT_LENS: "Do mean differences of residual streams from base name the task words?",
    JACOBIAN_LENS: "Do mean differences from base name the task words in the Jacobian lens?",
    PATCHSCOPE: "Do mean differences from base name the task words in a patchscope?",
}
_RAISED = {
    LOGIT_LENS: "in the logit lens",
    JACOBIAN_LENS: "in the Jacobian lens",
    PATCHSCOPE: "of a neutral prompt's next token, in the place of its last token's state",
}


def reading(run: Run, lens: WordLens = LOGIT_LENS) -> go.Figure:
    """Scores of the task words by layer, a row of panels per group of texts, a panel per position.
    Raises `NotMeasured` without them."""
    of = run.reading
    if not of.words:
        raise NotMeasured("this run's readings have no task words: name some with --words")
    if not of.read_by(lens):
        raise NotMeasured(f"this run has no scores of a {lens.name}")
    found = {
        group: {position: _panel(of, lens, group, position) for position in positions}
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
            panel.draw(_random(of, lens, group, position))
    return board.finish(run, _TITLES[lens], pairs=of.against_base, notes=_notes(of, lens))


def _notes(of: Readings, lens: WordLens) -> list[str]:
    words = ", ".join(of.words[:8]) + (f" and {len(of.words) - 8} more" if of.words[8:] else "")
    about = {PATCHSCOPE: f"Neutral prompt: {of.found.get('carrier')}", JACOBIAN_LENS: of.fitted}
    return [
        f"Score: standard deviations of the vocabulary by which the mean difference raises the "
        f"mean logit of the {len(of.words)} task words {_RAISED[lens]} (0: words like any other). "
        f"Task words: {words}",
        about.get(lens, ""),
        ("Narrow bands around lines are intervals; blue" if lens.excess else "Blue")
        + ": base's states at two random queries, middle 95 %. "
        f"Open markers: p > {ALPHA:g} against these, corrected over layers and positions (max-T)",
        f"{of.found['scored']} matched queries are scored"
        + (", the others chose the words" if of.found["chosen"] else ""),
    ]


def _panel(of: Readings, lens: WordLens, group: str, position: str) -> LinePanel:
    pairs = list(reversed(of.against_base))  # the first on top
    found = [(against_base_look(of.run, p), of.rows(lens.score, p, group, position)) for p in pairs]
    lines = [(look, frame) for look, frame in found if len(frame)]
    n = of.found["n"][group]
    return LinePanel(lines, heading=f"{n} {group} texts, position {position}", unit="score [SD]")


def against_base_look(run: Run, pair: Pair) -> Look:
    """A pair of the main ones as everywhere; another control by its own dash."""
    if pair in run.main_pairs:
        return pair_look(run, pair)
    colour, dash = style.condition_look(run, pair[0])
    return Look(run.role(pair), colour, "dot" if dash == "solid" else dash, "diamond")


def _random(of: Readings, lens: WordLens, group: str, position: str) -> Iterator[go.Scatter]:
    """What random differences give."""
    base = str(of.run.base)
    rows = of.rows(lens.random, (base, base), group, position)
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
            "fixed": {"measure": lens.random, "queries": group, "position": position},
            "table": {"layer": layer.tolist(), "low": low.tolist(), "high": high.tolist()},
        },
    )
