"""A LoRA without some of its parts: what its behaviour needs, and what is a by-product.

    ablation(run).show()

A part off that moves the residual stream much and the output little is a by-product: low and far
to the right in the figure, whose axes are logarithmic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.plots import style
from interp.plots.board import Board, Panel
from interp.plots.labels import beside
from interp.plots.lines import LinePanel, Look
from interp.plots.maps import by_module, draw_alike, module_axis
from interp.plots.scales import ColourScale, share_range
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.parts import (
    CHANGE,
    DAMAGE,
    KEPT,
    NEEDED,
    NUMBERS,
    TELLING,
    Parts,
    ablated_conditions,
    by_product,
    needed,
)
from interp.runs.view import NotMeasured, Run
from interp.showing import number

if TYPE_CHECKING:
    import pandas as pd

_MOST = 2
"""Conditions drawn; all are in the table."""

_NAMED, _SPARE = 6, 3
"""How many of the needed modules and of the clearest by-products have their names."""

_FLOORS = {DAMAGE: 1e-5, CHANGE: 1e-3}
"""Smaller numbers are drawn at the edge."""

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross")
_OWN: dict[str, Any] = {"above": 66, "shared": False}


def ablation(run: Run, queries: str = "matched") -> go.Figure:
    """What is kept by layer and by direction; damage against internal change by module, and maps.

    Of at most two conditions, one below the other. Raises `NotMeasured` without ablations.
    """
    run = run.exchanged()
    names = ablated_conditions(run)
    if not names:
        raise NotMeasured("this run has no ablations of an adapter")
    board = Board(left=76, right=60, below=60)
    shown = [Parts.of(run, name, queries) for name in names[:_MOST]]
    for parts in shown:
        prefix = f"{label(parts.condition, 24)}: " if len(names) > 1 else ""
        _kept(board, run, parts, prefix)
        _modules(board, run, parts, prefix)
    drawn, others = names[:_MOST], ", ".join(names[_MOST:])
    return board.finish(
        run,
        f"Parts of {' and '.join(drawn)}: what the behaviour needs, and by-products",
        notes=[
            *_words(shown),
            f"Also ablated, in the table: {others}" if others else "",
            f"Compared: {', '.join(drawn)} with and without parts of its adapter",
        ],
        queries=queries,
    )


def _words(shown: Sequence[Parts]) -> list[str]:
    """What the panels that are there show."""
    kept = any(p.blocks or len(p.first) or len(p.directions) for p in shown)
    single = any(len(p.directions) for p in shown)
    effects = ", ".join(f"{number(p.effect)} nats" for p in shown if len(p.modules))
    of_layers = (
        "Kept: 1 − KL(whole ‖ what is left) / KL(whole ‖ no LoRA), of the output; 1: all of the "
        "LoRA's effect, 0: none"
    )
    of_directions = (
        "Directions: singular, of a module's update, 0 the largest; shown: least kept without"
    )
    of_modules = (
        "Damage: KL(whole ‖ without the module), nats. Internal change: how far the residual "
        "stream after the module's layer moves at the last query token without it, over how far "
        f"it moves without the LoRA. Below {_FLOORS[DAMAGE]:g} nats or {_FLOORS[CHANGE]:g} drawn "
        f"at the edge. Shaded: by-products, damage ≤ {100 * NEEDED:g} % of all that the LoRA does "
        f"({effects}), change ≥ {TELLING:g}"
    )
    said = {of_layers: kept, of_directions: single, of_modules: bool(effects)}
    return [words for words, holds in said.items() if holds]


# --- what is kept --------------------------------------------------------------------------------


def _kept(board: Board, run: Run, parts: Parts, prefix: str) -> None:
    """A row of panels: by layer, by number of directions, without single directions."""
    colour, _ = style.condition_look(run, parts.condition)
    limits = {"range": share_range([*parts.blocks.values(), parts.first])}
    looks = {
        "off": Look("without the layer", colour),
        "alone": Look("with the layer alone", colour, "dot", "diamond-open"),
    }
    largest = Look("with the largest directions of every module", colour, "dash", "square")
    blocks = [(looks[position], frame) for position, frame in parts.blocks.items()]
    first = [(largest, parts.first)] if len(parts.first) else []
    panels = {
        "without a layer, and with it alone": (350, LinePanel(blocks)),
        "with the largest directions": (160, LinePanel(first, across="directions")),
    }
    shown = {heading: one for heading, one in panels.items() if one[1].lines}
    single = {"without one direction": 140} if len(parts.directions) else {}
    shares = {heading: share for heading, (share, _) in shown.items()} | single
    if not shares:
        return
    headings = [prefix * (at == 0) + heading for at, heading in enumerate(shares)]
    x, y = style.layer_axis(run), style.axis(MEASURES[KEPT].title, **limits)
    drawn = board.row(headings, 230, x, y, shares=[*shares.values()], gap=112, **_OWN)
    for panel, (_, one) in zip(drawn, shown.values(), strict=False):
        if one.across == "directions":
            ticks = style.integer_ticks(int(parts.first["directions"].max()) + 1, most=8)
            panel.x = style.axis("directions kept", **ticks)
        panel.draw(one.traces())
        panel.level(0, 1)
    if single:
        _directions(drawn[-1], parts, colour)


def _directions(panel: Panel, parts: Parts, colour: str, most: int = 10) -> None:
    """The single directions without which least is kept, the least on top."""
    frame = parts.directions.sort_values(KEPT, kind="stable").head(most)
    numbers = frame["position"].str.removeprefix("direction ")
    names = [f"{n} · {i}" for n, i in zip(frame["name"], numbers, strict=True)]
    value, low, high = (frame[f"{KEPT}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    ends = [f([*value, *low, *high, 1.0]) for f in (np.nanmin, np.nanmax)]
    room = 0.08 * (ends[1] - ends[0])
    panel.x = style.axis(MEASURES[KEPT].title, range=[ends[0] - room, ends[1] + room], nticks=4)
    panel.y = style.axis(None, **style.named_ticks(names, 24, 0.6, down=True))
    dots = _marks(frame, parts.condition, names).update(
        x=value,
        y=list(range(len(names))),
        marker={"size": 8, "color": colour},
        error_x=style.whiskers(value, low, high, color=style.MUTED),
    )
    panel.draw([dots])


def _marks(frame: pd.DataFrame, condition: str, names: Sequence[str]) -> go.Scatter:
    """Markers that carry all numbers of these parts; where they stand is the panel's affair."""
    columns = (*NUMBERS, "n")
    custom = np.stack([frame[c].to_numpy(float, na_value=np.nan) for c in columns], axis=1)
    hover = "".join(
        f"<br>{MEASURES[m].title} %{{customdata[{i}]:.3g}}, interval "
        f"%{{customdata[{i + 1}]:.3g}} to %{{customdata[{i + 2}]:.3g}}"
        for m, i in ((DAMAGE, 0), (KEPT, 3), (CHANGE, 6))
    )
    layers = [None if np.isnan(layer) else int(layer) for layer in frame["layer"].astype(float)]
    places = {name: frame[name].tolist() for name in ("site", "position")}
    return go.Scatter(
        mode="markers",
        showlegend=False,
        text=[label(name) for name in names],
        customdata=custom.astype(np.float32),
        hovertemplate=f"<b>%{{text}}</b>{hover}<br>n = %{{customdata[9]:.0f}}<extra></extra>",
        meta={
            "fixed": {"condition": condition},
            "columns": {**places, "layer": layers},
            "custom": list(columns),
        },
    )


