"""Which heads carry a behaviour into base: patched together one by one, and as a function vector.

    few_heads(run).show()

Both panels show recovery: 1 is all of the condition's behaviour, 0 is base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.board import Board, Panel
from interp.plots.exchanges import EXCHANGED, GREY
from interp.plots.lines import LinePanel, Look, line
from interp.plots.scales import CUT, is_cut, share_range
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.largest import UNTESTED
from interp.runs.patched import TOGETHER
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

VECTOR = "function_vector_recovery"
NULLS = {
    "function_vector_null": Look("{base}'s own vector of these heads", GREY, "dash"),
    "function_vector_random": Look("random vector of that norm", GREY, "dot"),
}
Search = tuple[dict[str, Any], "pd.DataFrame"]
"""What the manifest says of a greedy search, and its rows."""


def few_heads(run: Run) -> go.Figure:
    """Recovery after 1, 2, ... heads, and by the function vector at each layer, on one axis.

    Raises `NotMeasured` without either.
    """
    run = run.exchanged()
    searches, vectors = run.interchange.searches, _vectors(run)
    if not (searches or vectors):
        raise NotMeasured("this run has no heads patched together and no function vectors")
    frames = [frame for _, frame in (*searches, *vectors)]
    base = label(run.interchange.base, 18)
    headings = {
        f"heads put into {base}'s run together": searches,
        f"function vector added to {base}'s residual stream": vectors,
    }
    board = Board(left=72)
    y = style.axis(MEASURES["recovery"].title, range=share_range(frames))
    shown = [heading for heading, found in headings.items() if found]
    panels = board.row(shown, 330, style.layer_axis(run), y)
    for panel in panels:
        panel.level(0, 1)
    if searches:
        _together(run, searches, panels[0])
    if vectors:
        panels[-1].draw(LinePanel(vectors).traces())
    return board.finish(
        run,
        "Heads that carry the behaviour: together, and as a function vector",
        notes=[
            *_search([entry for entry, _ in searches]),
            *(_chosen(run) if vectors else []),
            CUT if is_cut(frames) else "",
        ],
    )


# --- heads together ------------------------------------------------------------------------------


def _together(run: Run, searches: Sequence[Search], panel: Panel) -> None:
    most = max(len(frame) for _, frame in searches)
    counts = style.ticks_until(range(1, most + 1, -(-most // 12)), most + 1, "all")
    panel.x = style.axis("heads put in", **counts, range=[0.5, most + 1.5])
    upper = int(np.argmax([frame["value"].mean() for _, frame in searches]))
    longest = max(frame["head"].str.len().max() for _, frame in searches)
    tight = panel.area.width / (most + 1.5) < 7 * longest
    for number, (entry, frame) in enumerate(searches):
        look = _look(run, entry["source"])
        outline, drawn = line(frame, look, across="heads")
        hover = drawn.hovertemplate.replace("heads %{x}", "%{x} heads, last added %{text}")
        drawn.update(text=[label(h) for h in entry["heads"]], hovertemplate=hover)
        drawn.update(meta={**drawn.meta, "columns": {"head": entry["heads"]}})
        panel.draw([outline, drawn, _all_heads(entry, look, most + 1 + 0.2 * number)])
        _head_names(panel, frame, look.colour, 1 if number == upper else -1, tight)
    marker = {"symbol": "diamond", "size": 9, "color": style.MUTED}
    key = go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name="all heads at once")
    panel.draw([key])
    goal = float(searches[0][0]["goal"])
    panel.level(goal, color=style.LIMIT, width=1.3, dash="dash")
    left = {"xref": panel.domain("x"), "x": 0, "xanchor": "left", "yanchor": "bottom"}
    panel.write(f"goal {goal:g}", y=goal, font={"size": 11, "color": style.LIMIT}, **left)


def _all_heads(entry: dict[str, Any], look: Look, at: float) -> go.Scatter:
    """What every head at once recovers, beyond the line's end."""
    names = {"condition": entry["source"], "reference": entry["target"], "head": "all"}
    return go.Scatter(
        x=[at],
        y=[entry["all_heads"]],
        mode="markers",
        marker={"symbol": "diamond", "size": 10, "color": look.colour},
        showlegend=False,
        hovertemplate=f"<b>{label(look.name)}</b><br>all heads at once: %{{y:.4g}}<extra></extra>",
        meta={"fixed": {**TOGETHER, **names}, "y": "value"},
    )


def _head_names(panel: Panel, frame: pd.DataFrame, colour: str, up: int, tight: bool) -> None:
    """The head added at each point, above the upper line and below the lower one."""
    for heads, value, name in zip(frame["heads"], frame["value"], frame["head"], strict=True):
        panel.write(
            label(name),
            x=heads,
            y=value,
            textangle=50 if tight else 0,  # across the curve, which rises
            xanchor="right" if up > 0 else "left",
            yanchor="bottom" if up > 0 else "top",
            xshift=4 * up if tight else 9 * up,
            yshift=4 * up,
            font={"size": 10, "color": colour},
            bgcolor="rgba(255,255,255,0.4)",
        )


def _look(run: Run, condition: str) -> Look:
    return Look(condition, style.condition_look(run, condition)[0])


# --- function vectors ----------------------------------------------------------------------------


def _vectors(run: Run) -> list[tuple[Look, pd.DataFrame]]:
    """The lines of the right panel, the controls first: they lie below."""
    rows = run.rows(VECTOR, EXCHANGED, position="last")
    pairs = run.ordered(
        zip(rows["condition"].astype(str), rows["reference"].astype(str), strict=True)
    )
    found = []
    for measure in (*reversed(NULLS), VECTOR):
        for pair in pairs:
            look = _look(run, pair[0])
            if measure in NULLS:
                look = NULLS[measure]._replace(name=NULLS[measure].name.format(base=pair[1]))
            found.append((look, run.by_layer(measure, EXCHANGED, pair, "last")))
    return [(look, frame) for look, frame in found if len(frame)]


# --- words ---------------------------------------------------------------------------------------


def _search(joint: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not joint:
        return
    first = joint[0]
    yield (
        f"Left: outputs (z) of heads put into {first['target']}'s run, each time the head that "
        f"helps most on one half of the queries; recovery on the other (n = {first['n']})"
    )
    for entry in joint:
        count, whose = entry["enough"], f"of {entry['source']}"
        few = f"{count} head{'s' if count != 1 else ''} {whose} reach{'es' if count == 1 else ''}"
        yield (f"No {len(entry['heads'])} {whose} reach" if count is None else few) + (
            f" {entry['goal']:g}"
        )


def _chosen(run: Run) -> Iterator[str]:
    yield (
        f"Function vector: summed mean outputs of the strongest heads ({UNTESTED}), added at the "
        "last query token"
    )
    for entry in run.interchange.found.get("function_vectors") or []:
        names, more = entry["heads"][:6], len(entry["heads"]) - 6
        tail = f" and {more} more" if more > 0 else ""
        yield f"Heads of {entry['condition']}: {', '.join(names)}{tail} (n = {entry['n']})"
