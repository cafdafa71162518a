"""What the experiments say of the hypothesis: the number that decides each, beside its threshold.

    scorecard(findings, "tiny, one LoRA").show()
    decision(findings[0]).show()             # one of them, on its own axis

Colour and symbol say what a finding means for the hypothesis that a prompt can emulate a LoRA.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.finding import AGAINST, Finding
from interp.plots import style
from interp.plots.text import label

LOOKS = {
    "holds": ("#0072B2", "circle", "●"),
    "fails": ("#D55E00", "diamond", "◆"),
    "undecided": ("#6E6E6E", "square", "■"),
}
"""Colour, marker and character of what a finding means for the hypothesis."""

HEADINGS = {
    True: "Weak points: right of the line, the hypothesis fails there",
    False: "Where it should hold: right of the line, it does",
}
_LINE = {"color": style.INK, "width": 1.2}
_ROW, _LEFT, _RIGHT = 54, 330, 300


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
    parts = groups(findings)
    figure = make_subplots(
        len(parts),
        1,
        row_heights=[len(some) for some in parts.values()],
        vertical_spacing=0.09 if len(parts) > 1 else 0,
        subplot_titles=[HEADINGS[weak] for weak in parts],
    )
    figure.update_annotations(x=0, xanchor="left", xshift=12 - _LEFT, yshift=7, font={"size": 14})
    figure.update_xaxes(range=[-1.1, 1.1], showgrid=False, showticklabels=False, zeroline=False)
    for place, some in enumerate(parts.values(), 1):
        look = {"range": [len(some) - 0.5, -0.5], "showticklabels": False, "showgrid": False}
        figure.update_yaxes(look, zeroline=False, row=place, col=1)
        for at, found in enumerate(some):
            figure.add_trace(_trace(found, at, _scaled(found)), row=place, col=1)
            _beside(figure, found, at, place)
        figure.add_vline(0, line=_LINE, layer="below", row=place, col=1)
    note = "Each row has its own scale, from its threshold (the line), which was set before the run"
    return style.dress(
        figure,
        title="Can a prompt emulate a LoRA? What the experiments say",
        words=f"{note}. {words}",
        plot=_ROW * len(findings) + 42 * (len(parts) - 1),
        left=_LEFT,
        right=_RIGHT,
        below=16,
    )


def decision(finding: Finding) -> go.Figure:
    """The number that decides one finding, with its interval and the threshold."""
    figure = go.Figure(_trace(finding, 0, float))
    threshold = {"text": f"threshold {finding.contrast.threshold:g}", "font": {"size": 11}}
    figure.add_vline(finding.contrast.threshold, line=_LINE, annotation=threshold)
    figure.update_annotations(yanchor="bottom", xanchor="center")
    known = [x for x in finding.contrast[1:] if isinstance(x, int | float) and np.isfinite(x)]
    room = 0.12 * ((max(known) - min(known)) or 1)
    look = style.axis(finding.contrast.what, range=[min(known) - room, max(known) + room])
    figure.update_xaxes(look)
    figure.update_yaxes(range=[-1, 1], showticklabels=False, showgrid=False, zeroline=False)
    return style.dress(
        figure,
        title=f"{heading(finding)}: the number that decides",
        words=finding.number,
        plot=36,
        left=24,
        below=46,
    )


def _scaled(finding: Finding) -> Callable[[float], float]:
    """From the threshold, in units of the farthest of value and interval."""
    contrast = finding.contrast
    far = [abs(x - contrast.threshold) for x in (contrast.value, *(contrast.interval or ()))]
    reach = max((x for x in far if np.isfinite(x)), default=0.0) or 1.0
    return lambda x: (x - contrast.threshold) / reach


def _trace(finding: Finding, at: float, scaled: Callable[[float], float]) -> go.Scatter:
    contrast = finding.contrast
    colour, symbol, _ = LOOKS[finding.hypothesis]
    value = scaled(contrast.value)
    low, high = (scaled(end) for end in contrast.interval or (contrast.value,) * 2)
    words = f"{contrast.what}: {contrast.estimate}, threshold {contrast.threshold:g}"
    return go.Scatter(
        x=[value],
        y=[at],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high - value],
            "arrayminus": [value - low],
            "thickness": 2.4,
            "width": 5,
        },
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


def _beside(figure: go.Figure, finding: Finding, at: int, place: int) -> None:
    """Name and quantity on the left, numbers and verdict on the right of a row."""
    colour, _, sign = LOOKS[finding.hypothesis]
    contrast = finding.contrast
    what = "<br>".join(
        label(line) for line in textwrap.wrap(contrast.what, 56, max_lines=2, placeholder=" …")
    )
    axis = "" if place == 1 else str(place)
    texts = {
        "left": f"<b>{label(heading(finding))}</b><br>"
        f"<span style='font-size:11px;color:{style.MUTED}'>{what}</span>",
        "right": f"<b>{label(contrast.estimate)}</b> against {contrast.threshold:g}, n = "
        f"{finding.n}<br><span style='color:{colour}'>{sign} {finding.verdict}: the hypothesis "
        f"{_means(finding)}</span>",
    }
    for side, text in texts.items():
        figure.add_annotation(
            text=text,
            showarrow=False,
            align="left",
            xref="paper",
            yref=f"y{axis}",
            x=0 if side == "left" else 1,
            y=at,
            xanchor="left",
            xshift=12 - _LEFT if side == "left" else 14,
        )


def _means(finding: Finding) -> str:
    return "is open here" if finding.hypothesis == "undecided" else f"{finding.hypothesis} here"
