"""Do both conditions rest on the same heads? Every head's effect under one against the other.

    interchange_overlap(run).show()

On the diagonal a head carries as much under both; on an axis it matters to one of them only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from interp.names import Head
from interp.plots import style
from interp.plots.board import Area, Board
from interp.plots.labels import beside
from interp.plots.scales import Symlog
from interp.plots.style import label
from interp.runs.largest import UNTESTED
from interp.runs.patched import Patched
from interp.runs.view import NotMeasured, Run
from interp.runs.words import units
from interp.showing import number

if TYPE_CHECKING:
    import pandas as pd

_HEADINGS = {"lost": "lost without the head", "won": "won by the head alone"}
_MOST = 12
"""Heads that are named and have intervals, at most: more would hide each other."""
_COLUMNS = ["value", "ci_low", "ci_high"]


class Cloud(NamedTuple):
    """Every head's effect under both conditions: `under` is `[condition, head, 3]` with value and
    interval; `groups`: which strongest ones are shared; `named`: those to be labelled, in order."""

    finding: dict[str, Any]
    measure: str
    axis: str
    heads: list[str]
    under: np.ndarray
    groups: dict[str, list[int]]
    named: list[int]

    @property
    def by(self) -> str:
        """What the heads are ranked by: `lost` or `won`."""
        return str(self.finding["by"])

    @property
    def scale(self) -> Symlog:
        """Of both axes."""
        return Symlog.of([self.under], 2 if self.measure == "damage" else 1)

    @property
    def limits(self) -> dict[str, Any]:
        """Ticks and range of both axes: all heads, and the intervals that are drawn."""
        shown = self.under[:, self.named]
        ends = np.concatenate([self.under[..., 0].ravel(), shown.ravel(), [0.0]])
        return self.scale.axis(float(np.nanmin(ends)), float(np.nanmax(ends)))


def interchange_overlap(run: Run) -> go.Figure:
    """Heads by what is lost without them and by what they win alone, one condition against the
    other, the strongest marked. Raises `NotMeasured` without heads of an interchange."""
    run = run.exchanged()
    of = run.interchange
    found = [_cloud(of, finding) for finding in of.found.get("heads") or []]
    clouds = [cloud for cloud in found if cloud is not None]
    if not clouds:
        raise NotMeasured("this run has no effects of single heads under both conditions")
    board = Board(left=76)
    headings = [_HEADINGS.get(cloud.by, cloud.by) for cloud in clouds]
    panels = board.row(headings, 400, style.axis(), gap=100, shared=False)
    for panel, cloud in zip(panels, clouds, strict=True):
        words = (f"{cloud.axis} under {condition}" for condition in of.pair)
        panel.x, panel.y = ({**style.axis(one), **cloud.limits} for one in words)
        panel.draw(_traces(of, cloud, panel.area))
    return board.finish(
        run,
        f"Heads that carry the behaviour: {of.a} against {of.b}",
        pairs=[of.pair],
        notes=[*map(_words, clouds), _note(of.base, clouds)],
    )


# --- the heads of a ranking ----------------------------------------------------------------------


def _cloud(of: Patched, finding: dict[str, Any]) -> Cloud | None:
    """One ranking's heads; None where its rows are missing or undefined."""
    lost = finding["by"] == "lost"
    measure = "damage" if lost else "recovery"
    moves = [(of.base, c) if lost else (c, of.base) for c in of.pair]
    rows = [of.run.rows(measure, "z", move, "all", heads=True) for move in moves]
    first, second = (frame.set_index(["layer", "head"])[_COLUMNS] for frame in rows)
    both = first.join(second, rsuffix="_other", how="inner")
    both = both.dropna(subset=["value", "value_other"])
    if both.empty:
        return None
    heads = [str(Head(int(layer), int(head))) for layer, head in both.index]
    under = np.stack([_numbers(both, suffix) for suffix in ("", "_other")])
    axis = f"{finding['by']}{units(rows[0])}"
    strongest = [finding["under"][condition] for condition in of.pair]
    return Cloud(finding, measure, axis, heads, under, *_groups(heads, *strongest))


def _numbers(frame: pd.DataFrame, suffix: str) -> np.ndarray:
    return frame[[f"{c}{suffix}" for c in _COLUMNS]].to_numpy(float, na_value=np.nan)


def _groups(
    heads: list[str], first: list[str], second: list[str]
) -> tuple[dict[str, list[int]], list[int]]:
    """Heads by where they are among the strongest, and the first of either list in turn."""
    kinds = {
        "both": [h for h in first if h in second],
        "condition": [h for h in first if h not in second],
        "reference": [h for h in second if h not in first],
    }
    place = {name: i for i, name in enumerate(heads)}
    groups = {kind: [place[h] for h in found if h in place] for kind, found in kinds.items()}
    rest = set(range(len(heads))) - {i for found in groups.values() for i in found}
    turns = [h for two in zip(first, second, strict=False) for h in two]
    named = [place[h] for h in dict.fromkeys(turns) if h in place][:_MOST]
    return {"neither": sorted(rest), **groups}, named


