"""Do both conditions rest on the same heads? Every head's effect under one against the other.

    interchange_overlap(run).show()

On the diagonal a head carries as much under both; on an axis it matters to one of them only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.board import Area, Board
from interp.plots.labels import beside
from interp.plots.scales import Symlog
from interp.plots.style import label
from interp.runs.largest import UNTESTED
from interp.runs.patched import UNDER, Patched
from interp.runs.view import NotMeasured, Run
from interp.showing import number

if TYPE_CHECKING:
    import pandas as pd

_MOST = 12
"""Heads that are named and have intervals, at most: more would hide each other."""
_LOOKS = {
    "neither": ("other heads", "circle", 6),
    "both": ("strongest under both", "diamond", 11),
    "condition": ("under {} only", "triangle-down", 10),
    "reference": ("under {} only", "triangle-up", 10),
}
"""Where a head is among the strongest -> name, symbol, size."""


@dataclass(frozen=True)
class Cloud:
    """A ranking and its heads as `Patched.under_both` has them; `named`: the rows of those that
    are labelled, in order; `unit`: of their effects."""

    finding: dict[str, Any]
    heads: pd.DataFrame
    named: list[int]
    unit: str

    @property
    def lost(self) -> bool:
        """Whether it ranks what is lost without a head, not what a head wins alone."""
        return bool(self.finding["by"] == "lost")

    @property
    def under(self) -> np.ndarray:
        """`[condition, head, 3]`."""
        return np.stack([self.heads[own].to_numpy(float) for own in UNDER])

    @cached_property
    def scale(self) -> Symlog:
        """Of both axes."""
        return Symlog.of([self.under], 2 if self.lost else 1)

    @cached_property
    def limits(self) -> dict[str, Any]:
        """Ticks and range of both axes: all heads, and the intervals that are drawn."""
        under = self.under
        ends = np.concatenate([under[..., 0].ravel(), under[:, self.named].ravel(), [0.0]])
        return self.scale.axis(float(np.nanmin(ends)), float(np.nanmax(ends)))


def interchange_overlap(run: Run) -> go.Figure:
    """Heads by what is lost without them and by what they win alone, one condition against the
    other, the strongest marked. Raises `NotMeasured` without heads of an interchange."""
    run = run.exchanged()
    of = run.interchange
    found = [_cloud(of, finding) for finding in of.found.get("heads") or []]
    clouds = [cloud for cloud in found if len(cloud.heads)]
    if not clouds:
        raise NotMeasured("this run has no effects of single heads under both conditions")
    board = Board(left=76)
    headings = ["lost without the head" if c.lost else "won by the head alone" for c in clouds]
    panels = board.row(headings, 400, style.axis(), gap=100, shared=False)
    for panel, cloud in zip(panels, clouds, strict=True):
        words = (f"{cloud.finding['by']}{cloud.unit} under {condition}" for condition in of.pair)
        panel.x, panel.y = ({**style.axis(one), **cloud.limits} for one in words)
        panel.draw(_traces(of, cloud, panel.area))
    return board.finish(
        run,
        f"Heads that carry the behaviour: {of.a} against {of.b}",
        pairs=[of.pair],
        notes=[*map(_words, clouds), _note(of.base, clouds)],
    )


def _cloud(of: Patched, finding: dict[str, Any]) -> Cloud:
    """One ranking's heads; the first of either list in turn are named."""
    heads, unit = of.under_both(finding)
    names = heads["head"].tolist()
    lists = (finding["under"][condition] for condition in of.pair)
    turns = dict.fromkeys(h for two in zip(*lists, strict=False) for h in two)
    return Cloud(finding, heads, [names.index(h) for h in turns if h in names][:_MOST], unit)


# --- what is drawn -------------------------------------------------------------------------------


