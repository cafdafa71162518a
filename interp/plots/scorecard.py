"""What the experiments say of the hypothesis: the number that decides each, beside its threshold.

    scorecard(findings, "tiny, one LoRA").show()
    decision(findings[0]).show()             # one of them, on its own axis

Colour and symbol say what a finding means for the hypothesis that a prompt can emulate a LoRA.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.finding import AGAINST, Finding
from interp.plots import style
from interp.plots.board import HEADING, Board, Panel
from interp.plots.style import label

LOOKS = {
    "holds": ("#0072B2", "circle", "●"),
    "fails": ("#D55E00", "diamond", "◆"),
    "undecided": ("#6E6E6E", "square", "■"),
}
"""Colour, marker and character of what a finding means for the hypothesis."""

_HEADINGS = {
    True: "Weak points: right of the line, the hypothesis fails there",
    False: "Where it should hold: right of the line, it does",
}
_LINE: dict[str, Any] = {"color": style.INK, "width": 1.2}
_ROW, _LEFT, _RIGHT = 54, 330, 300
_AT_LEFT: dict[str, Any] = {"x": 0, "xref": "paper", "xanchor": "left", "xshift": 12 - _LEFT}
"""Where rows' names stand, and what stands over them."""


def heading(finding: Finding) -> str:
    """The experiment's name for people, with the number of the weak point it tests."""
    name = finding.name.replace("_", " ").capitalize()
    return f"{finding.point} {name}" if finding.point in AGAINST else name


def groups(findings: Sequence[Finding]) -> dict[bool, list[Finding]]:
    """The weak points (True) in order, and what speaks for the hypothesis (False)."""
    ordered = sorted(findings, key=lambda found: (found.point, found.name))
    split = {weak: [f for f in ordered if (f.point in AGAINST) == weak] for weak in (True, False)}
    return {weak: some for weak, some in split.items() if some}


def scorecard(findings: Sequence[Finding], words: str) -> go.Figure:
    """A dot and its interval for every finding, thresholds on one line, each row on its own scale;
    the numbers stand beside it. `words`: the caption."""
    board = Board(left=_LEFT, right=_RIGHT, below=16, above=HEADING)
    x = {"range": [-1.1, 1.1], "showgrid": False, "showticklabels": False, "zeroline": False}
    for weak, some in groups(findings).items():
        y = {**x, "range": [len(some) - 0.5, -0.5]}
        [panel] = board.row([""], _ROW * len(some), x, y, above=12)
        panel.level(0, along="x", **_LINE)
        over = {"yref": panel.domain("y"), "y": 1, "yanchor": "bottom", "font": {"size": 13}}
        panel.write(_HEADINGS[weak], **_AT_LEFT, **over)
        for at, found in enumerate(some):
            panel.draw([_dot(found, at, _scaled(found))])
            _beside(panel, found, at)
    note = "Each row has its own scale, from its threshold (the line), which was set before the run"
    return board.dress("Can a prompt emulate a LoRA? What the experiments say", f"{note}. {words}")


def decision(finding: Finding) -> go.Figure:
    """The number that decides one finding, with its interval and the threshold."""
    threshold = finding.contrast.threshold
    known = [x for x in finding.contrast[1:] if isinstance(x, int | float) and np.isfinite(x)]
    room = 0.12 * ((max(known) - min(known)) or 1)
    x = style.axis(finding.contrast.what, range=[min(known) - room, max(known) + room])
    y = {"range": [-1, 1], "showticklabels": False, "showgrid": False, "zeroline": False}
    board = Board(left=24, below=46, above=24)
    [panel] = board.row([""], 36, x, y)
    panel.draw([_dot(finding, 0, float)])
    panel.level(threshold, along="x", layer="above", **_LINE)
    place = {"x": threshold, "y": 1, "yanchor": "bottom", "xanchor": "center"}
    panel.write(f"threshold {threshold:g}", font={"size": 11}, **place)
    return board.dress(f"{heading(finding)}: the number that decides", finding.number)


def _scaled(finding: Finding) -> Callable[[float], float]:
    """From the threshold, in units of the farthest of value and interval."""
    contrast = finding.contrast
    far = [abs(x - contrast.threshold) for x in (contrast.value, *(contrast.interval or ()))]
    reach = max((x for x in far if np.isfinite(x)), default=0.0) or 1.0
    return lambda x: (x - contrast.threshold) / reach


def _dot(finding: Finding, at: float, scaled: Callable[[float], float]) -> go.Scatter:
    contrast = finding.contrast
    colour, symbol, _ = LOOKS[finding.hypothesis]
    ends = (contrast.value, *(contrast.interval or (contrast.value,) * 2))
    value, low, high = np.array([[scaled(end)] for end in ends])
    words = f"{contrast.what}: {contrast.estimate}, threshold {contrast.threshold:g}"
    return go.Scatter(
        x=value,
        y=[at],
        error_x=style.whiskers(value, low, high, thickness=2.4, width=5),
        mode="markers",
        marker={"size": 12, "symbol": symbol, "color": colour},
        showlegend=False,
        hovertemplate=f"<b>{label(heading(finding))}</b><br>{label(words)}<extra></extra>",
        meta={
            "fixed": {"point": finding.point, "name": finding.name, "verdict": finding.verdict},
            "table": {
                name: [number] for name, number in (contrast._asdict() | {"n": finding.n}).items()
            },
        },
    )


def _beside(panel: Panel, finding: Finding, at: int) -> None:
    """Name and quantity on the left, numbers and verdict on the right of a row."""
    colour, _, sign = LOOKS[finding.hypothesis]
    contrast = finding.contrast
    what = "<br>".join(
        label(line) for line in textwrap.wrap(contrast.what, 56, max_lines=2, placeholder=" …")
    )
    texts = {
        "left": f"<b>{label(heading(finding))}</b><br>"
        f"<span style='font-size:11px;color:{style.MUTED}'>{what}</span>",
        "right": f"<b>{label(contrast.estimate)}</b> against {contrast.threshold:g}, n = "
        f"{finding.n}<br><span style='color:{colour}'>{sign} {finding.verdict}: the hypothesis "
        f"{_means(finding)}</span>",
    }
    places = {"left": _AT_LEFT, "right": {**_AT_LEFT, "x": 1, "xshift": 14}}
    for side, place in places.items():
        panel.write(texts[side], align="left", y=at, **place)


def _means(finding: Finding) -> str:
    return "is open here" if finding.hypothesis == "undecided" else f"{finding.hypothesis} here"
