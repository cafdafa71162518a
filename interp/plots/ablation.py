"""A LoRA without some of its parts: what its behaviour needs, and what is a by-product.

    ablation(run).show()

Above, what is kept of the LoRA's effect, on one scale: by layer, by number of directions, without
single ones. Below, modules: a part off that moves the residual stream much and the output little is
a by-product, low and far to the right.
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
from interp.plots.scales import CUT, ColourScale, is_cut, share_range
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

_CLASSES = {
    "needed": ("#D55E00", "diamond"),
    "by-product": ("#0072B2", "square"),
    "neither": ("#7A7A7A", "circle"),
}
"""What a module's absence says of it: colour and symbol."""

_LARGEST, _SINGLE = "with the largest directions", "without one direction, least kept first"
"""Headings of the panels that have no layers along x."""

_ABOVE = 66
"""Room for ticks and title of the panels above."""


def ablation(run: Run, queries: str = "matched") -> go.Figure:
    """What is kept by layer and by direction; damage against internal change by module, and maps.

    Of at most two conditions, one below the other. Raises `NotMeasured` without ablations.
    """
    run = run.exchanged()
    names = ablated_conditions(run)
    if not names:
        raise NotMeasured("this run has no ablations of an adapter")
    board = Board(left=84, right=60, below=60)
    shown = [Parts.of(run, name, queries) for name in names[:_MOST]]
    for parts in shown:
        prefix = f"{label(parts.condition, 24)}: " if len(names) > 1 else ""
        _kept(board, run, parts, prefix)
        _modules(board, run, parts, prefix)
    drawn, others = names[:_MOST], ", ".join(names[_MOST:])
    return board.finish(
        run,
        ". ".join(map(_found, shown)) or f"Parts of {' and '.join(drawn)}",
        notes=[
            *_words(shown),
            f"Also ablated, in the table: {others}" if others else "",
            f"Compared: {', '.join(drawn)} with and without parts of its adapter",
        ],
        queries=queries,
    )


def _found(parts: Parts) -> str:
    """How little of the LoRA does its work, and how many modules it cannot spare."""
    kept, alone = [], parts.blocks.get("alone")
    if alone is not None:
        best = alone.loc[alone["value"].astype(float).idxmax()]
        kept.append((best["value"], f"layer {best['layer']} alone"))
    enough = parts.first[parts.first["value"].astype(float) >= 1 - NEEDED]
    if len(enough):
        least = enough.iloc[0]
        many = "one direction" if least["directions"] == 1 else f"{least['directions']} directions"
        kept.append((least["value"], f"{many} of every module"))
    known = parts.modules[KEPT].dropna()
    words = [f"{number(float(value))} with {what}" for value, what in kept]
    words[:1] = [one.replace(" with", " of its effect with", 1) for one in words[:1]]
    said = [f"{parts.condition} keeps {', '.join(words)}"] * bool(words)
    count = f"needed by itself: {int(needed(known).sum())} of {len(known)} modules"
    return "; ".join([*said, *[count] * bool(len(known))])


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
        "Directions: singular, of a module's update, 0 the largest; shown: the ten without which "
        "least is kept"
    )
    of_modules = (
        "Damage: KL(whole ‖ without the module), nats. Internal change: how far the residual "
        "stream after the module's layer moves at the last query token without it, over how far "
        f"it moves without the LoRA. Below {_FLOORS[DAMAGE]:g} nats or {_FLOORS[CHANGE]:g} drawn "
        f"at the edge. By-products: damage ≤ {100 * NEEDED:g} % of all that the LoRA does "
        f"({effects}), change ≥ {TELLING:g}; needed: more damage than that"
    )
    cut = any(is_cut([*p.blocks.values(), p.first]) for p in shown)
    said = {of_layers: kept, CUT: cut, of_directions: single, of_modules: bool(effects)}
    return [words for words, holds in said.items() if holds]


# --- what is kept --------------------------------------------------------------------------------


def _kept(board: Board, run: Run, parts: Parts, prefix: str) -> None:
    """A row of panels on one scale: by layer, by number of directions, without single ones."""
    colour, _ = style.condition_look(run, parts.condition)
    looks = {
        "off": Look("● without the layer", colour),
        "alone": Look("◇ with the layer alone", colour, "dot", "diamond-open"),
    }
    blocks = [(looks[position], frame) for position, frame in parts.blocks.items()]
    first = [(Look("", colour, "dash", "square"), parts.first)] * bool(len(parts.first))
    single = _least_kept(parts)
    shown: dict[str, tuple[float, list[go.Scatter]]] = {
        ", ".join(look.name for look, _ in blocks): (350, LinePanel(blocks).traces()),
        _LARGEST: (190, LinePanel(first, across="directions").traces()),
        _SINGLE: (250, _singles(single, parts.condition, colour)),
    }
    shown = {heading: one for heading, one in shown.items() if one[1]}
    if not shown:
        return
    headings = [prefix * (at == 0) + heading for at, heading in enumerate(shown)]
    limits = share_range([*parts.blocks.values(), parts.first, single])
    x, y = style.layer_axis(run), style.axis(MEASURES[KEPT].title, range=limits)
    shares = [share for share, _ in shown.values()]
    drawn = board.row(headings, 230, x, y, shares=shares, above=_ABOVE)
    for panel, (heading, (_, traces)) in zip(drawn, shown.items(), strict=True):
        if heading == _LARGEST:
            ticks = style.integer_ticks(int(parts.first["directions"].max()) + 1, most=8)
            panel.x = style.axis("directions of every module", **ticks)
        if heading == _SINGLE:
            panel.x = style.axis(None, **style.named_ticks(_directions(single), 24), tickangle=-60)
        panel.draw(trace.update(showlegend=False) for trace in traces)
        panel.level(0, 1)