def _traces(of: Patched, cloud: Cloud, area: Area) -> Iterator[go.Scatter]:
    """The diagonal, then the heads, the strongest above."""
    ends = cloud.limits["range"]
    line = {"color": style.RULE, "width": 1, "dash": "dot"}
    quiet = {"mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    yield go.Scatter(x=ends, y=ends, line=line, **quiet)
    colours = {"neither": "#A6A6A6", "both": style.colours(of.run)[of.pair]}
    sides = dict(zip(("condition", "reference"), of.pair, strict=True))
    colours |= {kind: style.condition_look(of.run, c)[0] for kind, c in sides.items()}
    where = _label_sides(cloud, area)
    crowd = 1 if len(cloud.heads) <= 256 else 0.6
    for kind, (name, symbol, size) in _LOOKS.items():
        members = np.flatnonzero(cloud.heads["strongest"] == kind)
        if len(members):
            marker: dict[str, Any] = {"symbol": symbol, "size": crowd * size}
            marker |= {"color": colours[kind], "line": {"width": 0.8, "color": "white"}}
            known = label(name.format(sides.get(kind)))
            told = f"<b>%{{hovertext}}</b>, {known}{_told(of)}<extra></extra>"
            yield _points(of, cloud, members, where, colours[kind]).update(
                name=known,
                marker=marker,
                legendgroup=kind,
                legendrank=1000 + (kind == "neither"),
                hovertemplate=told,
            )


def _label_sides(cloud: Cloud, area: Area) -> dict[int, str]:
    """Named head -> at which side of its point the label stands."""
    size = (area.width, area.height)
    low, high = cloud.limits["range"]
    at = (cloud.scale(cloud.under).T - low) / (high - low) * size
    names = [cloud.heads["head"].iloc[i] for i in cloud.named]
    marks = np.concatenate([at[0], *_along(at[:, cloud.named])])
    found = beside(at[0][cloud.named], names, marks, size)
    return {i: side for i, side in zip(cloud.named, found, strict=True) if side is not None}


def _along(named: np.ndarray) -> Iterator[np.ndarray]:
    """Points on the whiskers of named heads, `[3, head, 2]`, in pixels: no place for a label."""
    point, *tips = named
    for tip in tips:
        known = np.where(np.isnan(tip), point, tip)
        for part in (0.3, 0.6, 0.9):
            step = part * (known - point)
            yield point + step * [1, 0]
            yield point + step * [0, 1]


def _points(
    of: Patched, cloud: Cloud, members: np.ndarray, where: dict[int, str], colour: str
) -> go.Scatter:
    """Heads of one kind, those that are named with their intervals."""
    heads = cloud.heads.iloc[members]
    x, y = cloud.under[:, members]
    shown = np.isin(members, cloud.named)
    fixed = {"by": cloud.finding["by"], "measure": "damage" if cloud.lost else "recovery"}
    fixed |= {"site": "z", "condition": of.a, "reference": of.b}
    return go.Scatter(
        x=cloud.scale(x[:, 0]),
        y=cloud.scale(y[:, 0]),
        error_x=_whiskers(cloud.scale(x), shown, colour),
        error_y=_whiskers(cloud.scale(y), shown, colour),
        mode="markers+text",
        text=[h if i in where else "" for i, h in zip(members, heads["head"], strict=True)],
        textposition=[where.get(i, "middle right") for i in members],
        textfont={"size": 11, "color": style.INK},
        hovertext=heads["head"].tolist(),
        customdata=np.concatenate([x, y], axis=1),
        meta={
            "fixed": {**fixed, "strongest": heads["strongest"].iloc[0]},
            "columns": {"head": heads["head"].tolist()},
            "custom": [name for own in UNDER for name in own],
        },
    )


def _whiskers(scaled: np.ndarray, shown: np.ndarray, colour: str) -> dict[str, Any]:
    """Intervals, as lengths on the scale."""
    value, low, high = scaled.T
    up, down = (np.where(shown, np.nan_to_num(d), 0) for d in (high - value, value - low))
    look = {"thickness": 1, "width": 0, "color": style.faded(colour, 0.55)}
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **look}


# --- words ---------------------------------------------------------------------------------------


def _words(cloud: Cloud) -> str:
    """The finding in a sentence."""
    found = cloud.finding
    share = "undefined" if found["share"] is None else f"{100 * found['share']:.0f} %"
    return (
        f"{str(found['by']).capitalize()}: {share} of the {found['k']} strongest are the same "
        f"({_p(found['p'])}), rank correlation of all {len(cloud.heads)} "
        f"{number(found['rank_correlation'])} ({_p(found['rank_p'])})"
    )


def _told(of: Patched) -> str:
    """Both effects of a head, on hovering."""
    return "".join(
        f"<br>{label(c)}: %{{customdata[{i}]:.3g}}, interval %{{customdata[{i + 1}]:.3g}} "
        f"to %{{customdata[{i + 2}]:.3g}}"
        for i, c in zip((0, 3), of.pair, strict=True)
    )


def _p(value: float | None) -> str:
    return "p undefined" if value is None else f"p = {value:.2g}"


def _note(base: str, clouds: Sequence[Cloud]) -> str:
    named = max(len(cloud.named) for cloud in clouds)
    strongest = max(int((c.heads["strongest"] != "neither").sum()) for c in clouds)
    few = f". Named and with intervals: the {named} strongest of them" if strongest > named else ""
    return (
        f"p: heads permuted within their layers; single heads: {UNTESTED}. Lost: damage when "
        f"{base}'s output of the head takes its place in the condition's run; won: recovery when "
        f"the condition's does in {base}'s. Axes: logarithmic, linear around zero{few}"
    )
