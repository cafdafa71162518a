"""Measures against depth: whole layers, segments, tokens of the answer, routers.

    layers(run).show()
    segments(run).show()            # a column per segment

All raise `NotMeasured` where the run has none of their rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.names import OUTPUT, Pair
from interp.plots import lines, style
from interp.plots.board import Board, names_room
from interp.plots.lines import LinePanel, draw_rows, line_notes, measured
from interp.plots.style import label
from interp.positions import SEGMENTS
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.words import SITES
from interp.selection import known_measure

if TYPE_CHECKING:
    import pandas as pd

SITE_COLUMNS = ("resid_post", "attn_out", "mixer_out", "mlp_out")

_RESID = "resid_post"
_WIDE = 1.9
"""How wide the last column is beside the others: what the figure is about, and its lines' names."""

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
    *others, last = sorted(sites, key=_RESID.__eq__)
    columns = {(site, position): site for site in others}
    columns[last, position] = f"{SITES[last]} ({last})"
    rows = _rows(run, measures, columns, queries)
    titles = " and ".join(MEASURES[measure].title for measure in measures if measure in rows)
    plain = f"{titles[0].upper()}{titles[1:]} by layer, {lines.where(position)}"
    first = next(iter(rows.values()))
    shares = [1.0] * (len(first) - 1) + [_WIDE]
    return _figure(
        run,
        list(rows.values()),
        _how_far(run, first[-1]) or plain,
        position,
        queries,
        shares,
        named=True,
    )


def _how_far(run: Run, panel: LinePanel) -> str:
    """The headline's range in a panel, beside its null control and its families; empty without."""
    found = dict(zip(panel.pairs, panel.frames, strict=True))
    if run.headline is None or run.headline not in found:
        return ""
    own = found[run.headline]
    row, (a, b) = own.iloc[0], run.headline
    span = lines.span(own)
    where = SITES[str(row["site"])]
    if row["measure"] == "relative_l2":
        sides = ("nearer than", "farther than")
        same = "say the same, yet " if run.verdict().passed else ""
        opening = f"{a} and {b} {same}lie {span} apart in the {where}"
    else:
        sides = ("below", "above")
        opening = f"{MEASURES[row['measure']].title} of {a} and {b} ({where}): {span}"
    beside = []
    if run.null_pair in found:
        beside.append(lines.lies_beside(own, found[run.null_pair], str(run.null_control), sides))
    floors = next((band.frame for band in panel.bands if band.kind == "floors"), None)
    if floors is not None:
        beside.append(lines.lies_beside(own, floors, "pairs within families", sides))
    return ": ".join([opening, *filter(None, [", ".join(beside)])])


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
    run: Run,
    rows: list[list[LinePanel]],
    title: str,
    position: str,
    queries: str,
    shares: Sequence[float] = (),
    named: bool = False,
) -> go.Figure:
    """`named`: the names of lines stand beside the last column."""
    ends = [row[-1].named for row in rows] if named else []
    board = Board(left=72, right=names_room(chain(*ends)) if named else 20)
    x = style.layer_axis(run, close=named)
    drawn_rows = draw_rows(board, rows, x, 235, shares=shares)
    for row, own in zip(drawn_rows, ends, strict=False):
        row[-1].name(own)
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
