"""What each layer knows of the answer, and whether two conditions' layers say the same.

    information_by_layer(run).show()

Everything is read through the logit lens, the model's own unembedding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from interp.names import OUTPUT
from interp.plots import lines, style
from interp.plots.board import Board, LineEnd, names_room
from interp.plots.lines import LinePanel, draw_rows, line_notes, measured
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.view import Run
from interp.runs.words import units
from interp.showing import number

_INFORMATION, _OWN, _BETWEEN = MEASURED = ("answer_information", "lens_kl", "lens_js")
_RESID = "resid_post"


class _Depth(NamedTuple):
    """A decision depth, layers, with its interval."""

    value: float
    low: float
    high: float

    def meets(self, other: _Depth) -> bool:
        """Whether the two intervals have a layer in common."""
        return self.low <= other.high and other.low <= self.high


def information_by_layer(run: Run, queries: str = "matched") -> go.Figure:
    """Nats on the answer; below, KL of the lens to the own output, and JS between two lenses; a
    star on a line marks its decision depth, from which on the first guess never changes. Raises
    `NotMeasured` without any of them."""
    panels = measured((_panel(run, m, queries) for m in MEASURED), "logit-lens rows")
    by_name = {str(panel.frames[0]["measure"].iloc[0]): panel for panel in panels}
    first = by_name.get(_INFORMATION)
    depths = {name: found for name in run.main_conditions if (found := _depth(run, name))}
    others = [panel for panel in panels if panel is not first]
    rows = [row for row in ([first] if first else [], others) if row]
    ends = [
        [_starred(end, depths) if row[-1] is first else end for end in row[-1].named]
        for row in rows
    ]
    board = Board(right=names_room(end for own in ends for end in own))
    for at, (row, own) in enumerate(zip(rows, ends, strict=True)):
        x = style.layer_axis(run, most=12 if len(row) == 1 else 8, close=True)
        height, above = (180, 40) if at else (250, 0)
        [drawn] = draw_rows(board, [row], x, height, shared=False, gap=64, above=above)
        drawn[-1].name(own)
        if first and row[0] is first:
            drawn[0].draw(_stars(first, depths))
    lens = by_name.get(_BETWEEN)
    return board.finish(
        run,
        _agreement(run, depths, lens)
        or "Information on the answer and agreement of the logit lens, by layer",
        pairs=lens.pairs if lens else [],
        notes=[
            "Information: ln of the vocabulary's size plus the log probability that the logit lens "
            "gives the target token, 0 at chance"
            if first
            else "",
            "Stars: mean decision depth, from which on the lens's first guess stays, right or wrong"
            if first and depths
            else "",
            *line_notes(run, panels, "last")[1:],
        ],
        queries=queries,
    )


def _panel(run: Run, measure: str, queries: str) -> LinePanel:
    """A measure of every condition, or of every pair."""
    read = (
        lines.compared(run, measure, _RESID, run.main_pairs, "last", queries)
        if measure == _BETWEEN
        else lines.each_condition(run, measure, _RESID, run.main_conditions, "last", queries)
    )
    if not read.lines:
        return read
    unit = units(read.frames[0]).strip(" []") + " above chance" * (measure == _INFORMATION)
    return replace(read, heading=label(MEASURES[measure].title), unit=unit)


def _depth(run: Run, name: str) -> _Depth | None:
    """A condition's decision depth, where it has one."""
    found = run.rows("decision_depth", OUTPUT, (name, None), "last")
    found = found[found["value"].notna()]
    if found.empty:
        return None
    return _Depth(*map(float, found.iloc[0][["value", "ci_low", "ci_high"]]))


def _starred(end: LineEnd, depths: dict[str, _Depth]) -> LineEnd:
    """A line's name with its decision depth."""
    depth = depths.get(end.text)
    return end._replace(text=f"{end.text} ★ {number(depth.value, 2)}") if depth else end


def _agreement(run: Run, depths: dict[str, _Depth], lens: LinePanel | None) -> str:
    """Where both sides of the headline settle, and how far their lenses are apart at most."""
    pair, said = run.headline or (), []
    if len(pair) == 2 and set(pair) <= set(depths):
        one, other = (depths[str(side)] for side in pair)
        where = "the same depth" if one.meets(other) else "different depths"
        layers = f"layer {number(one.value, 2)} and {number(other.value, 2)}"
        said.append(f"settles at {where} ({layers})")
    drawn = dict(zip(lens.pairs, lens.frames, strict=True)) if lens else {}
    if run.headline in drawn:
        top = float(drawn[run.headline]["value"].max())
        bound = number(MEASURES[_BETWEEN].range[1], 2)
        said.append(f"is at most {number(top, 2)} nats apart (of {bound})")
    return (
        f"Under {' and '.join(map(str, pair))} the logit lens {' and '.join(said)}" if said else ""
    )


def _stars(panel: LinePanel, depths: dict[str, _Depth]) -> list[go.Scatter]:
    """A star on every line that has a decision depth."""
    found = []
    for look, frame in panel.lines:
        name = str(frame["condition"].iloc[0])
        if name not in depths:
            continue
        numbers = np.array([depths[name]])
        at = np.interp(
            numbers[0, 0], frame["layer"].to_numpy(float), frame["value"].to_numpy(float)
        )
        rim = {"width": 1.2, "color": "white"}
        star = go.Scatter(
            x=numbers[:, 0],
            y=[at],
            mode="markers",
            marker={"symbol": "star", "size": 15, "color": look.colour, "line": rim},
            showlegend=False,
            customdata=numbers,
            hovertemplate=f"<b>{label(name)}</b><br>decision depth %{{x:.3g}}, interval "
            "%{customdata[1]:.3g} to %{customdata[2]:.3g}<extra></extra>",
            meta={
                "fixed": {"measure": "decision_depth", "condition": name},
                "custom": ["value", "ci_low", "ci_high"],
            },
        )
        found.append(star)
    return found
