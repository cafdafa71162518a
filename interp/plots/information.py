"""When the answer is there: information by layer, the lens against the output, and JS of lenses.

    information_by_layer(run).show()

A star on a line marks its decision depth: from there on the first guess never changes.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import OUTPUT, Pair
from interp.plots import bands, by_layer, lines, style
from interp.plots.by_layer import Panel
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.words import units

_SITE = "resid_post"
_MEASURES = ("answer_information", "lens_kl", "lens_js")


def information_by_layer(run: Run, queries: str = "matched") -> go.Figure:
    """Nats on the answer, KL of the lens to the own output, and JS between lenses, by layer.

    Raises `NotMeasured` when the run has none of these measures.
    """
    conditions: list[Pair] = [(name, None) for name in run.main_conditions]
    pairs = run.main_pairs
    panels = {
        m: Panel.of(run, m, _SITE, pairs, "last", queries)
        if m == "lens_js"
        else Panel.single(run, m, _SITE, conditions, "last", queries)
        for m in _MEASURES
    }
    kept = {m: panel for m, panel in panels.items() if panel.lines}
    if not kept:
        raise NotMeasured("this run has no logit-lens rows")
    figure = make_subplots(
        1,
        len(kept),
        horizontal_spacing=0.07,
        subplot_titles=[label(MEASURES[m].title) for m in kept],
    )
    figure.update_annotations(font={"size": 13})
    by_layer.draw(figure, run, list(kept.values()), 1, set())
    marked = "answer_information" in kept and _depths(figure, run, kept["answer_information"])
    figure.update_yaxes(style.axis(None))
    for column, (measure, panel) in enumerate(kept.items(), 1):
        frame = next(iter(panel.lines.values()))
        unit = label(units(frame).strip(" []"))
        figure.update_yaxes(by_layer.limits(measure, [panel]), title_text=unit, col=column)
    by_layer.x_axes(figure, run, 1)
    found = [band for panel in kept.values() for band in panel.bands]
    frames = [frame for panel in kept.values() for frame in panel.lines.values()]
    parts = [
        "Information: ln of the vocabulary's size plus the log probability that the logit lens "
        "gives the target token, 0 at chance",
        "Stars: mean decision depth, from which the first guess stays" if marked else "",
        bands.words(run, found),
        lines.test_words(run) if lines.tested(frames) else "",
        "Position: last",
    ]
    return style.finish(
        figure,
        run,
        title="Information on the answer and agreement of the logit lens, by layer",
        pairs=[p for p in pairs if "lens_js" in kept and p in kept["lens_js"].lines],
        queries=queries,
        note=". ".join(part for part in parts if part),
        plot=290,
        legend=True,
    )


def _depths(figure: go.Figure, run: Run, panel: Panel) -> bool:
    """A star on each line at its decision depth; whether there was any."""
    any_ = False
    for pair, frame in panel.lines.items():
        found = run.rows("decision_depth", OUTPUT, pair, "last")
        found = found[found["value"].notna()]
        if found.empty:
            continue
        row = found.iloc[0]
        depth = float(row["value"])
        layer, value = frame["layer"].to_numpy(float), frame["value"].to_numpy(float)
        colour, _ = style.condition_look(run, pair[0])
        figure.add_trace(
            go.Scatter(
                x=[depth],
                y=[np.interp(depth, layer, value)],
                mode="markers",
                marker={
                    "symbol": "star",
                    "size": 15,
                    "color": colour,
                    "line": {"width": 1.2, "color": "white"},
                },
                showlegend=False,
                customdata=np.array([[depth, row["ci_low"], row["ci_high"]]], dtype=float),
                hovertemplate=f"<b>{label(pair[0])}</b><br>decision depth %{{x:.3g}}, interval "
                "%{customdata[1]:.3g} to %{customdata[2]:.3g}<extra></extra>",
                meta={
                    "fixed": {"measure": "decision_depth", "condition": pair[0]},
                    "custom": ["value", "ci_low", "ci_high"],
                },
            ),
            row=1,
            col=1,
        )
        any_ = True
    return any_