def _least_kept(parts: Parts, most: int = 10) -> pd.DataFrame:
    """The single directions without which least is kept, the least first."""
    frame = parts.directions.sort_values(KEPT, kind="stable").head(most)
    return frame.assign(
        value=frame[KEPT], ci_low=frame[f"{KEPT}_low"], ci_high=frame[f"{KEPT}_high"]
    )


def _directions(frame: pd.DataFrame) -> list[str]:
    """Names of single directions: the module's, and its number."""
    numbers = frame["position"].str.removeprefix("direction ")
    return [f"{n} · {i}" for n, i in zip(frame["name"], numbers, strict=True)]


def _singles(frame: pd.DataFrame, condition: str, colour: str) -> list[go.Scatter]:
    """A dot per direction, with its interval."""
    if frame.empty:
        return []
    value, low, high = (frame[c].to_numpy(float) for c in ("value", "ci_low", "ci_high"))
    dots = _marks(frame, condition, _directions(frame)).update(
        x=list(range(len(frame))),
        y=value,
        marker={"size": 8, "color": colour},
        error_y=style.whiskers(value, low, high, color=style.MUTED),
    )
    return [dots]


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
    headings = [f"{prefix}without one module"] * bool(len(both))
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
    look: dict[str, Any] = {"shares": shares, "gap": 84, "above": _ABOVE, "shared": False}
    panels = board.row(names, height, module_axis(kinds), y, **look)
    for panel in panels[len(headings) + 1 :]:  # the first map names what the rows are
        panel.y |= {"title": style.axis()["title"], "showticklabels": False}
    if headings:
        _scatter(panels[0], both, parts)
    for panel, one in zip(panels[len(headings) :], cells, strict=True):
        scale = ColourScale.linear([one.grid.values], str(one.fixed["measure"]))
        draw_alike([panel], [one], "module", scale)


def _scatter(panel: Panel, frame: pd.DataFrame, parts: Parts) -> None:
    """One colour and symbol for what is needed, what is a by-product, and the rest."""
    limits = {CHANGE: TELLING, DAMAGE: np.fmax(NEEDED * parts.effect, _FLOORS[DAMAGE])}
    ends = {m: _decades(np.append(frame[m].to_numpy(float), limits[m]), m) for m in limits}
    panel.x = style.axis("internal change [share of the LoRA's]", **_log(ends[CHANGE]))
    panel.y = style.axis("damage [nats]", **_log(ends[DAMAGE]))
    spare = by_product(frame[KEPT], frame[CHANGE])
    kinds = np.select([needed(frame[KEPT]), spare], [*_CLASSES][:2], [*_CLASSES][2])
    for kind, (colour, symbol) in _CLASSES.items():
        own = frame[kinds == kind]
        dots = _marks(own, parts.condition, own["name"].tolist()).update(
            x=_drawn(own, CHANGE),
            y=_drawn(own, DAMAGE),
            name=kind,
            marker={
                "size": 8,
                "color": colour,
                "symbol": symbol,
                "opacity": 0.85,
                "line": {"width": 0.6, "color": "white"},
            },
        )
        panel.draw([dots] * bool(len(own)))
    panel.draw([_names(frame, panel, ends)])
    left, top = ((np.log10(limits[m]) - ends[m][0]) / np.ptp(ends[m]) for m in (CHANGE, DAMAGE))
    words = f"needed: more than {100 * NEEDED:g} % of the effect is lost without it"
    _zone(panel, "by-product", "by-products", left, 0, top)
    _zone(panel, "needed", words, 0, top, 1)


def _zone(panel: Panel, kind: str, words: str, left: float, low: float, high: float) -> None:
    """A part of the panel, up to its right edge, in the colour of a kind of module, with its name
    at the end away from the other."""
    inside = {"xref": panel.domain("x"), "yref": panel.domain("y")}
    shade = {"fillcolor": style.faded(_CLASSES[kind][0], 0.1), "line": {"width": 0}}
    ends = {"x0": left, "x1": 1, "y0": low, "y1": high}
    panel.board.figure.add_shape(type="rect", layer="below", **ends, **inside, **shade)
    side = {"y": 1, "yanchor": "top"} if high == 1 else {"y": 0, "yanchor": "bottom"}
    font = {"size": 11, "color": style.MUTED}
    panel.write(f"<i>{words}</i>", x=1, xanchor="right", font=font, **inside, **side)


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
