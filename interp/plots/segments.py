"""Chats and answers of several tokens: divergence by segment, and by token of the answer.

segments(run).show()            # layers against depth, a column per segment
answer_tokens(run).show()       # outputs and one layer's states, token by token
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import OUTPUT, Pair
from interp.plots import by_layer, lines, style
from interp.plots.by_layer import Panel
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.words import title
from interp.statistics import SEGMENTS

if TYPE_CHECKING:
    import pandas as pd

_WORDS = {
    "query": "the user's text",
    "template": "the template after it",
    "answer": "the rows that predict the answer",
}


def segments(
    run: Run,
    measures: tuple[str, ...] = ("relative_l2", "delta_alignment"),
    site: str = "resid_post",
    queries: str = "matched",
) -> go.Figure:
    """Measures of a site against depth, a column per segment: headline, null, sides against base.

    Raises `NotMeasured` for a run without segments."""
    pairs = run.main_pairs
    cells = {(m, s): Panel.of(run, m, site, pairs, s, queries) for m in measures for s in SEGMENTS}
    columns = [s for s in SEGMENTS if any(cells[m, s].lines for m in measures)]
    rows = [m for m in measures if any(cells[m, s].lines for s in columns)]
    if not rows:
        raise NotMeasured("this run has no segments: no chat, and answers of one token")
    figure = make_subplots(
        len(rows),
        len(columns),
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.025,
        vertical_spacing=0.06,
        column_titles=[f"{s}: {_WORDS[s]}" for s in columns],
    )
    figure.update_annotations(font={"size": 13})
    named: set[str] = set()
    for number, measure in enumerate(rows, 1):
        panels = [cells[measure, s] for s in columns]
        by_layer.draw(figure, run, panels, number, named)
        by_layer.look_of_row(figure, number, measure, panels)
    by_layer.x_axes(figure, run, len(rows))
    every = [cells[m, s] for m in rows for s in columns]
    return style.finish(
        figure,
        run,
        title="Residual stream by layer and segment",
        pairs=[p for p in pairs if any(p in cell.lines for cell in every)],
        queries=queries,
        note=by_layer.note(run, every, "mean over each segment's tokens"),
        plot=250 * len(rows),
        legend=True,
        left=72,
    )


def answer_tokens(run: Run, queries: str = "matched") -> go.Figure:
    """JS of the outputs and relative L2 of the last layer's residual stream at every token of the
    answer. Raises `NotMeasured` for a run without answer tokens of their own rows."""
    pairs = run.main_pairs
    last = run.n_layers - 1
    wanted = {"js_divergence": (OUTPUT, None), "relative_l2": ("resid_post", last)}
    panels = {
        m: {p: frame for p in pairs if len(frame := token_rows(run, m, *place, p, queries))}
        for m, place in wanted.items()
    }
    panels = {m: found for m, found in panels.items() if found}
    if not panels:
        raise NotMeasured("this run has no rows by token of the answer")
    heads = [
        label(MEASURES[m].title + (f", layer {last}" if m == "relative_l2" else "")) for m in panels
    ]
    figure = make_subplots(1, len(panels), horizontal_spacing=0.09, subplot_titles=heads)
    figure.update_annotations(font={"size": 13})
    named: set[str] = set()
    for column, (measure, found) in enumerate(panels.items(), 1):
        for pair, frame in found.items():
            look = by_layer.pair_look(run, pair)
            for trace in lines.line(frame, look, look.name not in named, across="token"):
                figure.add_trace(trace, row=1, col=column)
            named.add(look.name)
        first = next(iter(found.values()))
        limits = by_layer.limits(measure, [Panel(found, [])])
        figure.update_yaxes(limits, title_text=label(title(measure, first)), col=column)
    longest = max(len(f) for found in panels.values() for f in found.values())
    figure.update_yaxes(style.axis(None))
    ticks = style.integer_ticks(longest, most=12)
    figure.update_xaxes(style.axis(None, **ticks), title_text="token of the answer (from 0)")
    return style.finish(
        figure,
        run,
        title="Outputs and states, token by token of the answer",
        pairs=[p for p in pairs if any(p in found for found in panels.values())],
        queries=queries,
        note="All conditions read the same answer. Bands are intervals; n falls where answers end",
        plot=290,
        legend=True,
    )


def token_rows(
    run: Run, measure: str, site: str, layer: int | None, pair: Pair, queries: str
) -> pd.DataFrame:
    """A pair's rows by token of the answer, with its number as `token`."""
    frame = run.rows(measure, site, pair, None, queries)
    place = frame["layer"].isna() if layer is None else frame["layer"] == layer
    frame = frame[place.fillna(False) & frame["head"].isna()]
    numbers = frame["position"].str.extract(re.compile(r"^answer_(\d+)$"), expand=False)
    frame = frame.assign(token=numbers)[numbers.notna()]
    frame = frame.assign(token=frame["token"].astype(int)).sort_values("token")
    return frame if frame["value"].notna().any() else frame.iloc[:0]
