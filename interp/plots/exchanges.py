"""What an interchange has to show by layer: whose state went into whose run, panel by panel.

    a, b, base = sides(run.exchanged())
    panels(run)[1, 1]            # curves of a's state in b's run, controls first

Rows and columns of panels count from 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import by_layer, lines, style
from interp.plots.lines import Look
from interp.plots.text import label
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

SITE = "resid_post"
GREY = "#8C8C8C"
"""Of random controls, and of nothing else."""
_CONTROLS = {
    "random_difference": ("random difference", "dash"),
    "random_direction": ("random direction", "dot"),
}


@dataclass(frozen=True)
class Curve:
    """One line: its rows and its look."""

    frame: pd.DataFrame
    look: Look

    @property
    def ends(self) -> np.ndarray:
        """Values and interval ends."""
        return self.frame[["value", "ci_low", "ci_high"]].to_numpy(float)


Place = tuple[int, int]
"""Row and column of a panel."""


def shown_pairs(run: Run) -> list[Pair]:
    """The two conditions, and the null as far as the run has one."""
    pair, null = run.headline, run.null_pair
    return [p for p in (pair, null) if p is not None]


def state_in(source: str, target: str, most: int = 18) -> str:
    """Whose state is put into whose run, for a heading."""
    return f"{label(source, most)}'s state in {label(target, most)}'s run"


def sides(run: Run) -> tuple[str, str, str]:
    """The two conditions and base."""
    pair, base = run.headline, run.base
    if pair is None or pair[1] is None or base is None:
        raise NotMeasured("an interchange needs two conditions and base")
    return pair[0], pair[1], base


def headings(run: Run) -> list[str]:
    """What every panel shows, row by row."""
    a, b, base = sides(run)
    exchanged = [state_in(a, b), state_in(b, a), "distance between states"]
    into_base = [state_in(a, base), state_in(b, base), f"damage over that of {label(base)}'s state"]
    return exchanged + into_base


def panels(run: Run) -> dict[Place, list[Curve]]:
    """What every panel draws, the controls first: they lie below."""
    a, b, base = sides(run)
    found: dict[Place, list[Curve]] = {}
    for column, (source, target) in enumerate([(a, b), (b, a)], 1):
        worst = _curve(run, "damage", (base, target), _base_look(base))
        own = _curve(run, "damage", (source, target), _look(run, source))
        found[1, column] = [*_controls(run, "damage", (source, target)), worst, own]
        alone = _curve(run, "recovery", (source, base), _look(run, source))
        found[2, column] = [*_controls(run, "recovery", (source, base)), alone]
    found[1, 3] = list(_distances(run))
    found[2, 3] = [
        _curve(run, "relative_damage", move, _look(run, move[0])) for move in [(a, b), (b, a)]
    ]
    return found


def _curve(run: Run, measure: str, pair: Pair, look: Look, position: str = "all") -> Curve:
    return Curve(lines.layer_rows(run, measure, SITE, pair, position), look)


def _look(run: Run, source: str) -> Look:
    colour, _ = style.condition_look(run, source)
    return Look(f"{source}'s state", colour)


def _base_look(base: str) -> Look:
    return Look(f"{base}'s state (positive control)", style.INK, "longdash", "diamond")


_NULL = "random difference (same dash and mark)"


def control_or_line(curve: Curve, named: set[str]) -> list[go.Scatter]:
    """A line with its band; of a control the line alone, one legend entry for all. `named` has what
    the legend already shows."""
    control, look = curve.look.colour == GREY, curve.look
    own = look._replace(name=f"random difference, {look.name}") if control else look
    entry = _NULL if control else look.name
    drawn = lines.line(curve.frame, own, entry not in named)
    if control:
        drawn = drawn[1:]
        drawn[0].update(name=_NULL, legendgroup=_NULL, legendrank=1002)
        drawn[0].line.width = 1.4
    named.add(entry)
    return drawn


def rank(look: Look) -> int:
    """What a legend names first: states, then base and null, then controls (drawn first)."""
    return 0 if look.dash == "solid" else 2 if look.colour == GREY else 1


def _controls(run: Run, measure: str, pair: Pair) -> Iterator[Curve]:
    for control, (name, dash) in _CONTROLS.items():
        yield _curve(run, f"{measure}_{control}", pair, Look(name, GREY, dash))


def _distances(run: Run) -> Iterator[Curve]:
    """Base from either side, the null, and the pair."""
    a, b, base = sides(run)
    for side in (a, b):
        yield _curve(run, "relative_l2", (side, base), _base_look(base), "last")
    for pair in reversed(shown_pairs(run)):
        yield _curve(run, "relative_l2", pair, by_layer.pair_look(run, pair), "last")


def depth_row(run: Run) -> pd.Series | None:
    """The row of the state-equivalence depth."""
    a, b, _ = sides(run)
    found = run.rows("state_equivalence_depth", SITE, (a, b))
    return None if found.empty else found.iloc[0]
