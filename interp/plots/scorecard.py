"""What the experiments say of the hypothesis: how far a prompt falls short, over what was allowed.

    scorecard(findings, "tiny, one LoRA").show()
    decision(findings[0]).show()             # one of them, on its own axis

Colour and symbol say what a finding means for the hypothesis that a prompt can emulate a LoRA.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.finding import AGAINST, Finding
from interp.plots import style
from interp.plots.board import HEADING, Board, Panel
from interp.plots.scales import Symlog
from interp.plots.style import label

LOOKS = {
    "holds": ("#0072B2", "circle", "●"),
    "fails": ("#D55E00", "diamond", "◆"),
    "undecided": ("#6E6E6E", "square", "■"),
}
"""Colour, marker and character of what a finding means for the hypothesis."""
_MEANS = {"holds": "it does", "fails": "falls short", "undecided": "open"}
_WORDS = {"holds": "#0063A0", "fails": "#A04000", "undecided": style.MUTED}
"""The word for it, and its colour: dark enough for text."""
_AXIS = "how far the prompt falls short of the LoRA, over what was allowed (the line, at 1)"

_HEADINGS = {True: "Claimed weak points of prompts", False: "Where a prompt should do"}
_ALLOWED: dict[str, Any] = {"color": style.INK, "width": 1.2}
_ROW, _LEFT, _RIGHT = 50, 300, 262
_AT_LEFT: dict[str, Any] = {"x": 0, "xref": "paper", "xanchor": "left", "xshift": 12 - _LEFT}
"""Where rows' names stand, and what stands over them."""
_SCALE = Symlog(0.1)
"""Of shortfalls: linear below a tenth of what is allowed."""


def heading(finding: Finding) -> str:
    """The experiment's name for people, with the number of the weak point it tests."""
    name = finding.name.replace("_", " ").capitalize()
    return f"{finding.point} {name}" if finding.point in AGAINST else name


def allowed(finding: Finding) -> str:
    """The threshold in words."""
    most = "at most" if finding.point in AGAINST else "at least"
    return f"allowed: {most} {finding.contrast.threshold:g}"


def numbers(finding: Finding) -> str:
    """The number that decides, what was allowed, and n."""
    return f"{finding.contrast.estimate} ({allowed(finding)}), n = {finding.n}"


def groups(findings: Sequence[Finding]) -> dict[bool, list[Finding]]:
    """The weak points (True) in order, and what speaks for the hypothesis (False)."""
    ordered = sorted(findings, key=lambda found: (found.point, found.name))
    split = {weak: [f for f in ordered if (f.point in AGAINST) == weak] for weak in (True, False)}
    return {weak: some for weak, some in split.items() if some}


def scorecard(findings: Sequence[Finding], words: str) -> go.Figure:
    """A dot and its interval for every finding, all on one scale: how far a prompt falls short of
    the LoRA, over what was allowed; the numbers stand beside it. `words`: the caption."""
    board = Board(left=_LEFT, right=_RIGHT, below=62, above=HEADING + 4)
    known = np.array([found.shortfall for found in findings]).ravel()
    known = np.append(known[np.isfinite(known)], (0.0, 2.0))
    x = style.axis(_AXIS, **_multiples(float(known.min()), float(known.max())))
    rows = []
    for weak, some in groups(findings).items():
        y = style.axis(showticklabels=False, showgrid=False, showline=False, ticks="")
        y["range"] = [len(some) - 0.5, -0.5]
        [panel] = board.row([""], _ROW * len(some), x, y, above=12)
        rows.append([panel])
        panel.level(float(_SCALE(1)), along="x", layer="above", **_ALLOWED)
        over = {"yref": panel.domain("y"), "y": 1, "yanchor": "bottom"}
        panel.write(f"<b>{_HEADINGS[weak]}</b>", **_AT_LEFT, **over, font={"size": 13})
        for at, found in enumerate(some):
            panel.draw([_dot(found, at, _SCALE(found.shortfall).tolist())])
            _beside(panel, found, at)
    board.one_x(rows)
    for [panel] in rows[:-1]:
        panel.x |= {"ticks": "", "showline": False}
    _sides(rows[0][0])
    note = (
        "One scale for all rows: the number that decides as a multiple of what was allowed, its "
        "threshold, set before the run; of a strength, what is missing of 1. Linear below 0.1"
    )
    return board.dress(_title(findings), f"{note}. {words}")


def _title(findings: Sequence[Finding]) -> str:
    """In how many experiments a prompt does, falls short, or neither is decided."""
    count: Counter[str] = Counter(finding.hypothesis for finding in findings)
    said = {"holds": "it does in {}", "fails": "falls short in {}", "undecided": "{} open"}
    parts = ", ".join(words.format(count[kind]) for kind, words in said.items() if count[kind])
    return f"Can a prompt stand in for a LoRA? Of {len(findings)} experiments: {parts}"