# --- their points --------------------------------------------------------------------------------


class _Look(NamedTuple):
    name: str
    colour: str
    symbol: str
    size: int


def _traces(of: Patched, cloud: Cloud, area: Area) -> Iterator[go.Scatter]:
    """The diagonal, then the heads, the strongest above."""
    ends = cloud.limits["range"]
    line = {"color": style.RULE, "width": 1, "dash": "dot"}
    quiet = {"mode": "lines", "showlegend": False, "hoverinfo": "skip"}
    yield go.Scatter(x=ends, y=ends, line=line, **quiet)
    first, second = (style.condition_look(of.run, c)[0] for c in of.pair)
    shared = style.colours(of.run)[of.pair]
    looks = {
        "neither": _Look("other heads", "#A6A6A6", "circle", 6),
        "both": _Look("strongest under both", shared, "diamond", 11),
        "condition": _Look(f"under {of.a} only", first, "triangle-down", 10),
        "reference": _Look(f"under {of.b} only", second, "triangle-up", 10),
    }
    where = _label_sides(cloud, area)
    for kind, members in cloud.groups.items():
        if members:
            yield _points(of, cloud, kind, looks[kind], where)


def _label_sides(cloud: Cloud, area: Area) -> dict[int, str]:
    """Named head -> at which side of its point the label stands."""
    size = (area.width, area.height)
    low, high = cloud.limits["range"]
    at = (cloud.scale(cloud.under).T - low) / (high - low) * size
    names = [cloud.heads[i] for i in cloud.named]
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


def _points(of: Patched, cloud: Cloud, kind: str, look: _Look, where: dict[int, str]) -> go.Scatter:
    members = cloud.groups[kind]
    heads = [cloud.heads[i] for i in members]
    x, y = cloud.under[:, members]
    told = "".join(
        f"<br>{label(c)}: %{{customdata[{i}]:.3g}}, interval %{{customdata[{i + 1}]:.3g}} "
        f"to %{{customdata[{i + 2}]:.3g}}"
        for i, c in zip((0, 3), of.pair, strict=True)
    )
    known = {"by": cloud.by, "measure": cloud.measure, "site": "z"}
    names = {"condition": of.a, "reference": of.b, "strongest": kind}
    return go.Scatter(
        x=cloud.scale(x[:, 0]),
        y=cloud.scale(y[:, 0]),
        error_x=_whiskers(x, members, cloud, look.colour),
        error_y=_whiskers(y, members, cloud, look.colour),
        mode="markers+text",
        text=[h if i in where else "" for i, h in zip(members, heads, strict=True)],
        textposition=[where.get(i, "middle right") for i in members],
        textfont={"size": 11, "color": style.INK},
        hovertext=heads,
        marker={
            "size": look.size if len(cloud.heads) <= 256 else 0.6 * look.size,
            "color": look.colour,
            "symbol": look.symbol,
            "line": {"width": 0.8, "color": "white"},
        },
        name=label(look.name),
        legendgroup=kind,
        legendrank=1000 + (kind == "neither"),
        customdata=np.concatenate([x, y], axis=1),
        hovertemplate=f"<b>%{{hovertext}}</b>, {label(look.name)}{told}<extra></extra>",
        meta={
            "fixed": {**known, **names},
            "columns": {"head": heads},
            "custom": [f"{c}_{role}" for role in ("condition", "reference") for c in _COLUMNS],
        },
    )


def _whiskers(numbers: np.ndarray, members: list[int], cloud: Cloud, colour: str) -> dict[str, Any]:
    """Intervals of the named heads, as lengths on the scale."""
    value, low, high = cloud.scale(numbers).T
    kept = np.isin(members, cloud.named)
    up, down = (np.where(kept, np.nan_to_num(d), 0) for d in (high - value, value - low))
    look = {"thickness": 1, "width": 0, "color": style.faded(colour, 0.55)}
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **look}


# --- words ---------------------------------------------------------------------------------------


def _words(cloud: Cloud) -> str:
    """The finding in a sentence."""
    found = cloud.finding
    share = "undefined" if found["share"] is None else f"{100 * found['share']:.0f} %"
    return (
        f"{cloud.by.capitalize()}: {share} of the {found['k']} strongest are the same "
        f"({_p(found['p'])}), rank correlation of all {len(cloud.heads)} "
        f"{number(found['rank_correlation'])} ({_p(found['rank_p'])})"
    )


def _p(value: float | None) -> str:
    return "p undefined" if value is None else f"p = {value:.2g}"


def _note(base: str, clouds: Sequence[Cloud]) -> str:
    named = max(len(cloud.named) for cloud in clouds)
    strongest = max(len(set().union(*list(c.groups.values())[1:])) for c in clouds)
    few = f". Named and with intervals: the {named} strongest of them" if strongest > named else ""
    return (
        f"p: heads permuted within their layers; single heads: {UNTESTED}. Lost: damage when "
        f"{base}'s output of the head takes its place in the condition's run; won: recovery when "
        f"the condition's does in {base}'s. Axes: logarithmic, linear around zero{few}"
    )