# --- needed or a by-product ----------------------------------------------------------------------


def _modules(board: Board, run: Run, parts: Parts, prefix: str) -> None:
    """Damage against change, then where in the model both are."""
    frame, depth, kinds = parts.modules, run.n_layers, parts.kinds
    both = frame[frame[[DAMAGE, CHANGE]].notna().all(axis=1)]
    headings = [f"{prefix}without a module: damage against internal change"] * bool(len(both))
    cells = []
    for measure, words in {DAMAGE: "damage [nats]", CHANGE: "internal change [share]"}.items():
        own = frame[frame["layer"].notna() & frame[measure].notna()]
        ends = {measure: "value", f"{measure}_low": "ci_low", f"{measure}_high": "ci_high"}
        fixed = {"measure": measure, "position": "off"}
        own = own.rename(columns=ends)
        cells += [by_module(own, kinds, depth, parts.condition, words, fixed)] * bool(len(own))
    if not headings and not cells:
        return
    shares = [3.0] * len(headings) + [1.0] * len(cells)
    names = headings + [one.heading for one in cells]
    y, height = style.layer_axis(run, most=16), min(460, max(300, 14 * depth))
    panels = board.row(names, height, module_axis(kinds), y, shares=shares, gap=84, **_OWN)
    for panel in panels[len(headings) + 1 :]:  # the first map names what the rows are
        panel.y["title"] = style.axis()["title"]
    if headings:
        _scatter(panels[0], both, parts)
    for panel, one in zip(panels[len(headings) :], cells, strict=True):
        scale = ColourScale.linear([one.grid.values], str(one.fixed["measure"]))
        draw_alike([panel], [one], "module", scale)


