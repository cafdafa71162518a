"""Measures against depth: whole layers, segments, routers, information, geometry, families.

    layers(run).show()
    segments(run).show()            # a column per segment
    information_by_layer(run).show()
    similarity(run).show()
    divergence(run).show()          # between families over within them

All raise `NotMeasured` where the run has none of their rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.names import OUTPUT, Pair
from interp.plots import lines, style
from interp.plots.bands import band_words, envelope
from interp.plots.board import Board
from interp.plots.lines import LinePanel, Look, draw_rows, line_notes, measured
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.words import SITES, units
from interp.significance import ALPHA
from interp.statistics import SEGMENTS

if TYPE_CHECKING:
    import pandas as pd

SITE_COLUMNS = ("resid_post", "attn_out", "mixer_out", "mlp_out")
SIMILARITIES = ("linear_cka", "procrustes_distance", "mutual_knn", "probe_transfer")
DIMENSIONS = ("intrinsic_dimension", "gride_2", "gride_4", "gride_8")
DIVERGENCE = "divergence_index"

_RESID = "resid_post"
_SEGMENT_WORDS = {
    "query": "the user's text",
    "template": "the template after it",
    "answer": "the rows that predict the answer",
}
DIVERGENCE_WORDS = (
    "1: no further apart between families than within. p: labels of the conditions permuted, "
    "corrected over the map"
)


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
            else lines.single(run, measure, _RESID, run.main_conditions, "last", queries)
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


# --- the shape of many queries' states -----------------------------------------------------------


def similarity(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """Similarity of the point clouds of two conditions beside chance, a column per measure."""
    pairs = run.main_pairs
    panels = [lines.compared(run, m, _RESID, pairs, position, queries) for m in SIMILARITIES]
    title = "Similarity of the queries' states between conditions, by layer"
    return _shapes(run, panels, "similarity", title, position, queries)


def dimensions(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """Intrinsic dimension of the headline's two, base and the null's control, by scale."""
    conditions = run.main_conditions
    panels = [lines.single(run, m, _RESID, conditions, position, queries) for m in DIMENSIONS]
    title = "Intrinsic dimension of the queries' states, by layer"
    return _shapes(run, panels, "intrinsic dimension", title, position, queries)


def _shapes(
    run: Run, panels: list[LinePanel], what: str, title: str, position: str, queries: str
) -> go.Figure:
    """Similarities have an axis each, dimensions one; chance is the same measure with the pairing
    of queries (or the coordinates) permuted."""
    kept = measured(panels, f"{what} at position {position}")
    own_axis = what == "similarity"
    unit = units(kept[0].frames[0]).strip(" []")
    words = "" if own_axis else f"{what} [{unit}]" if unit else what
    kept = [replace(_with_chance(run, panel, position, queries), unit=words) for panel in kept]
    board = Board()
    gap = 50 if own_axis else 24
    draw_rows(board, [kept], style.layer_axis(run), 270, shared=not own_axis, gap=gap)
    states = run.arrays.get("states_resid_post")
    sampled = states is not None and "query" in states.dims
    drawn = {pair for panel in kept for pair in panel.pairs}
    tested = lines.tested([frame for panel in kept for frame in panel.frames])
    return board.finish(
        run,
        title,
        pairs=[pair for pair in run.main_pairs if pair in drawn],
        notes=[
            "Blue hatching: chance, the central 95 % over permutations",
            band_words(run, [band for panel in kept for band in panel.bands]),
            f"Open markers: p > {ALPHA:g} (permutation, corrected over layers)" if tested else "",
            f"On a sample of {states.sizes['query']} queries" if sampled else "",
            f"Residual stream, position: {position}",
        ],
        queries=queries,
    )


def _with_chance(run: Run, panel: LinePanel, position: str, queries: str) -> LinePanel:
    """The central 95 % of the permutations, over the pairs (or conditions) drawn as lines."""
    measure = str(panel.frames[0]["measure"].iloc[0])
    pairs = [pair for pair in panel.pairs if pair == run.headline] or panel.pairs
    names = ("chance", "chance")
    name = f"{measure}_chance"
    band = envelope(run, names, pairs, name, _RESID, position, queries, intervals=True)
    bands = [*panel.bands, *([band] if band else [])]
    return replace(panel, bands=bands, heading=label(MEASURES[measure].title))


# --- families ------------------------------------------------------------------------------------


def divergence(run: Run, position: str = "last", queries: str = "matched") -> go.Figure:
    """Between families over within them, one line per pair of families, one column per site; 1: no
    further apart between the families than within."""
    palette = style.family_pair_looks(run)
    symbols = ("circle", "square", "diamond", "triangle-up", "star")
    looks = {
        pair: Look(pair_words(pair), colour, symbol=symbols[at % len(symbols)])
        for at, (pair, colour) in enumerate(palette.items())
    }
    panels = []
    for site in SITE_COLUMNS:
        found = (
            (look, run.by_layer(DIVERGENCE, site, pair, position, queries))
            for pair, look in looks.items()
        )
        drawn = [(look, frame) for look, frame in found if len(frame)]
        panels.append(LinePanel(drawn, [], f"{SITES[site]} ({site})"))
    panels = measured(panels, f"{DIVERGENCE} by layer at position {position}")
    look, unit = _around_one([frame for panel in panels for frame in panel.frames])
    panels = [replace(panel, limits=look, unit=unit) for panel in panels]
    board = Board(left=72)
    for panel in draw_rows(board, [panels], style.layer_axis(run), 300)[0]:
        panel.level(1, color=style.INK, width=1.2, dash="dash")
    return board.finish(
        run,
        f"Divergence index of families by layer, {lines.where(position)}",
        notes=[
            DIVERGENCE_WORDS,
            f"Filled: p ≤ {ALPHA:g}, open: above. Bands: intervals over queries, for these members",
            f"Families: {sizes(run)}. Position: {position}",
        ],
        queries=queries,
    )


def _around_one(frames: list[pd.DataFrame]) -> tuple[dict[str, Any], str]:
    """The y axis, logarithmic where the largest index is many times 1, and its title."""
    top = max(np.nanmax(f[["value", "ci_high"]].to_numpy(float)) for f in frames)
    low = min(np.nanmin(f[["value", "ci_low"]].to_numpy(float)) for f in frames)
    if top <= 8 or low <= 0:
        return {"range": [0, 1.08 * max(top, 1.2)]}, "between / within"
    ends = [np.log10(min(low, 0.8)) - 0.05, np.log10(top) + 0.08]
    return {"type": "log", "dtick": "D2", "range": ends}, "between / within (log scale)"


def pair_words(pair: Pair) -> str:
    """Two families, in words."""
    return f"{pair[0]} – {pair[1]}"


def sizes(run: Run) -> str:
    """The families and how many members each has."""
    return ", ".join(f"{f} ({len(m)})" for f, m in run.families.items())
