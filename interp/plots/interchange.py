"""What exchanging states does, layer by layer: of whole runs, by segment, of what precedes a query.

    interchange(run).show()
    interchange_segments(run).show()
    interchange_contexts(run).show()

All raise `NotMeasured` where the run has none of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style
from interp.plots.board import Board, Panel
from interp.plots.exchanges import (
    GREY,
    Exchange,
    Wanted,
    exchange_lines,
    harm_words,
    mark_tolerance,
    on_damage,
    on_recovery,
    open_markers,
    state_in,
)
from interp.plots.lines import Look, draw_rows, pair_look
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.patched import Patched
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

_CONTROLS = {
    "random_difference": Look("random difference", GREY, "dash"),
    "random_direction": Look("random direction", GREY, "dot"),
}
_SEGMENTS = {
    "all": Look("all tokens", style.INK),
    "query": Look("query: the text", "#0072B2", "dash", "square"),
    "template": Look("template: the tokens after it", "#E69F00", "dashdot", "diamond"),
    "answer": Look("answer: the tokens that predict it", "#CC79A7", "longdash", "triangle-up"),
}
"""Position -> its line."""
_CONTEXTS = {
    "k": Look("keys", "#0072B2", "dash", "square"),
    "v": Look("values", "#D55E00", "dashdot", "diamond"),
    "kv": Look("both", style.INK),
}
"""What is exchanged -> its line."""
_DEPTH = "#7B3294"


# --- whole runs ----------------------------------------------------------------------------------


def interchange(run: Run) -> go.Figure:
    """Damage in both directions against base's state and two random controls, recovery into base,
    relative damage, and the distance of the two states with its null, all by layer.

    Colour is whose state moves. Damage is on a scale that is logarithmic above its knee.
    """
    run = run.exchanged()
    of = run.interchange
    damage, recovery, distances, relative = _panels(of)
    if not all(panel.lines for panel in damage):
        raise NotMeasured("this run has no damage of an interchange by layer")
    rows = [[*damage, distances], [*recovery, relative]]
    board = Board(left=72)
    above, below = draw_rows(board, rows, style.layer_axis(run), 222, shared=False, gap=66)
    for panel in below:
        panel.level(1)
    mark_tolerance(above[:2], damage[0], of.tolerance)
    _mark_depth(of.depth, [*above, *below])
    knee = damage[0].scale.knee if damage[0].scale else 0
    return board.finish(
        run,
        "Interchange of residual streams by layer: what it costs, beside how far apart they are",
        pairs=run.beside_null,
        notes=[
            "Damage: KL(run ‖ run with the other's residual stream at all tokens); recovery: 1 − "
            f"KL(source ‖ patched {of.base}) / KL(source ‖ {of.base}). The last layer's state is "
            "the output",
            f"Damage axis: logarithmic, linear below {knee:g} nats",
            "Grey: the run's own state moved as far, in a random direction or along the difference "
            "that the two show at an unrelated query",
            of.depth_words,
            open_markers(
                [panel for row in rows for panel in row],
                "the control (damage, recovery: the random difference; distance: the null)",
            ),
            harm_words(recovery),
            f"Narrow bands: intervals. Distances: last query token{_other_n(run, distances)}",
        ],
    )


def _panels(of: Patched) -> tuple[list[Exchange], list[Exchange], Exchange, Exchange]:
    """Damage and recovery, distances (base from either side, the null, the pair), relative."""
    run, base = of.run, of.base
    worst = Look(f"{base}'s state (positive control)", style.INK, "longdash", "diamond")
    damage = [
        _beside_controls(of, "damage", move, "damage [nats]", ("damage", (base, move[1]), worst))
        for move in of.moves
    ]
    into_base = [
        _beside_controls(of, "recovery", (side, base), MEASURES["recovery"].title)
        for side in of.pair
    ]
    apart: list[Wanted] = [("relative_l2", (side, base), worst) for side in of.pair]
    apart += [("relative_l2", p, pair_look(run, p)) for p in reversed(run.beside_null)]
    shares = [("relative_damage", move, _state(of, move[0])) for move in of.moves]
    heading = f"damage over that of {label(base)}'s state"
    return (
        on_damage(damage, of.tolerance),
        on_recovery(into_base),
        _from_zero(exchange_lines(run, apart, "last"), "relative_l2", "distance between states"),
        _from_zero(exchange_lines(run, shares), "relative_damage", heading, 1.0),
    )


def _beside_controls(
    of: Patched, measure: str, move: tuple[str, str], unit: str, *more: Wanted
) -> Exchange:
    """A move's line above `more`, and above the controls."""
    wanted: list[Wanted] = [(f"{measure}_{name}", move, look) for name, look in _CONTROLS.items()]
    wanted += [*more, (measure, move, _state(of, move[0]))]
    shown = unit if move[0] == of.a else ""
    return Exchange(exchange_lines(of.run, wanted), heading=state_in(*move), unit=shown)


def _from_zero(
    lines: list[tuple[Look, pd.DataFrame]], measure: str, heading: str, least: float = 0.0
) -> Exchange:
    panel = Exchange(lines, heading=heading, unit=MEASURES[measure].title)
    top = float(np.append(panel.seen, least).max())
    return replace(panel, limits={"range": [0, 1.08 * (top or 1)]})


def _state(of: Patched, source: str) -> Look:
    return Look(f"{source}'s state", style.condition_look(of.run, source)[0])


