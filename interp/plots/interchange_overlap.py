"""Do both conditions rest on the same heads? Every head's effect under one against the other.

    interchange_overlap(run).show()

On the diagonal a head carries as much under both; on an axis it matters to one of them only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.names import Head, Pair
from interp.plots import style
from interp.plots.exchanges import sides
from interp.plots.panels import Area, beside
from interp.plots.symlog import Symlog
from interp.plots.text import label
from interp.runs.largest import UNTESTED
from interp.runs.view import NotMeasured, Run
from interp.runs.words import units
from interp.showing import number

if TYPE_CHECKING:
    import pandas as pd

_SIDE = 400
_MOST = 12
"""Heads that are named and have intervals, at most: more would hide each other."""
_COLUMNS = ("value", "ci_low", "ci_high")


class Cloud(NamedTuple):
    """Every head's effect under both conditions: `under` is `[condition, head, 3]` with value and
    interval; `groups`: which strongest ones are shared; `named`: those to be labelled, in order."""

    finding: dict[str, Any]
    measure: str
    axis: str
    heads: list[Head]
    under: np.ndarray
    groups: dict[str, list[int]]
    named: list[int]


def interchange_overlap(run: Run) -> go.Figure:
    """Heads by what is lost without them and by what they win alone, one condition against the
    other, the strongest marked. Raises `NotMeasured` without heads of an interchange."""
    run = run.exchanged()
    a, b, base = sides(run)
    clouds = [
        cloud
        for finding in run.manifest["interchange"].get("heads") or []
        if (cloud := _cloud(run, finding, (a, b), base)) is not None
    ]
    if not clouds:
        raise NotMeasured("this run has no effects of single heads under both conditions")
    figure = make_subplots(
        1, len(clouds), horizontal_spacing=0.11, subplot_titles=[_heading(c) for c in clouds]
    )
    figure.update_annotations(font={"size": 13})
    for column, cloud in enumerate(clouds, 1):
        _panel(figure, run, cloud, column)
    return style.finish(
        figure,
        run,
        title=f"Heads that carry the behaviour: {a} against {b}",
        pairs=[(a, b)],
        note=". ".join([*map(_words, clouds), _note(base, clouds)]),
        plot=_SIDE,
        legend=True,
        left=76,
    )


def _cloud(run: Run, finding: dict[str, Any], pair: Pair, base: str) -> Cloud | None:
    """One ranking's heads; None where its rows are missing or undefined."""
    measure = "damage" if finding["by"] == "lost" else "recovery"
    frames = []
    for condition in pair:
        move = (base, condition) if finding["by"] == "lost" else (condition, base)
        frame = run.rows(measure, "z", (str(move[0]), str(move[1])), "all")
        frames.append(
            frame[frame["head"].notna()].set_index(["layer", "head"])[[*_COLUMNS, "units"]]
        )
    both = (
        frames[0]
        .join(frames[1], rsuffix="_other", how="inner")
        .dropna(subset=["value", "value_other"])
    )
    if both.empty:
        return None
    heads = [Head(int(layer), int(head)) for layer, head in both.index]
    under = np.stack([_numbers(both, suffix) for suffix in ("", "_other")])
    axis = f"{finding['by']}{units(frames[0])}"
    groups, named = _groups(finding, [str(h) for h in heads], pair)
    return Cloud(finding, measure, axis, heads, under, groups, named)


def _numbers(frame: pd.DataFrame, suffix: str) -> np.ndarray:
    return frame[[f"{c}{suffix}" for c in _COLUMNS]].to_numpy(float, na_value=np.nan)


def _groups(
    finding: dict[str, Any], names: list[str], pair: Pair
) -> tuple[dict[str, list[int]], list[int]]:
    """Heads by where they are among the strongest, and the first of either list in turn."""
    first, second = (finding["under"][condition] for condition in pair)
    kinds = {
        "both": [h for h in first if h in second],
        "condition": [h for h in first if h not in second],
        "reference": [h for h in second if h not in first],
    }
    place = {name: i for i, name in enumerate(names)}
    groups = {kind: [place[h] for h in found if h in place] for kind, found in kinds.items()}
    rest = set(range(len(names))) - {i for found in groups.values() for i in found}
    turns = [h for two in zip(first, second, strict=False) for h in two]
    named = [place[h] for h in dict.fromkeys(turns) if h in place][:_MOST]
    return {"neither": sorted(rest), **groups}, named


def _heading(cloud: Cloud) -> str:
    what = {"lost": "lost without the head", "won": "won by the head alone"}
    return what.get(cloud.finding["by"], str(cloud.finding["by"]))


def _panel(figure: go.Figure, run: Run, cloud: Cloud, column: int) -> None:
    pair = sides(run)[:2]
    scale = Symlog.of([cloud.under], 2 if cloud.measure == "damage" else 1)
    shown = cloud.under[:, cloud.named] if cloud.named else cloud.under[:, :, :1]
    ends = np.concatenate([cloud.under[..., 0].ravel(), shown.ravel(), [0.0]])
    axis = scale.axis(float(np.nanmin(ends)), float(np.nanmax(ends)))
    diagonal = {"color": "#9A9A9A", "width": 1, "dash": "dot"}
    figure.add_trace(
        go.Scatter(
            x=axis["range"],
            y=axis["range"],
            mode="lines",
            line=diagonal,
            showlegend=False,
            hoverinfo="skip",
        ),
        row=1,
        col=column,
    )
    looks = _looks(run, pair)
    sides_of = _label_sides(cloud, scale, axis["range"])
    for kind, members in cloud.groups.items():
        if members:
            trace = _points(cloud, kind, members, scale, looks[kind], sides_of, pair)
            trace.showlegend = all(t.legendgroup != kind for t in figure.data)
            trace.legendrank = 1000 + (kind == "neither")
            figure.add_trace(trace, row=1, col=column)
    for update, condition in ((figure.update_xaxes, pair[0]), (figure.update_yaxes, pair[1])):
        words = f"{cloud.axis} under {condition}"
        update({**style.axis(words), **axis}, row=1, col=column)