def _multiples(low: float, high: float) -> dict[str, Any]:
    """The axis of shortfalls: ticks at 0 and at 1 and 3 of each power of ten from 0.1 on."""
    look = _SCALE.axis(low, high)
    sizes = [step * 10.0**decade for decade in range(-1, 7) for step in (1, 3)]
    least, most = look["range"]
    at = [v for v in (*(-s for s in sizes), 0.0, *sizes) if least <= float(_SCALE(v)) <= most]
    texts = [f"{v:g}×".replace("-", "−") if v else "0" for v in at]
    return {**look, "tickvals": [float(_SCALE(v)) for v in at], "ticktext": texts}


def _sides(panel: Panel) -> None:
    """What lies left and right of the line, over the uppermost panel."""
    places = {
        "holds": ("◀ a prompt is near enough", "right", -8),
        "fails": ("it falls short ▶", "left", 8),
    }
    for kind, (words, anchor, shift) in places.items():
        panel.write(
            f"<b>{words}</b>",
            x=float(_SCALE(1)),
            xanchor=anchor,
            xshift=shift,
            y=1,
            yref=panel.domain("y"),
            yanchor="bottom",
            font={"size": 12, "color": _WORDS[kind]},
        )


def decision(finding: Finding) -> go.Figure:
    """The number that decides one finding, with its interval and the threshold."""
    threshold = finding.contrast.threshold
    known = [x for x in finding.contrast[1:] if isinstance(x, int | float) and np.isfinite(x)]
    room = 0.12 * ((max(known) - min(known)) or 1)
    x = style.axis(finding.contrast.what, range=[min(known) - room, max(known) + room])
    y = {"range": [-1, 1], "showticklabels": False, "showgrid": False, "zeroline": False}
    board = Board(left=24, below=46, above=24)
    [panel] = board.row([""], 36, x, y)
    ends = finding.contrast.interval or (finding.contrast.value,) * 2
    panel.draw([_dot(finding, 0, (finding.contrast.value, *ends))])
    panel.level(threshold, along="x", layer="above", **_ALLOWED)
    place = {"x": threshold, "y": 1, "yanchor": "bottom", "xanchor": "center"}
    panel.write(f"threshold {threshold:g}", font={"size": 11}, **place)
    return board.dress(f"{heading(finding)}: the number that decides", finding.number)


def _dot(finding: Finding, at: float, drawn: Sequence[float]) -> go.Scatter:
    """A finding's mark at value, low and high as they are drawn."""
    contrast = finding.contrast
    colour, symbol, _ = LOOKS[finding.hypothesis]
    value, low, high = np.array([[end] for end in drawn], dtype=float)
    words = f"{contrast.what}: {contrast.estimate}, threshold {contrast.threshold:g}"
    return go.Scatter(
        x=value,
        y=[at],
        error_x=style.whiskers(value, low, high, thickness=2.4, width=5),
        mode="markers",
        marker={"size": 9, "symbol": symbol, "color": colour},
        showlegend=False,
        hovertemplate=f"<b>{label(heading(finding))}</b><br>{label(words)}<extra></extra>",
        meta={
            "fixed": {"point": finding.point, "name": finding.name, "verdict": finding.verdict},
            "table": {
                name: [number] for name, number in (contrast._asdict() | {"n": finding.n}).items()
            },
            "words": f"{heading(finding)}: {_MEANS[finding.hypothesis]}, {contrast.what} "
            f"{numbers(finding)}.",
        },
    )


def _beside(panel: Panel, finding: Finding, at: int) -> None:
    """Name and quantity on the left; verdict, number and what was allowed on the right of a row."""
    kind, contrast = finding.hypothesis, finding.contrast
    what = textwrap.wrap(contrast.what, 46, max_lines=2, placeholder=" …")
    beside: dict[str, Any] = {**_AT_LEFT, "x": 1, "xshift": 14}
    ink, small = {"size": 12, "color": style.INK}, {"size": 11, "color": style.MUTED}
    verdict = f"<b>{LOOKS[kind][2]} {_MEANS[kind]}</b>"
    upper: dict[str, Any] = {"y": at, "yanchor": "bottom", "yshift": 1 + 6 * (len(what) > 1)}
    lower: dict[str, Any] = {"y": at, "yanchor": "top", "yshift": upper["yshift"] + 2}
    panel.write(f"<b>{label(heading(finding))}</b>", **_AT_LEFT, **upper, font=ink)
    panel.write("<br>".join(map(label, what)), **_AT_LEFT, **lower, font=small, align="left")
    number = {**beside, "xshift": 100}
    panel.write(verdict, **beside, **upper, font={"size": 12, "color": _WORDS[kind]})
    panel.write(f"<b>{label(contrast.estimate)}</b>", **number, **upper, font=ink)
    panel.write(f"{allowed(finding)}, n = {finding.n}", **number, **lower, font=small)