def _mark_depth(depth: pd.Series | None, panels: Sequence[Panel]) -> None:
    """An upright line in every panel at the state-equivalence depth, where there is one."""
    if depth is None or np.isnan(depth["value"]):
        return
    at = float(depth["value"])
    known = {k: depth[k] for k in ("measure", "site", "condition", "reference")}
    numbers = {k: [float(depth[k])] for k in ("value", "ci_low", "ci_high")}
    for number, panel in enumerate(panels):
        mark = go.Scatter(
            x=[at, at],
            y=panel.y["range"],
            mode="lines",
            line={"color": _DEPTH, "width": 1.6, "dash": "dashdot"},
            name=f"state-equivalence depth, layer {at:g}",
            legendgroup="depth",
            legendrank=1004,
            hoverinfo="name",
            meta=None if number else {"fixed": known, "table": numbers},
        )
        panel.draw([mark])


def _other_n(run: Run, panel: Exchange) -> str:
    """An interchange of some of a run's queries stands beside distances over all of them."""
    found = {int(n) for frame in panel.frames for n in frame["n"]}
    found -= {run.manifest["queries"]["matched"]}
    return f", n = {max(found)}" if found else ""


# --- by segment ----------------------------------------------------------------------------------


def interchange_segments(run: Run) -> go.Figure:
    """Through which tokens does each side act? Recovery into base and damage between the two by
    layer, one line per segment, each beside the random difference at the same tokens."""
    run = run.exchanged()
    of = run.interchange
    recovery = on_recovery([_segments(of, "recovery", (side, of.base)) for side in of.pair])
    damage = on_damage([_segments(of, "damage", move) for move in of.moves], of.tolerance)
    every = [*recovery, *damage]
    if {str(f["position"].iloc[0]) for panel in every for f in panel.frames} <= {"all"}:
        raise NotMeasured("this run has no interchange by segment")
    board = Board(left=72)
    above, below = draw_rows(board, [recovery, damage], style.layer_axis(run), 240)
    for panel in above:
        panel.level(0, 1)
    mark_tolerance(below, damage[0], of.tolerance)
    return board.finish(
        run,
        "Through which tokens does each side act? Residual streams exchanged by segment",
        pairs=run.beside_null,
        notes=[
            f"Above: recovery, 1 − KL(source ‖ patched {of.base}) / KL(source ‖ {of.base}); below: "
            "damage, KL(run ‖ run with the other's states); both summed over the answer's tokens",
            "The answer's segment begins at the last token before it. Its states in the last layer "
            "are the output itself, and those of the others there are read by nobody",
            "Grey: the run's own states at the same tokens moved as far, along the difference that "
            "the two show at an unrelated query",
            open_markers(every, "that control", " over layers and segments"),
            harm_words(recovery),
            "Bands: intervals (of the grey lines on hovering)",
        ],
    )


def _segments(of: Patched, measure: str, move: Pair) -> Exchange:
    control = f"{measure}_random_difference"
    lines = [
        line
        for name, colour in ((control, {"colour": GREY}), (measure, {}))
        for position, look in _SEGMENTS.items()
        for line in exchange_lines(of.run, [(name, move, look._replace(**colour))], position)
    ]
    unit = {"damage": "damage [nats per answer]"}.get(measure, MEASURES[measure].title)
    return Exchange(lines, heading=state_in(move[0], str(move[1]), 24), unit=unit, many=True)


# --- what precedes the query ---------------------------------------------------------------------


def interchange_contexts(run: Run) -> go.Figure:
    """Are keys exchangeable, values not? Damage by layer of the source's context in the target's
    run, both directions: one layer at a time, and all at once on the right."""
    run = run.exchanged()
    of = run.interchange
    panels = on_damage([_context(run, *move) for move in of.moves], of.tolerance)
    if not any(panel.lines for panel in panels):
        raise NotMeasured("this run has no exchange of contexts")
    board, count = Board(left=72), run.n_layers
    layers = range(0, count, style.integer_ticks(count, 12)["dtick"])
    ends = {**style.ticks_until(layers, count, "all"), "range": [-0.5, count + 0.5]}
    [drawn] = draw_rows(board, [panels], style.axis("layer (from 0)", **ends), 330)
    mark_tolerance(drawn, panels[0], of.tolerance)
    return board.finish(
        run,
        "What precedes the query, exchanged: its keys, its values, both",
        pairs=run.beside_null,
        notes=[
            "Damage: KL(run ‖ run after the other's context), keys as they are cached, behind the "
            "rotary embedding",
            "Grey: the run's own context moved as far, along what the two differ by at another of "
            "its tokens",
            open_markers(panels, "that control"),
            "Bands: intervals (of the grey lines on hovering)",
        ],
    )


def _context(run: Run, source: str, target: str) -> Exchange:
    """By layer and, one step to the right of the last, of all layers."""
    lines = []
    for measure, colour in (("damage_random_difference", {"colour": GREY}), ("damage", {})):
        for site, look in _CONTEXTS.items():
            frame = run.rows(measure, site, (source, target), "context")
            each = frame[frame["layer"].notna()].sort_values("layer")
            every = frame[frame["layer"].isna()].assign(layer=run.n_layers)
            found = [part for part in (each, every) if part["value"].notna().any()]
            lines += [(look._replace(**colour), part) for part in found]
    heading = state_in(source, target, 24, "context")
    return Exchange(lines, heading=heading, unit="damage [nats]", many=True)
