"""Which heads carry a behaviour into base: patched together one by one, and as a function vector.

    carriers(run).show()

Both panels show recovery: 1 is all of the condition's behaviour, 0 is base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import lines, style
from interp.plots.lines import Look
from interp.plots.panels import Area, Drawing
from interp.plots.shares import CUT, is_cut, share_range, thin_lines
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.largest import UNTESTED
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

VECTOR = "function_vector_recovery"
NULLS = {
    "function_vector_null": Look("{base}'s own vector of these heads", "#8C8C8C", "dash"),
    "function_vector_random": Look("random vector of that norm", "#8C8C8C", "dot"),
}
_LEFT, _RIGHT, _HEIGHT, _GAP = 72, 24, 330, 60


def carriers(run: Run) -> go.Figure:
    """Recovery after 1, 2, ... heads, and by the function vector at each layer, on one axis.

    Raises `NotMeasured` without either.
    """
    run = run.exchanged()
    joint = [e for e in run.manifest["interchange"].get("greedy") or [] if e["heads"]]
    curves, vectors = [_curve(entry) for entry in joint], _vectors(run)
    if not (joint or vectors):
        raise NotMeasured("this run has no heads patched together and no function vectors")
    frames = [*curves, *(frame for _, frame in vectors)]
    y = style.axis(MEASURES["recovery"].title, range=share_range(frames))
    drawing = Drawing(go.Figure(), style.WIDTH - _LEFT - _RIGHT, _HEIGHT)
    half = (drawing.width - _GAP) / 2
    if joint:
        width = half if vectors else drawing.width
        _together(run, joint, curves, drawing, Area(0, 0, width, _HEIGHT), y)
    if vectors:
        left = half + _GAP if joint else 0
        place = Area(left, 0, drawing.width - left, _HEIGHT)
        _by_layer(run, vectors, drawing, place, y)
    return style.finish(
        drawing.figure,
        run,
        title="Heads that carry the behaviour: together, and as a function vector",
        pairs=[],
        note=_note(run, joint, bool(vectors)) + (f". {CUT}" if is_cut(frames) else ""),
        plot=_HEIGHT,
        legend=True,
        left=_LEFT,
        right=_RIGHT,
    )


# --- heads together ------------------------------------------------------------------------------


def _curve(entry: dict[str, Any]) -> pd.DataFrame:
    """A greedy search as rows of recovery, by the number of `heads`; `head`: the one added."""
    import pandas as pd

    columns = {name: entry[name] for name in ("ci_low", "ci_high")}
    frame = pd.DataFrame({"value": entry["recovery"], **columns}, dtype=float)
    place = {"site": "z", "position": "all", "queries": "matched", "p_adjusted": np.nan}
    names = {"measure": "recovery", "condition": entry["source"], "reference": entry["target"]}
    count = np.arange(1, len(frame) + 1)
    return frame.assign(heads=count, head=entry["heads"], n=entry["n"], **names, **place)


def _together(
    run: Run,
    joint: Sequence[dict[str, Any]],
    curves: Sequence[pd.DataFrame],
    drawing: Drawing,
    place: Area,
    y: dict[str, Any],
) -> None:
    most = max(map(len, curves))
    base = label(joint[0]["target"], 18)
    axes = drawing.add(place, f"heads put into {base}'s run together", _counts(most), y)
    upper = int(np.argmax([frame["value"].mean() for frame in curves]))
    step = place.width / (most + 1.5)
    for number, (entry, frame) in enumerate(zip(joint, curves, strict=True)):
        look = _look(run, entry["source"])
        outline, line = lines.line(frame, look, across="heads")
        hover = line.hovertemplate.replace("heads %{x}", "%{x} heads, last added %{text}")
        line.update(text=[label(h) for h in entry["heads"]], hovertemplate=hover)
        line.update(meta={**line.meta, "columns": {"head": entry["heads"]}})
        drawing.draw([outline, line, _all_heads(entry, look, most + 1 + 0.2 * number)], axes)
        _head_names(drawing.figure, axes, frame, look.colour, 1 if number == upper else -1, step)
    marker = {"symbol": "diamond", "size": 9, "color": style.MUTED}
    key = go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name="all heads at once")
    drawing.draw([key], axes)
    thin_lines(drawing.figure, axes)
    _goal(drawing.figure, axes, float(joint[0]["goal"]))


def _counts(most: int) -> dict[str, Any]:
    step = max(1, -(-most // 12))
    at = list(range(1, most + 1, step))
    ticks = {"tickmode": "array", "tickvals": [*at, most + 1], "ticktext": [*map(str, at), "all"]}
    return style.axis("heads put in", **ticks, range=[0.5, most + 1.5])


def _all_heads(entry: dict[str, Any], look: Look, at: float) -> go.Scatter:
    """What every head at once recovers, beyond the line's end."""
    fixed = {"measure": "recovery", "site": "z", "position": "all", "queries": "matched"}
    fixed |= {"condition": entry["source"], "reference": entry["target"], "head": "all"}
    return go.Scatter(
        x=[at],
        y=[entry["all_heads"]],
        mode="markers",
        marker={"symbol": "diamond", "size": 10, "color": look.colour},
        showlegend=False,
        hovertemplate=f"<b>{label(look.name)}</b><br>all heads at once: %{{y:.4g}}<extra></extra>",
        meta={"fixed": fixed, "y": "value"},
    )


