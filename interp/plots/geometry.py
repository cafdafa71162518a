"""The shape of many queries' states: similarity by layer beside chance, and dimension by layer.

    similarity(run).show()
    dimensions(run).show()

Chance: the same measure with the pairing of queries (or the coordinates) permuted.
"""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import Pair
from interp.plots import bands, by_layer, lines, style
from interp.plots.bands import Band
from interp.plots.by_layer import Panel
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.words import units
from interp.significance import ALPHA

SIMILARITIES = ("linear_cka", "procrustes_distance", "mutual_knn", "probe_transfer")
DIMENSIONS = ("intrinsic_dimension", "gride_2", "gride_4", "gride_8")
_SITE = "resid_post"
TESTED = f"Open markers: p > {ALPHA:g} (permutation, corrected over layers)"


def similarity(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """Similarity of the point clouds of two conditions, one column per measure.

    Raises `NotMeasured` when the run has none of these measures.
    """
    pairs = run.main_pairs
    panels = {m: Panel.of(run, m, _SITE, pairs, position, queries) for m in SIMILARITIES}
    panels = {m: _with_chance(run, m, panel, position, queries) for m, panel in panels.items()}
    figure, note = _figure(run, panels, position, "similarity", own_axis=True)
    return style.finish(
        figure,
        run,
        title="Similarity of the queries' states between conditions, by layer",
        pairs=[p for p in pairs if any(p in panel.lines for panel in panels.values())],
        queries=queries,
        note=note,
        plot=270,
        legend=True,
    )


def dimensions(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """Intrinsic dimension of the headline's two, base and the null's control, by scale.

    Raises `NotMeasured` when the run has none of these measures.
    """
    conditions: list[Pair] = [(name, None) for name in run.main_conditions]
    panels = {}
    for measure in DIMENSIONS:
        panel = Panel.single(run, measure, _SITE, conditions, position, queries)
        panels[measure] = _with_chance(run, measure, panel, position, queries)
    figure, note = _figure(run, panels, position, "intrinsic dimension")
    return style.finish(
        figure,
        run,
        title="Intrinsic dimension of the queries' states, by layer",
        pairs=[],
        queries=queries,
        note=note,
        plot=270,
        legend=True,
    )


def _with_chance(run: Run, measure: str, panel: Panel, position: str, queries: str) -> Panel:
    """The central 95 % of the permutations, over the pairs (or conditions) drawn as lines."""
    pairs = list(panel.lines) if panel.lines else []
    first = [p for p in pairs if p == run.headline] or pairs
    name, fixed = f"{measure}_chance", ("chance", "chance")
    band = bands.envelope(run, fixed, first, name, _SITE, position, queries, intervals=True)
    return Panel(panel.lines, [*panel.bands, *([band] if band else [])])


def _figure(
    run: Run, panels: dict[str, Panel], position: str, what: str, own_axis: bool = False
) -> tuple[go.Figure, str]:
    kept = {m: panel for m, panel in panels.items() if panel.lines}
    if not kept:
        raise NotMeasured(f"this run has no {what} at position {position}")
    figure = make_subplots(
        1,
        len(kept),
        shared_yaxes=not own_axis,
        horizontal_spacing=0.055 if own_axis else 0.025,
        subplot_titles=[label(MEASURES[m].title) for m in kept],
    )
    figure.update_annotations(font={"size": 13})
    by_layer.draw(figure, run, list(kept.values()), 1, set())
    figure.update_yaxes(style.axis(None))
    for column, (measure, panel) in enumerate(kept.items(), 1):
        shared: Sequence[Panel] = [panel] if own_axis else list(kept.values())
        figure.update_yaxes(by_layer.limits(measure, shared), col=column)
    if not own_axis:
        frame = next(iter(next(iter(kept.values())).lines.values()))
        unit = units(frame).strip(" []")
        figure.update_yaxes(title_text=label(f"{what} [{unit}]" if unit else what), col=1)
    by_layer.x_axes(figure, run, 1)
    found: list[Band] = [band for panel in kept.values() for band in panel.bands]
    frames = [frame for panel in kept.values() for frame in panel.lines.values()]
    parts = [
        "Blue hatching: chance, the central 95 % over permutations",
        bands.words(run, found),
        TESTED if lines.tested(frames) else "",
        _sample(run),
        f"Residual stream, position: {position}",
    ]
    return figure, ". ".join(part for part in parts if part)


def _sample(run: Run) -> str:
    states = run.arrays.get("states_resid_post")
    if states is None or "query" not in states.dims:
        return ""
    return f"On a sample of {states.sizes['query']} queries"
