"""Through which tokens does each side act? Residual streams exchanged segment by segment.

    interchange_segments(run).show()

Into base above: what a segment's states bring along. Between the two below: what their swap costs.
Colour, dash and mark are the segment's; grey is its control.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots import by_layer, lines, style
from interp.plots.exchanges import (
    GREY,
    SITE,
    Curve,
    Place,
    control_or_line,
    shown_pairs,
    sides,
    state_in,
)
from interp.plots.interchange import LOWEST, damage_scale, tolerance, tolerance_line
from interp.plots.lines import ALPHA, Look
from interp.plots.symlog import Symlog
from interp.runs.view import NotMeasured, Run

_LOOKS = {
    "all": Look("all tokens", style.INK),
    "query": Look("query: the text", "#0072B2", "dash", "square"),
    "template": Look("template: the tokens after it", "#E69F00", "dashdot", "diamond"),
    "answer": Look("answer: the tokens that predict it", "#CC79A7", "longdash", "triangle-up"),
}
"""Position -> its line."""
_DAMAGE: tuple[Place, ...] = ((2, 1), (2, 2))


def interchange_segments(run: Run) -> go.Figure:
    """Recovery into base and damage between the two conditions by layer, one line per segment, each
    beside the random difference at the same tokens; rows share their scale.

    Raises `NotMeasured` without an interchange by segment.
    """
    run = run.exchanged()
    panels = _panels(run)
    figure = make_subplots(
        2,
        2,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=0.11,
        subplot_titles=[state_in(s, str(t), most=24) for _, (s, t) in _moves(run).values()],
    )
    figure.update_annotations(font={"size": 13})
    figure.update_yaxes(style.axis(None))
    scale = damage_scale([c for place in _DAMAGE for c in panels[place]], tolerance(run))
    named: set[str] = set()
    for place, curves in panels.items():
        for curve in curves:
            for trace in control_or_line(curve, named):
                drawn = scale.drawn(trace) if place in _DAMAGE else trace
                figure.add_trace(drawn, row=place[0], col=place[1])
    _axes(figure, panels, scale, tolerance(run))
    tolerance_line(figure, run, scale, _DAMAGE)
    by_layer.x_axes(figure, run, 2)
    return style.finish(
        figure,
        run,
        title="Through which tokens does each side act? Residual streams exchanged by segment",
        pairs=shown_pairs(run),
        note=_note(run, panels),
        plot=540,
        legend=True,
        left=72,
    )


def _moves(run: Run) -> dict[Place, tuple[str, tuple[str, str]]]:
    """What every panel measures, and whose state goes into whose run."""
    a, b, base = sides(run)
    return {
        (1, 1): ("recovery", (a, base)),
        (1, 2): ("recovery", (b, base)),
        (2, 1): ("damage", (a, b)),
        (2, 2): ("damage", (b, a)),
    }


def _panels(run: Run) -> dict[Place, list[Curve]]:
    """Curves that have a value, controls first: they lie below."""
    found: dict[Place, list[Curve]] = {}
    segments = set()
    for place, (measure, pair) in _moves(run).items():
        found[place] = []
        for control in (True, False):
            name = f"{measure}_random_difference" if control else measure
            for position, look in _LOOKS.items():
                frame = lines.layer_rows(run, name, SITE, pair, position)
                if len(frame):
                    own = look._replace(colour=GREY) if control else look
                    found[place].append(Curve(frame, own))
                    segments.add(position)
    if segments <= {"all"}:
        raise NotMeasured("this run has no interchange by segment")
    return found


def _axes(figure: go.Figure, panels: dict[Place, list[Curve]], scale: Symlog, most: float) -> None:
    """One range per row; a line where recovery is complete."""
    ends = {
        row: [_drawn(c) for p, cs in panels.items() if p[0] == row for c in cs] for row in (1, 2)
    }
    low = max(LOWEST, min((float(np.nanmin(e)) for e in ends[1]), default=0.0))
    top = max([most, *(float(np.nanmax(e)) for e in ends[2])])
    figure.update_yaxes(range=[min(low, 0) - 0.06, 1.08], row=1)
    figure.update_yaxes(scale.axis(0, top), row=2)
    figure.update_yaxes(title_text="recovery", row=1, col=1)
    figure.update_yaxes(title_text="damage [nats per answer]", row=2, col=1)
    quiet = {"color": "#9A9A9A", "width": 1}
    for level in (0, 1):
        figure.add_hline(level, row=1, line=quiet, layer="below")


def _drawn(curve: Curve) -> np.ndarray:
    """The numbers that are seen of a curve: of a control not its interval."""
    return curve.frame["value"].to_numpy(float) if curve.look.colour == GREY else curve.ends


def _note(run: Run, panels: dict[Place, list[Curve]]) -> str:
    base = sides(run)[2]
    curves: Sequence[Curve] = [c for found in panels.values() for c in found]
    harmed = any(np.nanmin(_drawn(c)) < LOWEST for p in ((1, 1), (1, 2)) for c in panels[p])
    parts = [
        f"Above: recovery, 1 − KL(source ‖ patched {base}) / KL(source ‖ {base}); below: damage, "
        "KL(run ‖ run with the other's states); both summed over the answer's tokens",
        "The answer's segment begins at the last token before it. Its states in the last layer are "
        "the output itself, and those of the others there are read by nobody",
        "Grey: the run's own states at the same tokens moved as far, along the difference that the "
        "two show at an unrelated query",
        f"Open marks: p > {ALPHA:g} against that control, paired sign flips over queries, "
        "corrected over layers and segments"
        if lines.tested([c.frame for c in curves])
        else "",
        f"Recovery below −{-LOWEST:g} is off the axis" if harmed else "",
        "Bands: intervals (of the grey lines on hovering)",
    ]
    return ". ".join(part for part in parts if part)