def _head_names(
    figure: go.Figure, axes: dict[str, str], frame: pd.DataFrame, colour: str, up: int, step: float
) -> None:
    """The head added at each point, above the upper line and below the lower one."""
    tight = step < 7 * frame["head"].str.len().max()
    anchor = "right" if up > 0 else "left"
    for heads, value, name in zip(frame["heads"], frame["value"], frame["head"], strict=True):
        figure.add_annotation(
            x=heads,
            y=value,
            xref=axes["xaxis"],
            yref=axes["yaxis"],
            text=label(name),
            textangle=50 if tight else 0,  # across the curve, which rises
            xanchor=anchor,
            yanchor="bottom" if up > 0 else "top",
            xshift=4 * up if tight else 9 * up,
            yshift=4 * up,
            showarrow=False,
            font={"size": 10, "color": colour},
            bgcolor="rgba(255,255,255,0.4)",
        )


def _goal(figure: go.Figure, axes: dict[str, str], goal: float) -> None:
    line = {"color": "#B00020", "width": 1.3, "dash": "dash"}
    place = {"xref": f"{axes['xaxis']} domain", "yref": axes["yaxis"]}
    figure.add_shape(type="line", x0=0, x1=1, y0=goal, y1=goal, line=line, layer="below", **place)
    figure.add_annotation(
        x=0,
        y=goal,
        text=f"goal {goal:g}",
        xanchor="left",
        yanchor="bottom",
        showarrow=False,
        font={"size": 11, "color": "#B00020"},
        **place,
    )


# --- function vectors ----------------------------------------------------------------------------


def _vectors(run: Run) -> list[tuple[Look, pd.DataFrame]]:
    """The lines of the right panel, the controls first: they lie below."""
    rows = run.rows(VECTOR, "resid_post", position="last")
    pairs = run.ordered(
        zip(rows["condition"].astype(str), rows["reference"].astype(str), strict=True)
    )
    found = []
    for measure in (*reversed(NULLS), VECTOR):
        for pair in pairs:
            look = _look(run, pair[0])
            if measure in NULLS:
                look = NULLS[measure]._replace(name=NULLS[measure].name.format(base=pair[1]))
            found.append((look, lines.layer_rows(run, measure, "resid_post", pair, "last")))
    return [(look, frame) for look, frame in found if len(frame)]


def _by_layer(
    run: Run,
    vectors: Sequence[tuple[Look, pd.DataFrame]],
    drawing: Drawing,
    place: Area,
    y: dict[str, Any],
) -> None:
    ticks = style.integer_ticks(run.n_layers, most=12)
    base = label(str(vectors[0][1].iloc[0]["reference"]), 18)
    heading = f"function vector added to {base}'s residual stream"
    axes = drawing.add(place, heading, style.axis("layer (from 0)", **ticks), y)
    named = {trace.name for trace in drawing.figure.data}
    for look, frame in vectors:
        drawing.draw(lines.line(frame, look, label(look.name) not in named), axes)
        named.add(label(look.name))
    thin_lines(drawing.figure, axes)


def _look(run: Run, condition: str) -> Look:
    return Look(condition, style.condition_look(run, condition)[0])


# --- words ---------------------------------------------------------------------------------------


def _note(run: Run, joint: Sequence[dict[str, Any]], vectors: bool) -> str:
    return ". ".join([*_search(joint), *(_chosen(run) if vectors else [])])


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
    for entry in run.manifest["interchange"].get("function_vectors") or []:
        names, more = entry["heads"][:6], len(entry["heads"]) - 6
        tail = f" and {more} more" if more > 0 else ""
        yield f"Heads of {entry['condition']}: {', '.join(names)}{tail} (n = {entry['n']})"
