"""A LoRA without some of its parts: what its behaviour needs, and what is a by-product.

    ablation(run).show()

A part off that moves the residual stream much and the output little is a by-product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from interp.plots import grids, lines, style
from interp.plots.byproducts import FLOORS, marks, scatter
from interp.plots.grids import Grid
from interp.plots.lines import Look
from interp.plots.panels import Area, Drawing
from interp.plots.shares import share_range, thin_lines
from interp.plots.text import label
from interp.registry import MEASURES
from interp.runs.parts import CHANGE, DAMAGE, KEPT, NEEDED, TELLING, Parts, ablated_conditions
from interp.runs.view import NotMeasured, Run
from interp.showing import number

_MOST = 2
"""Conditions drawn; all are in the table."""

_LEFT, _RIGHT, _UPPER, _GAP = 76, 60, 230, 96


@dataclass(frozen=True)
class _Block:
    """The panels of one condition, from `top` on in a drawing."""

    run: Run
    parts: Parts
    drawing: Drawing
    top: float
    prefix: str

    @property
    def upper(self) -> float:
        """Height of the row of what is kept."""
        any_ = self.parts.blocks or len(self.parts.first) or len(self.parts.directions)
        return _UPPER if any_ else 0

    @property
    def lower(self) -> float:
        """Height of the row of modules."""
        depth = self.run.n_layers
        return min(460, max(300, 14 * depth)) if len(self.parts.modules) else 0

    @property
    def height(self) -> float:
        """Of both, with the room below each."""
        return self.upper + self.lower + _GAP * (bool(self.upper) + bool(self.lower))


def ablation(run: Run, queries: str = "matched") -> go.Figure:
    """What is kept by layer and by direction; damage against internal change by module, and maps.

    Of at most `MOST` conditions, one below the other. Raises `NotMeasured` without ablations.
    """
    run = run.exchanged()
    names = ablated_conditions(run)
    if not names:
        raise NotMeasured("this run has no ablations of an adapter")
    drawing = Drawing(go.Figure(), style.WIDTH - _LEFT - _RIGHT, 0)
    blocks: list[_Block] = []
    for name in names[:_MOST]:
        prefix = f"{label(name, 24)}: " if len(names) > 1 else ""
        blocks.append(_Block(run, Parts.of(run, name, queries), drawing, drawing.height, prefix))
        drawing.height += blocks[-1].height
    drawing.height -= _GAP
    for block in blocks:
        _kept(block)
        _modules(block)
    return style.finish(
        _one_entry_each(drawing.figure),
        run,
        title=f"Parts of {' and '.join(names[:_MOST])}: what the behaviour needs, and by-products",
        pairs=[],
        queries=queries,
        note=_note([block.parts for block in blocks], names),
        plot=round(drawing.height),
        legend=True,
        left=_LEFT,
        right=_RIGHT,
        below=60,
    )


# --- what is kept --------------------------------------------------------------------------------


def _kept(block: _Block) -> None:
    parts, drawing = block.parts, block.drawing
    ends = share_range([*parts.blocks.values(), parts.first])
    colour, _ = style.condition_look(block.run, parts.condition)
    if parts.blocks:
        single = not (len(parts.first) or len(parts.directions))
        place = Area(0, block.top, drawing.width if single else 350, _UPPER)
        _layers(block, place, ends, colour)
    if len(parts.first):
        _first(block, Area(420, block.top, 160, _UPPER), ends, colour)
    if len(parts.directions):
        _directions(block, Area(drawing.width - 140, block.top, 140, _UPPER), colour)


def _layers(block: _Block, place: Area, ends: list[float], colour: str) -> None:
    ticks = style.integer_ticks(block.run.n_layers, most=12)
    x, y = style.axis("layer (from 0)", **ticks), style.axis(MEASURES[KEPT].title, range=ends)
    axes = block.drawing.add(place, f"{block.prefix}without a layer, and with it alone", x, y)
    looks = {
        "off": Look("without the layer", colour),
        "alone": Look("with the layer alone", colour, "dot", "diamond-open"),
    }
    for position, frame in block.parts.blocks.items():
        block.drawing.draw(lines.line(frame, looks[position]), axes)
    thin_lines(block.drawing.figure, axes)


def _first(block: _Block, place: Area, ends: list[float], colour: str) -> None:
    frame = block.parts.first
    ticks = style.integer_ticks(int(frame["directions"].max()) + 1, most=8)
    x = style.axis("directions kept", **ticks)
    y = style.axis(MEASURES[KEPT].title, range=ends)
    prefix = "" if block.parts.blocks else block.prefix
    axes = block.drawing.add(place, f"{prefix}with the largest directions", x, y)
    look = Look("with the largest directions of every module", colour, "dash", "square")
    block.drawing.draw(lines.line(frame, look, across="directions"), axes)
    thin_lines(block.drawing.figure, axes)


def _directions(block: _Block, place: Area, colour: str, most: int = 10) -> None:
    """The single directions without which least is kept, the least on top."""
    frame = block.parts.directions.sort_values(KEPT, kind="stable").head(most)
    numbers = frame["position"].str.removeprefix("direction ")
    names = [f"{n} · {i}" for n, i in zip(frame["name"], numbers, strict=True)]
    ends = [*frame[[KEPT, f"{KEPT}_low", f"{KEPT}_high"]].to_numpy(float).ravel(), 1.0]
    low, high = float(np.nanmin(ends)), float(np.nanmax(ends))
    room = 0.08 * (high - low)
    x = style.axis(MEASURES[KEPT].title, range=[low - room, high + room], nticks=4)
    look = {"tickmode": "array", "tickvals": list(range(len(names)))}
    look |= {"ticktext": [label(n, 24) for n in names], "range": [len(names) - 0.4, -0.6]}
    axes = block.drawing.add(place, "without one direction", x, style.axis(None, **look))
    value, below, above = (frame[c].to_numpy(float) for c in (KEPT, f"{KEPT}_low", f"{KEPT}_high"))
    trace = marks(frame, block.parts.condition, names)
    trace.update(
        x=value,
        y=list(range(len(names))),
        marker={"size": 8, "color": colour},
        error_x={
            "type": "data",
            "array": np.nan_to_num(above - value),
            "arrayminus": np.nan_to_num(value - below),
            "color": style.MUTED,
            "thickness": 1.4,
            "width": 3,
        },
    )
    block.drawing.draw([trace], axes)


# --- needed or a by-product ----------------------------------------------------------------------


def _modules(block: _Block) -> None:
    """Damage against change, then where in the model both are."""
    if not block.lower:
        return
    top = block.top + block.height - block.lower - _GAP
    place = Area(0, top, 420, block.lower)
    heading = f"{block.prefix}without a module: damage against internal change"
    scatter(block.parts, block.drawing, place, heading)
    left, gap = 490.0, 80.0
    width = (block.drawing.width - left - gap) / 2
    _map(block, Area(left, top, width, block.lower), DAMAGE)
    _map(block, Area(left + width + gap, top, width, block.lower), CHANGE)


def _map(block: _Block, place: Area, measure: str) -> None:
    modules, kinds = block.parts.modules, block.parts.kinds
    frame = modules[modules["layer"].notna() & modules[measure].notna()]
    if frame.empty:
        return
    depth = block.run.n_layers
    ends = {measure: "value", f"{measure}_low": "ci_low", f"{measure}_high": "ci_high"}
    rows = frame.rename(columns=ends).assign(p_adjusted=np.nan)
    pair = (block.parts.condition, None)
    grid = Grid.of(pair, rows, frame["kind"].map(kinds.index), (depth, len(kinds)))
    trace = grids.cells(grid, {"measure": measure, "position": "off"}, "module")
    names = {str(i): kind for i, kind in enumerate(kinds)}
    scale_name = f"coloraxis{block.drawing.panels + 1}"
    trace.update(meta={**trace.meta, "x_labels": names}, coloraxis=scale_name)
    ticks = {"tickmode": "array", "tickvals": list(range(len(kinds))), "tickangle": -60}
    ticks |= {"ticktext": [label(k, 14) for k in kinds], "range": [-0.5, len(kinds) - 0.5]}
    x = style.axis(None, **ticks, showgrid=False)
    title = "layer (from 0)" if measure == DAMAGE else None
    y = style.axis(title, **style.integer_ticks(depth), showgrid=False)
    heading = {DAMAGE: "damage [nats]", CHANGE: "internal change [share]"}[measure]
    block.drawing.draw([trace], block.drawing.add(place, heading, x, y))
    low, high, scale = style.colour_range([grid.cells["value"]], measure)
    look = {"cmin": low, "cmax": high, "colorscale": scale, "colorbar": block.drawing.bar(place)}
    block.drawing.figure.layout[scale_name] = look


def _one_entry_each(figure: go.Figure) -> go.Figure:
    """The legend names what several conditions share once."""
    seen: set[str] = set()
    for trace in figure.data:
        if trace.showlegend is not False and trace.name:
            trace.showlegend = trace.name not in seen
            seen.add(trace.name)
    return figure


def _note(found: Sequence[Parts], names: Sequence[str]) -> str:
    kept = any(p.blocks or len(p.first) or len(p.directions) for p in found)
    modules, single = any(len(p.modules) for p in found), any(len(p.directions) for p in found)
    effects = [f"{number(p.effect)} nats" for p in found if len(p.modules)]
    parts = [
        "Kept: 1 − KL(whole ‖ what is left) / KL(whole ‖ no LoRA), of the output; 1: all of the "
        "LoRA's effect, 0: none"
        if kept
        else "",
        "Directions: singular, of a module's update, 0 the largest; shown: least kept without"
        if single
        else "",
        "Damage: KL(whole ‖ without the module), nats. Internal change: how far the residual "
        "stream after the module's layer moves at the last query token without it, over how far "
        f"it moves without the LoRA. Below {FLOORS[DAMAGE]:g} nats or {FLOORS[CHANGE]:g} drawn at "
        "the edge"
        if modules
        else "",
        f"Shaded: by-products, damage ≤ {100 * NEEDED:g} % of all that the LoRA does "
        f"({', '.join(effects)}), change ≥ {TELLING:g}"
        if modules
        else "",
        f"Also ablated, in the table: {', '.join(names[_MOST:])}" if len(names) > _MOST else "",
        f"Compared: {', '.join(names[:_MOST])} with and without parts of its adapter",
    ]
    return ". ".join(part for part in parts if part)
