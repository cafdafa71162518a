"""Measures against depth: whole layers, segments, tokens of the answer, routers, information.

    layers(run).show()
    segments(run).show()            # a column per segment
    information_by_layer(run).show()

All raise `NotMeasured` where the run has none of their rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.names import OUTPUT, Pair
from interp.plots import lines, style
from interp.plots.board import Board
from interp.plots.lines import LinePanel, Look, draw_rows, line_notes, measured
from interp.plots.style import label
from interp.positions import SEGMENTS
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.words import SITES, units
from interp.selection import known_measure

if TYPE_CHECKING:
    import pandas as pd

SITE_COLUMNS = ("resid_post", "attn_out", "mixer_out", "mlp_out")

_RESID = "resid_post"
_SEGMENT_WORDS = {
    "query": "the user's text",
    "template": "the template after it",
    "answer": "the rows that predict the answer",
}


# --- whole layers --------------------------------------------------------------------------------


def layers(
    run: Run,
    position: str = "last",
    measures: Sequence[str] = ("relative_l2", "delta_alignment"),
    queries: str = "matched",
    sites: Sequence[str] = SITE_COLUMNS,
) -> go.Figure:
    """Measures of whole layers: headline, its null, and both sides against base, a column per site.

    Grey and hatched: the controls, and the pairs within a family.
    """
    for measure in measures:
        known_measure(measure)
    columns = {site: f"{SITES[site]} ({site})" for site in sites}
    places = {(site, position): words for site, words in columns.items()}
    rows = _rows(run, measures, places, queries)
    first = " and ".join(MEASURES[measure].title for measure in measures if measure in rows)
    return _figure(
        run,
        list(rows.values()),
        f"{first[0].upper()}{first[1:]} by layer, {lines.where(position)}",
        position,
        queries,
    )


def routing(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """How far routers of a mixture of experts are apart: their distributions over experts, and
    which they choose."""
    return layers(run, position, ("router_js", "expert_overlap"), queries, ("router",))


def segments(
    run: Run,
    measures: Sequence[str] = ("relative_l2", "delta_alignment"),
    site: str = _RESID,
    queries: str = "matched",
) -> go.Figure:
    """Measures of a site, a column per segment: headline, null, sides against base."""
    columns = {(site, name): f"{name}: {_SEGMENT_WORDS[name]}" for name in SEGMENTS}
    rows = _rows(run, measures, columns, queries)
    where = "mean over each segment's tokens"
    return _figure(run, list(rows.values()), "Residual stream by layer and segment", where, queries)


def _rows(
    run: Run,
    measures: Sequence[str],
    columns: dict[tuple[str, str], str],
    queries: str = "matched",
) -> dict[str, list[LinePanel]]:
    """Panels by measure, a column per (site, position); what has no row is left out. Only the
    uppermost panels have headings."""
    cells = {
        (m, c): lines.compared(run, m, c[0], run.main_pairs, c[1], queries)
        for m in measures
        for c in columns
    }
    kept = [c for c in columns if any(cells[m, c].lines for m in measures)]
    shown = [m for m in measures if any(cells[m, c].lines for c in kept)]
    rows = {m: [cells[m, c] for c in kept] for m in shown}
    if not rows:
        where = " and ".join(dict.fromkeys(" at ".join(column) for column in columns))
        raise NotMeasured(f"this run has no {', '.join(measures)} by layer: {where}")
    top = shown[0]
    rows[top] = [replace(p, heading=columns[c]) for p, c in zip(rows[top], kept, strict=True)]
    return rows


def _figure(
    run: Run, rows: list[list[LinePanel]], title: str, position: str, queries: str
) -> go.Figure:
    board = Board(left=72)
    draw_rows(board, rows, style.layer_axis(run), 235)
    panels = [panel for row in rows for panel in row]
    drawn = {pair for panel in panels for pair in panel.pairs}
    return board.finish(
        run,
        title,
        pairs=[pair for pair in run.main_pairs if pair in drawn],
        notes=line_notes(run, panels, position),
        queries=queries,
    )


# --- token by token of the answer ----------------------------------------------------------------


def answer_tokens(run: Run, queries: str = "matched") -> go.Figure:
    """JS of the outputs and relative L2 of the last layer's residual stream at every token of the
    answer."""
    last = run.n_layers - 1
    wanted = {"js_divergence": (OUTPUT, None), "relative_l2": (_RESID, last)}
    panels = []
    for measure, place in wanted.items():
        found = ((p, token_rows(run, measure, *place, p, queries)) for p in run.main_pairs)
        heading = MEASURES[measure].title + (f", layer {last}" if place[1] is not None else "")
        drawn = [(lines.pair_look(run, pair), frame) for pair, frame in found if len(frame)]
        panels.append(LinePanel(drawn, [], label(heading), across="token"))
    panels = measured(panels, "rows by token of the answer")
    longest = max(len(frame) for panel in panels for frame in panel.frames)
    ticks = style.axis("token of the answer (from 0)", **style.integer_ticks(longest, most=12))
    board = Board()
    draw_rows(board, [panels], ticks, 290, shared=False, gap=80)
    drawn_pairs = {pair for panel in panels for pair in panel.pairs}
    return board.finish(
        run,
        "Outputs and states, token by token of the answer",
        pairs=[pair for pair in run.main_pairs if pair in drawn_pairs],
        notes=[
            "All conditions read the same answer",
            "Bands are intervals; n falls where answers end",
        ],
        queries=queries,
    )


def token_rows(
    run: Run, measure: str, site: str, layer: int | None, pair: Pair, queries: str
) -> pd.DataFrame:
    """A pair's rows by token of the answer, with its number as `token`."""
    frame = run.rows(measure, site, pair, None, queries, heads=False)
    place = frame["layer"].isna() if layer is None else frame["layer"] == layer
    frame = frame[place.fillna(False)]
    numbers = frame["position"].str.extract(re.compile(r"^answer_(\d+)$"), expand=False)
    frame = frame.assign(token=numbers)[numbers.notna()]
    frame = frame.assign(token=frame["token"].astype(int)).sort_values("token")
    return frame if frame["value"].notna().any() else frame.iloc[:0]


