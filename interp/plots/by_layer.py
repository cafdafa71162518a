"""Divergence layer by layer: lines with intervals, sites as columns and measures as rows.

    layers(run).show()
    layers(run, position="mean", measures=("cosine",))

Pairs keep their colour and dash in every panel; a pair without defined values is not drawn.
Behind the lines: the band of the controls and that of pairs within a family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import Pair
from interp.plots import bands, lines, style
from interp.plots.bands import Band
from interp.plots.lines import Look
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.words import SITES, title

if TYPE_CHECKING:
    import pandas as pd

SITE_COLUMNS = ("resid_post", "attn_out", "mixer_out", "mlp_out")


@dataclass(frozen=True)
class Panel:
    """What one panel draws: a pair's rows by pair, and the bands behind them."""

    lines: dict[Pair, pd.DataFrame]
    bands: list[Band]

    @classmethod
    def of(
        cls,
        run: Run,
        measure: str,
        site: str,
        pairs: Sequence[Pair],
        position: str = "last",
        queries: str = "matched",
    ) -> Panel:
        """Pairs without a single defined value are left out, and without pairs the bands too."""
        kept = _drawn(run, measure, site, pairs, position, queries)
        behind = bands.null_bands(run, measure, site, position, queries) if kept else []
        return cls(kept, behind)

    @classmethod
    def single(
        cls,
        run: Run,
        measure: str,
        site: str,
        conditions: Sequence[Pair],
        position: str = "last",
        queries: str = "matched",
    ) -> Panel:
        """The same for a measure of one condition: behind it the control conditions."""
        kept = _drawn(run, measure, site, conditions, position, queries)
        band = bands.control_band(run, measure, site, position, queries) if kept else None
        return cls(kept, [band] if band else [])

    def ends(self) -> tuple[float, float]:
        """The smallest and largest number drawn."""
        parts = [f[["value", "ci_low", "ci_high"]].to_numpy(float) for f in self.lines.values()]
        parts += [np.concatenate([b.low, b.high]) for b in self.bands]
        flat = np.concatenate([part.ravel() for part in parts])
        return float(np.nanmin(flat)), float(np.nanmax(flat))


def _drawn(
    run: Run, measure: str, site: str, pairs: Sequence[Pair], position: str, queries: str
) -> dict[Pair, pd.DataFrame]:
    """The rows of every pair that has some."""
    found = {p: lines.layer_rows(run, measure, site, p, position, queries) for p in pairs}
    return {p: frame for p, frame in found.items() if len(frame)}


def layers(
    run: Run,
    position: str = "last",
    measures: Sequence[str] = ("relative_l2", "delta_alignment"),
    queries: str = "matched",
    sites: Sequence[str] = SITE_COLUMNS,
) -> go.Figure:
    """Measures of whole layers against depth: headline, its null, and both sides against base.

    One colour and one dash per pair, bands are the table's intervals, one y axis per measure;
    grey and hatched: the controls and the pairs within a family. Raises `NotMeasured` when the
    run has no such rows.
    """
    pairs = run.main_pairs
    cells = {(m, s): Panel.of(run, m, s, pairs, position, queries) for m in measures for s in sites}
    sites = [s for s in sites if any(cells[m, s].lines for m in measures)]
    kept = [m for m in measures if any(cells[m, s].lines for s in sites)]
    if not kept:
        raise NotMeasured(f"no per-layer rows of {', '.join(measures)} at position {position}")
    figure = make_subplots(
        len(kept),
        len(sites),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.025,
        vertical_spacing=0.06,
        column_titles=[f"{SITES[s]} ({s})" for s in sites],
    )
    figure.update_annotations(font={"size": 13})
    rows = [[cells[m, s] for s in sites] for m in kept]
    named: set[str] = set()
    for row, (measure, panels) in enumerate(zip(kept, rows, strict=True), 1):
        draw(figure, run, panels, row, named)
        look_of_row(figure, row, measure, panels)
    x_axes(figure, run, len(kept))
    first = " and ".join(MEASURES[m].title for m in kept)
    return style.finish(
        figure,
        run,
        title=f"{first[0].upper()}{first[1:]} by layer, {where(position)}",
        pairs=[p for p in pairs if any(p in cell.lines for cell in cells.values())],
        queries=queries,
        note=note(run, [p for row in rows for p in row], position),
        plot=250 * len(kept),
        legend=True,
        left=72,
    )


def routing(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """How far routers of a mixture of experts are apart, by layer: their distributions over
    experts, and which they choose. Raises `NotMeasured` for a model without experts."""
    return layers(run, position, ("router_js", "expert_overlap"), queries, ("router",))


def where(position: str) -> str:
    """A position in words."""
    named = {"last": "last query token", "mean": "mean over query tokens"}
    return named.get(position, f"query token {position}")


def draw(figure: go.Figure, run: Run, panels: Sequence[Panel], row: int, named: set[str]) -> None:
    """Bands, then lines, into the columns of a row; `named` has what the legend already shows."""
    for column, panel in enumerate(panels, 1):
        for band in panel.bands:
            for trace in band.traces(band.kind not in named):
                figure.add_trace(trace, row=row, col=column)
            named.add(band.kind)
        for pair, frame in panel.lines.items():
            look = pair_look(run, pair)
            for trace in lines.line(frame, look, look.name not in named):
                figure.add_trace(trace, row=row, col=column)
            named.add(look.name)


def pair_look(run: Run, pair: Pair) -> Look:
    """A pair's line: the same in every figure of a run."""
    name = run.role(pair)
    if pair[1] is None:
        return Look(name, *style.condition_look(run, name))
    return Look(name, style.colours(run)[pair], style.dashes(run)[pair])


def look_of_row(figure: go.Figure, row: int, measure: str, panels: Sequence[Panel]) -> None:
    """The y axis that the panels of a measure share."""
    known = [panel for panel in panels if panel.lines]
    frame = next(iter(known[0].lines.values()))
    figure.update_yaxes(style.axis(None), row=row)
    figure.update_yaxes(title_text=label(title(measure, frame)), row=row, col=1)
    figure.update_yaxes(limits(measure, known), row=row)


def limits(measure: str, panels: Sequence[Panel]) -> dict[str, object]:
    """Signed measures keep zero in the middle, the others start there."""
    zero = {"zeroline": True, "zerolinecolor": "#9A9A9A", "zerolinewidth": 1}
    if MEASURES[measure].rounding == "cosine":
        return {"range": [-1.05, 1.05], **zero}
    low, high = (f(panel.ends()[i] for panel in panels) for i, f in enumerate((min, max)))
    if MEASURES[measure].signed or low < 0:
        room = 0.06 * (high - low)
        return {"range": [min(low, 0) - room, max(high, 0) + room], **zero}
    return {"range": [0, 1.08 * high or 1]}


def x_axes(figure: go.Figure, run: Run, rows: int) -> None:
    """Layers from 0, named below the last row."""
    ticks = style.integer_ticks(run.n_layers, most=12)
    figure.update_xaxes(style.axis(None, **ticks))
    figure.update_xaxes(title_text="layer (from 0)", row=rows)


def note(run: Run, panels: Sequence[Panel], position: str) -> str:
    """The caption's first sentences: intervals, bands, tests, position."""
    behind = bands.words(run, [band for panel in panels for band in panel.bands])
    tested = lines.tested([f for panel in panels for f in panel.lines.values()])
    parts = [
        "Narrow bands around lines are intervals",
        behind,
        lines.test_words(run) if tested else "",
    ]
    return ". ".join(part for part in [*parts, f"Position: {position}"] if part)
