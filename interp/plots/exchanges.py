"""Panels of an interchange by layer: lines of states, and in grey below them their controls.

    left, right = on_damage([Exchange(lines, heading=state_in(a, b)), ...], of.tolerance)
    drawn = draw_rows(board, [[left, right]], style.layer_axis(run), 330)
    mark_tolerance(drawn[0], left, of.tolerance)

Damage has a logarithmic axis, linear around zero; recovery ends where a control does much harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair, pair_name
from interp.plots import style
from interp.plots.board import Panel
from interp.plots.lines import LinePanel, Look, line, tested
from interp.plots.scales import Symlog, finite
from interp.plots.style import label
from interp.runs.view import Run
from interp.significance import ALPHA

if TYPE_CHECKING:
    import pandas as pd

EXCHANGED = "resid_post"
"""Where states are exchanged."""
GREY = "#8C8C8C"
"""Of random controls, and of nothing else."""
LOWEST = -1.0
"""Recovery below this is off the axis: a control may do any harm."""
Wanted = tuple[str, Pair, Look]
"""A line: its measure, whose state went into whose run, and its look."""
_NULL = "random difference (same dash and mark)"


@dataclass(frozen=True)
class Exchange(LinePanel):
    """Lines of states, controls first. `many`: so many that controls have no bands, and one entry
    in the legend."""

    many: bool = False

    @property
    def seen(self) -> np.ndarray:
        """The numbers that are seen: of a control without a band not its interval."""
        ends = ["value", "ci_low", "ci_high"]
        parts = [f[ends[:1] if self._bare(look) else ends] for look, f in self.lines]
        return finite([part.to_numpy(float) for part in parts])

    def traces(self) -> list[go.Scatter]:
        """Bands and lines; hover names the two conditions too."""
        drawn = [trace for look, frame in self.lines for trace in self._line(look, frame)]
        return [self.scale.drawn(trace) for trace in drawn] if self.scale else drawn

    def _bare(self, look: Look) -> bool:
        return self.many and look.colour == GREY

    def _line(self, look: Look, frame: pd.DataFrame) -> list[go.Scatter]:
        """A legend names states first, then base and null, then controls."""
        bare, row = self._bare(look), frame.iloc[0]
        pair = pair_name((str(row["condition"]), str(row["reference"])))
        name = f"random difference, {look.name}" if bare else look.name
        told = name if pair in name else f"{name}, {pair}"
        entry = label(_NULL if bare else look.name)
        band, drawn = (t.update(legendgroup=entry) for t in line(frame, look._replace(name=told)))
        rank = 2 if look.colour == GREY else int(look.dash != "solid")
        drawn.update(name=entry, legendrank=1000 + rank)
        return [drawn.update(line_width=1.4)] if bare else [band, drawn]


def state_in(source: str, target: str, most: int = 18, what: str = "state") -> str:
    """Whose state is put into whose run, for a heading."""
    return f"{label(source, most)}'s {what} in {label(target, most)}'s run"


def exchange_lines(
    run: Run, wanted: Iterable[Wanted], position: str = "all"
) -> list[tuple[Look, pd.DataFrame]]:
    """Lines of measures of the residual stream by layer, those that have a value."""
    found = ((o, run.by_layer(m, EXCHANGED, pair, position)) for m, pair, o in wanted)
    return [(look, frame) for look, frame in found if len(frame)]


# --- axes ----------------------------------------------------------------------------------------


def on_damage(panels: Sequence[Exchange], tolerance: float) -> list[Exchange]:
    """The panels on one scale: three decades below the largest damage, and below the tolerance in
    any case."""
    numbers = [panel.seen for panel in panels]
    least = Symlog.of([np.array([tolerance])], 1).knee if tolerance else 1
    scale = Symlog(min(Symlog.of(numbers, 3).knee, least))
    limits = scale.axis(0, float(np.concatenate([[tolerance], *numbers]).max()))
    return [replace(panel, scale=scale, limits=limits) for panel in panels]


def on_recovery(panels: Sequence[Exchange]) -> list[Exchange]:
    """The panels on one range, from the largest harm that is shown to all of the behaviour."""
    least = float(np.concatenate([[0.0], *(panel.seen for panel in panels)]).min())
    limits = {"range": [max(LOWEST, least) - 0.06, 1.08]}
    return [replace(panel, limits=limits) for panel in panels]


def mark_tolerance(panels: Sequence[Panel], shown: Exchange, tolerance: float) -> None:
    """The damage up to which states count as equivalent, across panels on the scale of `shown`."""
    at = float(shown.scale(tolerance)) if shown.scale else tolerance
    for panel in panels:
        limit = go.Scatter(
            x=panel.x["range"],
            y=[at, at],
            mode="lines",
            line={"color": style.LIMIT, "width": 1.3, "dash": "dash"},
            name=f"tolerance, {tolerance:g} nats",
            legendgroup="tolerance",
            legendrank=1003,
            hoverinfo="name",
        )
        panel.draw([limit])


# --- words ---------------------------------------------------------------------------------------


def open_markers(panels: Iterable[Exchange], control: str, over: str = "") -> str:
    """What an open marker says, where any line was tested."""
    if not tested([frame for panel in panels for frame in panel.frames]):
        return ""
    return (
        f"Open markers: p > {ALPHA:g} against {control}, paired sign flips over queries, "
        f"corrected{over}"
    )


def harm_words(panels: Iterable[Exchange]) -> str:
    """Where a line of recovery leaves the panel."""
    harmed = any((panel.seen < LOWEST).any() for panel in panels)
    return f"Recovery below −{-LOWEST:g} is off the axis" if harmed else ""