# --- the answer's information --------------------------------------------------------------------


def information_by_layer(run: Run, queries: str = "matched") -> go.Figure:
    """Nats on the answer, KL of the lens to the own output, and JS between lenses; a star on a line
    marks its decision depth, from which on the first guess never changes."""
    panels = []
    for measure in ("answer_information", "lens_kl", "lens_js"):
        read = (
            lines.compared(run, measure, _RESID, run.main_pairs, "last", queries)
            if measure == "lens_js"
            else lines.each_condition(run, measure, _RESID, run.main_conditions, "last", queries)
        )
        if read.lines:
            unit = units(read.frames[0]).strip(" []")
            panels.append(replace(read, heading=label(MEASURES[measure].title), unit=unit))
    panels = measured(panels, "logit-lens rows")
    board = Board()
    [drawn] = draw_rows(board, [panels], style.layer_axis(run), 290, shared=False, gap=64)
    stars = [
        star
        for look, frame in panels[0].lines
        if frame["measure"].iloc[0] == "answer_information"
        for star in _decision_depth(run, look, frame)
    ]
    drawn[0].draw(stars)
    lens = panels[-1] if panels[-1].frames[0]["measure"].iloc[0] == "lens_js" else None
    return board.finish(
        run,
        "Information on the answer and agreement of the logit lens, by layer",
        pairs=lens.pairs if lens else [],
        notes=[
            "Information: ln of the vocabulary's size plus the log probability that the logit lens "
            "gives the target token, 0 at chance",
            "Stars: mean decision depth, from which the first guess stays" if stars else "",
            *line_notes(run, panels, "last")[1:],
        ],
        queries=queries,
    )


def _decision_depth(run: Run, look: Look, frame: pd.DataFrame) -> list[go.Scatter]:
    """A star on a line at its decision depth, where it has one."""
    name = str(frame["condition"].iloc[0])
    found = run.rows("decision_depth", OUTPUT, (name, None), "last")
    found = found[found["value"].notna()]
    if found.empty:
        return []
    numbers = found.iloc[0][["value", "ci_low", "ci_high"]].to_numpy(float)
    at = np.interp(numbers[0], frame["layer"].to_numpy(float), frame["value"].to_numpy(float))
    rim = {"width": 1.2, "color": "white"}
    star = go.Scatter(
        x=numbers[:1],
        y=[at],
        mode="markers",
        marker={"symbol": "star", "size": 15, "color": look.colour, "line": rim},
        showlegend=False,
        customdata=numbers[None],
        hovertemplate=f"<b>{label(name)}</b><br>decision depth %{{x:.3g}}, interval "
        "%{customdata[1]:.3g} to %{customdata[2]:.3g}<extra></extra>",
        meta={
            "fixed": {"measure": "decision_depth", "condition": name},
            "custom": ["value", "ci_low", "ci_high"],
        },
    )
    return [star]
