"""Are keys exchangeable, values not? The context's keys and values in the other condition's run.

    interchange_contexts(run).show()

One layer at a time, and all at once on the right. Colour, dash and mark say what is exchanged; grey
is its control.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import Pair
from interp.plots import lines, style
from interp.plots.exchanges import GREY, Curve, control_or_line, shown_pairs, sides
from interp.plots.interchange import damage_scale, tolerance, tolerance_line
from interp.plots.lines import ALPHA, Look
from interp.plots.text import label
from interp.runs.view import NotMeasured, Run

_LOOKS = {
    "k": Look("keys", "#0072B2", "dash", "square"),
    "v": Look("values", "#D55E00", "dashdot", "diamond"),
    "kv": Look("both", style.INK),
}
"""What is exchanged -> its line."""


def interchange_contexts(run: Run) -> go.Figure:
    """Damage by layer of the source's context in the target's run, both directions.

    Raises `NotMeasured` where no contexts were exchanged.
    """
    run = run.exchanged()
    a, b, _ = sides(run)
    moves: list[Pair] = [(a, b), (b, a)]
    panels = [_curves(run, move) for move in moves]
    if not any(panels):
        raise NotMeasured("this run has no exchange of contexts")
    figure = make_subplots(
        1,
        2,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[f"{label(s, 24)}'s context in {label(str(t), 24)}'s run" for s, t in moves],
    )
    figure.update_annotations(font={"size": 13})
    figure.update_yaxes(style.axis(None))
    scale = damage_scale([c for curves in panels for c in curves], tolerance(run))
    named: set[str] = set()
    for column, curves in enumerate(panels, 1):
        for curve in curves:
            for trace in control_or_line(curve, named):
                figure.add_trace(scale.drawn(trace), row=1, col=column)
    top = max([tolerance(run), *(float(np.nanmax(c.ends)) for cs in panels for c in cs)])
    figure.update_yaxes(scale.axis(0, top))
    figure.update_yaxes(title_text="damage [nats]", row=1, col=1)
    tolerance_line(figure, run, scale, [(1, 1), (1, 2)])
    _x_axes(figure, run)
    return style.finish(
        figure,
        run,
        title="What precedes the query, exchanged: its keys, its values, both",
        pairs=shown_pairs(run),
        note=_note([c for curves in panels for c in curves]),
        plot=330,
        legend=True,
        left=72,
    )


def _curves(run: Run, move: Pair) -> list[Curve]:
    """By layer and, one step to the right of the last, of all layers; controls first."""
    found = []
    for measure in ("damage_random_difference", "damage"):
        for site, look in _LOOKS.items():
            frame = run.rows(measure, site, move, "context")
            own = look._replace(colour=GREY) if measure != "damage" else look
            each = frame[frame["layer"].notna()].sort_values("layer")
            every = frame[frame["layer"].isna()]
            every = every.assign(layer=run.n_layers)
            found += [Curve(part, own) for part in (each, every) if part["value"].notna().any()]
    return found


def _x_axes(figure: go.Figure, run: Run) -> None:
    """Layers from 0, and all of them."""
    n_layers = run.n_layers
    at = [*range(0, n_layers, int(str(style.integer_ticks(n_layers, 12)["dtick"]))), n_layers]
    texts = [*map(str, at[:-1]), "all"]
    figure.update_xaxes(style.axis(None, tickmode="array", tickvals=at, ticktext=texts))
    figure.update_xaxes(range=[-0.5, n_layers + 0.5], title_text="layer (from 0)")


def _note(curves: list[Curve]) -> str:
    parts = [
        "Damage: KL(run ‖ run after the other's context), keys as they are cached, behind the "
        "rotary embedding",
        "Grey: the run's own context moved as far, along what the two differ by at another of its "
        "tokens",
        f"Open marks: p > {ALPHA:g} against that control, paired sign flips over queries, corrected"
        if lines.tested([c.frame for c in curves])
        else "",
        "Bands: intervals (of the grey lines on hovering)",
    ]
    return ". ".join(part for part in parts if part)
