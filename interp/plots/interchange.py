"""Causal exchange beside geometric distance, layer by layer: far apart, and yet interchangeable?

    interchange(run).show()

Left and middle: one condition's residual stream in the other's run (what it costs) and in base's
(what it gives). Right: how far apart the two are, and the cost as a share of what base's state
costs. Colour is whose state moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import pair_name
from interp.plots import by_layer, exchanges, lines, style
from interp.plots.exchanges import Curve, Place, depth_row, headings, rank, shown_pairs, sides
from interp.plots.symlog import Symlog
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.significance import ALPHA

LOWEST = -1.0
"""Recovery below this is off the axis: a control may do any harm."""
_MARK = "#7B3294"


def interchange(run: Run) -> go.Figure:
    """Damage in both directions against base's state and two random controls, recovery into base,
    relative damage, and the distance of the two states with its null, all by layer.

    Damage on a scale that is logarithmic above its knee. Raises `NotMeasured` without an
    interchange.
    """
    run = run.exchanged()
    panels = {place: [c for c in cs if len(c.frame)] for place, cs in exchanges.panels(run).items()}
    if not panels[1, 1] or not panels[1, 2]:
        raise NotMeasured("this run has no damage of an interchange by layer")
    figure = make_subplots(
        2,
        3,
        shared_xaxes=True,
        horizontal_spacing=0.075,
        vertical_spacing=0.11,
        subplot_titles=headings(run),
    )
    figure.update_annotations(font={"size": 13})
    figure.update_yaxes(style.axis(None))
    scale = damage_scale([c for place in _DAMAGE for c in panels[place]], tolerance(run))
    named: set[str] = set()
    for place, curves in panels.items():
        for curve in curves:
            for trace in lines.line(curve.frame, curve.look, curve.look.name not in named):
                trace = _told(trace, curve)
                drawn = scale.drawn(trace) if place in _DAMAGE else trace
                drawn.legendrank = 1000 + rank(curve.look)
                figure.add_trace(drawn, row=place[0], col=place[1])
            named.add(curve.look.name)
    ranges = _axes(figure, panels, scale, tolerance(run))
    tolerance_line(figure, run, scale, _DAMAGE)
    _depth_line(figure, run, ranges)
    by_layer.x_axes(figure, run, 2)
    return style.finish(
        figure,
        run,
        title="Interchange of residual streams by layer: what it costs, beside how far apart "
        "they are",
        pairs=shown_pairs(run),
        note=_note(run, panels, scale),
        plot=500,
        legend=True,
        left=72,
    )


_DAMAGE: tuple[Place, ...] = ((1, 1), (1, 2))


def _told(trace: go.Scatter, curve: Curve) -> go.Scatter:
    """Hover names the two conditions too: lines of one name are told apart."""
    if trace.hovertemplate:
        row = curve.frame.iloc[0]
        pair = pair_name((str(row["condition"]), str(row["reference"])))
        words = f"{trace.name}, {label(pair)}" if trace.name != label(pair) else trace.name
        trace.hovertemplate = trace.hovertemplate.replace(
            f"<b>{trace.name}</b>", f"<b>{words}</b>", 1
        )
    return trace


# --- axes and marks ------------------------------------------------------------------------------


def tolerance(run: Run) -> float:
    """The damage (nats) up to which a state counts as equivalent."""
    return float(run.manifest["interchange"]["tolerance"])


def damage_scale(curves: Sequence[Curve], tolerance: float) -> Symlog:
    """Three decades below the largest damage, and below the tolerance in any case."""
    scale = Symlog.of([c.ends for c in curves], 3)
    return Symlog(min(scale.knee, Symlog.of([np.array([tolerance])], 1).knee if tolerance else 1))


def _axes(
    figure: go.Figure, panels: dict[Place, list[Curve]], scale: Symlog, tolerance: float
) -> dict[Place, list[float]]:
    """Titles and ranges; rows are shared where they show the same measure."""
    top = max(tolerance, *(float(np.nanmax(c.ends)) for place in _DAMAGE for c in panels[place]))
    looks = {place: scale.axis(0, top) for place in _DAMAGE}
    below = [c.ends for place in ((2, 1), (2, 2)) for c in panels[place]]
    low = max(LOWEST, min((float(np.nanmin(e)) for e in below), default=0.0))
    looks |= {place: {"range": [min(low, 0) - 0.06, 1.08]} for place in ((2, 1), (2, 2))}
    for place, least in (((1, 3), 0.0), ((2, 3), 1.0)):
        most = max([least, *(float(np.nanmax(c.ends)) for c in panels[place])])
        looks[place] = {"range": [0, 1.08 * (most or 1)]}
    titles = {(1, 1): "damage [nats]", (2, 1): "recovery", (1, 3): MEASURES["relative_l2"].title}
    titles[2, 3] = MEASURES["relative_damage"].title
    for (row, column), look in looks.items():
        figure.update_yaxes({**look, "title_text": titles.get((row, column))}, row=row, col=column)
        if (row, column) not in (*_DAMAGE, (1, 3)):
            quiet = {"color": "#9A9A9A", "width": 1}
            figure.add_hline(1, row=row, col=column, line=quiet, layer="below")
    return {place: list(look["range"]) for place, look in looks.items()}


def tolerance_line(figure: go.Figure, run: Run, scale: Symlog, places: Sequence[Place]) -> None:
    """The damage up to which a state counts as equivalent, across these panels."""
    n_layers = run.n_layers
    most = tolerance(run)
    for first, (row, column) in enumerate(places):
        figure.add_trace(
            go.Scatter(
                x=[-0.5, n_layers - 0.5],
                y=[float(scale(most))] * 2,
                mode="lines",
                line={"color": "#B00020", "width": 1.3, "dash": "dash"},
                name=f"tolerance, {most:g} nats",
                legendgroup="tolerance",
                legendrank=1003,
                showlegend=first == 0,
                hoverinfo="name",
            ),
            row=row,
            col=column,
        )


def _depth_line(figure: go.Figure, run: Run, ranges: dict[Place, list[float]]) -> None:
    """A vertical line in every panel at the state-equivalence depth, where there is one."""
    row = depth_row(run)
    if row is None or np.isnan(row["value"]):
        return
    at = float(row["value"])
    known = {k: row[k] for k in ("measure", "site", "condition", "reference")}
    numbers = {k: [float(row[k])] for k in ("value", "ci_low", "ci_high")}
    for place, ends in ranges.items():
        first = place == (1, 1)
        figure.add_trace(
            go.Scatter(
                x=[at, at],
                y=ends,
                mode="lines",
                line={"color": _MARK, "width": 1.6, "dash": "dashdot"},
                name=f"state-equivalence depth, layer {at:g}",
                legendgroup="depth",
                legendrank=1004,
                showlegend=first,
                hoverinfo="name",
                meta={"fixed": known, "table": numbers} if first else None,
            ),
            row=place[0],
            col=place[1],
        )


def _note(run: Run, panels: dict[Place, list[Curve]], scale: Symlog) -> str:
    base = sides(run)[2]
    everything = [c for curves in panels.values() for c in curves]
    harmed = [c for p in ((2, 1), (2, 2)) for c in panels[p] if np.nanmin(c.ends) < LOWEST]
    parts = [
        "Damage: KL(run ‖ run with the other's residual stream at all tokens); recovery: 1 − "
        f"KL(source ‖ patched {base}) / KL(source ‖ {base}). The last layer's state is the output",
        f"Damage axis: logarithmic, linear below {scale.knee:g} nats",
        "Grey: the run's own state moved as far, in a random direction or along the difference "
        "that the two show at an unrelated query",
        _depth_words(run),
        f"Open markers: p > {ALPHA:g} against the control (damage, recovery: the random "
        "difference; distance: the null), paired sign flips over queries, corrected"
        if lines.tested([c.frame for c in everything])
        else "",
        f"Recovery below −{-LOWEST:g} is off the axis" if harmed else "",
        f"Narrow bands: intervals. Distances: last query token{_other_n(run, panels[1, 3])}",
    ]
    return ". ".join(part for part in parts if part)


def _other_n(run: Run, curves: list[Curve]) -> str:
    """An interchange of some of a run's queries stands beside distances over all of them."""
    found = {int(n) for curve in curves for n in curve.frame["n"]} - {
        run.manifest["queries"]["matched"]
    }
    return f", n = {max(found)}" if found else ""


def _depth_words(run: Run) -> str:
    row = depth_row(run)
    if row is None:
        return ""
    limit = f"{tolerance(run):g} nats in both directions"
    if np.isnan(row["value"]):
        return f"At no layer does damage stay within {limit} from there on"
    beyond = row["ci_high"] >= run.manifest["model"]["n_layers"]
    high = "none" if beyond else f"{row['ci_high']:g}"
    known = "" if np.isnan(row["ci_low"]) else f" [{row['ci_low']:g}, {high}]"
    return f"From layer {row['value']:g}{known} on damage stays within {limit}"