def _scatter(panel: Panel, frame: pd.DataFrame, parts: Parts) -> None:
    """One colour and symbol per kind of module; the needed and the by-products named."""
    limits = {CHANGE: TELLING, DAMAGE: np.fmax(NEEDED * parts.effect, _FLOORS[DAMAGE])}
    ends = {m: _decades(np.append(frame[m].to_numpy(float), limits[m]), m) for m in limits}
    panel.x = style.axis("internal change [share of the LoRA's]", **_log(ends[CHANGE]))
    panel.y = style.axis("damage [nats]", **_log(ends[DAMAGE]))
    groups = list(dict.fromkeys(frame["group"]))
    for at, kind in enumerate(parts.kinds):
        own = frame[frame["kind"] == kind]
        symbol = _SYMBOLS[groups.index(own["group"].iloc[0]) % len(_SYMBOLS)] if len(own) else None
        look = {"size": 7, "color": style.PALETTE[at % len(style.PALETTE)], "symbol": symbol}
        dots = _marks(own, parts.condition, own["name"].tolist()).update(
            x=_drawn(own, CHANGE),
            y=_drawn(own, DAMAGE),
            name=label(kind),
            legendgroup=label(kind),
            showlegend=True,
            marker={**look, "opacity": 0.85, "line": {"width": 0.6, "color": "white"}},
        )
        panel.draw([dots])
    panel.draw([_names(frame, panel, ends)])
    left, top = ((np.log10(limits[m]) - ends[m][0]) / np.ptp(ends[m]) for m in (CHANGE, DAMAGE))
    inside = {"xref": panel.domain("x"), "yref": panel.domain("y")}
    shade = {"fillcolor": style.faded("#56B4E9", 0.12), "line": {"width": 0}, "layer": "below"}
    panel.board.figure.add_shape(type="rect", x0=left, x1=1, y0=0, y1=top, **inside, **shade)
    corner = {"x": 1, "y": 0, "xanchor": "right", "yanchor": "bottom", **inside}
    panel.write("<i>by-products</i>", font={"size": 11, "color": style.MUTED}, **corner)


def _names(frame: pd.DataFrame, panel: Panel, ends: dict[str, list[float]]) -> go.Scatter:
    """Of the needed modules the most damaging, of the by-products those that change most."""
    worst = frame[needed(frame[KEPT])].nlargest(_NAMED, DAMAGE)
    spare = frame[by_product(frame[KEPT], frame[CHANGE])].nlargest(_SPARE, CHANGE)
    named, size = frame.loc[[*worst.index, *spare.index]], (panel.area.width, panel.area.height)
    pixels, others = (_fractions(part, ends) * size for part in (named, frame))
    sides = beside(pixels, named["name"].tolist(), others, size)
    shown = [side is not None for side in sides]
    return go.Scatter(
        x=_drawn(named, CHANGE)[shown],
        y=_drawn(named, DAMAGE)[shown],
        mode="text",
        text=[f"\u00a0\u00a0{label(name)}\u00a0\u00a0" for name in named["name"][shown]],
        textposition=[side for side in sides if side],
        textfont={"size": 11, "color": style.INK},
        cliponaxis=False,
        showlegend=False,
        hoverinfo="skip",
    )


def _fractions(frame: pd.DataFrame, ends: dict[str, list[float]]) -> np.ndarray:
    """`[part, 2]`: where marks stand, as fractions of the panel."""
    found = [(np.log10(_drawn(frame, m)) - ends[m][0]) / np.ptp(ends[m]) for m in (CHANGE, DAMAGE)]
    return np.stack(found, axis=1)


def _drawn(frame: pd.DataFrame, measure: str) -> np.ndarray:
    return np.maximum(frame[measure].to_numpy(float), _FLOORS[measure])


def _decades(values: np.ndarray, measure: str) -> list[float]:
    """The axis in decades, with room for names."""
    low, high = (np.log10(max(float(f(values)), _FLOORS[measure])) for f in (np.min, np.max))
    room = 0.1 * max(high - low, 0.5)
    return [low - room, high + room]


def _log(ends: list[float]) -> dict[str, Any]:
    """Ticks at decades, or at 1, 2 and 5 of each where there are few."""
    steps = (1, 2, 5) if ends[1] - ends[0] < 2 else (1,)
    decades = range(int(np.floor(ends[0])), int(np.ceil(ends[1])) + 1)
    every = [step * 10.0**decade for decade in decades for step in steps]
    at = [value for value in every if ends[0] <= np.log10(value) <= ends[1]]
    texts = [f"{value:.6f}".rstrip("0").rstrip(".") for value in at]
    return {"type": "log", "range": ends, "tickmode": "array", "tickvals": at, "ticktext": texts}