def _looks(run: Run, pair: tuple[str, str]) -> dict[str, tuple[str, str, str, int]]:
    """Group -> name, colour, symbol, size."""
    a, b = (style.condition_look(run, c)[0] for c in pair)
    shared = style.colours(run)[pair]
    return {
        "neither": ("other heads", "#A6A6A6", "circle", 6),
        "both": ("strongest under both", shared, "diamond", 11),
        "condition": (f"under {pair[0]} only", a, "triangle-down", 10),
        "reference": (f"under {pair[1]} only", b, "triangle-up", 10),
    }


def _label_sides(cloud: Cloud, scale: Symlog, ends: list[float]) -> dict[int, str]:
    """Named head -> at which side of its point the label stands."""
    at = (scale(cloud.under).T - ends[0]) / (ends[1] - ends[0]) * _SIDE
    names = [str(cloud.heads[i]) for i in cloud.named]
    marks = np.concatenate([at[0], *_along(at[:, cloud.named])])
    found = beside(at[0][cloud.named], names, marks, Area(0, 0, _SIDE, _SIDE)) if names else []
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
    cloud: Cloud,
    kind: str,
    members: list[int],
    scale: Symlog,
    look: tuple[str, str, str, int],
    sides_of: dict[int, str],
    pair: tuple[str, str],
) -> go.Scatter:
    name, colour, symbol, size = look
    heads = [str(cloud.heads[i]) for i in members]
    x, y = cloud.under[:, members]
    told = "".join(
        f"<br>{label(c)}: %{{customdata[{3 * i}]:.3g}}, interval %{{customdata[{3 * i + 1}]:.3g}} "
        f"to %{{customdata[{3 * i + 2}]:.3g}}"
        for i, c in enumerate(pair)
    )
    return go.Scatter(
        x=scale(x[:, 0]),
        y=scale(y[:, 0]),
        error_x=_whiskers(x, members, cloud.named, scale, colour),
        error_y=_whiskers(y, members, cloud.named, scale, colour),
        mode="markers+text",
        text=[h if i in sides_of else "" for i, h in zip(members, heads, strict=True)],
        textposition=[sides_of.get(i, "middle right") for i in members],
        textfont={"size": 11, "color": style.INK},
        hovertext=heads,
        marker={
            "size": size if len(cloud.heads) <= 256 else 0.6 * size,
            "color": colour,
            "symbol": symbol,
            "line": {"width": 0.8, "color": "white"},
        },
        name=label(name),
        legendgroup=kind,
        customdata=np.concatenate([x, y], axis=1),
        hovertemplate=f"<b>%{{hovertext}}</b>, {label(name)}{told}<extra></extra>",
        meta={
            "fixed": {
                "by": cloud.finding["by"],
                "measure": cloud.measure,
                "site": "z",
                "condition": pair[0],
                "reference": pair[1],
                "strongest": kind,
            },
            "columns": {"head": heads},
            "custom": [f"{c}_{role}" for role in ("condition", "reference") for c in _COLUMNS],
        },
    )


def _whiskers(
    numbers: np.ndarray, members: list[int], named: list[int], scale: Symlog, colour: str
) -> dict[str, Any]:
    """Intervals of the named heads, as lengths on the scale."""
    value, low, high = scale(numbers).T
    kept = np.isin(members, named)
    up, down = (np.where(kept, np.nan_to_num(d), 0) for d in (high - value, value - low))
    look = {"thickness": 1, "width": 0, "color": style.faded(colour, 0.55)}
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, **look}


def _words(cloud: Cloud) -> str:
    """The finding in a sentence."""
    found = cloud.finding
    share = "undefined" if found["share"] is None else f"{100 * found['share']:.0f} %"
    return (
        f"{str(found['by']).capitalize()}: {share} of the {found['k']} strongest are the same "
        f"({_p(found['p'])}), rank correlation of all {len(cloud.heads)} "
        f"{number(found['rank_correlation'])} ({_p(found['rank_p'])})"
    )


def _p(value: float | None) -> str:
    return "p undefined" if value is None else f"p = {value:.2g}"


def _note(base: str, clouds: list[Cloud]) -> str:
    named = max(len(cloud.named) for cloud in clouds)
    strongest = max(len(set().union(*list(c.groups.values())[1:])) for c in clouds)
    few = f". Named and with intervals: the {named} strongest of them" if strongest > named else ""
    return (
        f"p: heads permuted within their layers; single heads: {UNTESTED}. Lost: damage when "
        f"{base}'s output of the head takes its place in the condition's run; won: recovery when "
        f"the condition's does in {base}'s. Axes: logarithmic, linear around zero{few}"
    )
