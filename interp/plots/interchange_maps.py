"""Maps of an interchange: layer by query position, and layer by head, of both conditions.

    interchange_positions(run).show()
    interchange_heads(run, "pattern").show()

Damage has logarithmic colours, linear below a hundredth of the largest; recovery has linear ones,
centred at zero. What shares a measure shares its colours.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from interp.names import Pair
from interp.plots import style
from interp.plots.board import BAR, Board, Panel
from interp.plots.exchanges import EXCHANGED, state_in
from interp.plots.maps import Grid, MapPanel, draw_maps, position_columns, single_tokens
from interp.plots.scales import ColourScale, finite
from interp.plots.style import label
from interp.runs.view import NotMeasured, Run, of_pair
from interp.runs.words import SITES, title

if TYPE_CHECKING:
    import pandas as pd

_DAMAGE = "Damage: KL(run ‖ run with the other's state at one token), nats"
_RECOVERY = "Recovery: 1 − KL(condition ‖ patched {0}) / KL(condition ‖ {0}), below 0: harm"
_PARTS = {"z": ("head", "output"), "pattern": ("pattern", "attention pattern")}
"""What is exchanged, in a heading and in a caption."""


Row = tuple[str, dict[Pair, str]]
"""Panels side by side: a measure, and their moves with their headings."""


def interchange_positions(run: Run) -> go.Figure:
    """Layer by query position of `resid_post`: damage in both directions, that of base's state at
    the same places, and recovery into base. Raises `NotMeasured` without such rows."""
    run = run.exchanged()
    of = run.interchange
    (a, b), base = of.pair, of.base
    moves = [
        ("damage", [(a, b), (b, a)]),
        ("damage", [(base, b), (base, a)]),
        ("recovery", [(a, base), (b, base)]),
    ]
    rows: list[Row] = [(measure, {m: state_in(*m) for m in two}) for measure, two in moves]
    frame = single_tokens(_of(run, EXCHANGED, rows, heads=False))
    if frame.empty:
        raise NotMeasured("this run has no interchange at single positions")
    columns, ticks = position_columns(frame)
    return _figure(
        run,
        frame.assign(column=columns),
        rows,
        ("position", style.axis("query position (from 0)", **ticks)),
        "Interchange of residual streams at single query tokens, layer by position",
        f"{_DAMAGE}. Second row: {base}'s state at the same places. {_RECOVERY.format(base)}. "
        "Positions count the query's tokens from its first; last is the one before the answer",
    )


def interchange_heads(run: Run, site: str = "z") -> go.Figure:
    """Layer by head: what is lost when base's head takes the place of a condition's own, and what
    is won when the condition's takes the place of base's. `site`: `z`, or `pattern` for the last
    row of the attention alone. Raises `NotMeasured` without such rows."""
    run = run.exchanged()
    of = run.interchange
    base = of.base
    short, part = _PARTS.get(site, (site, site))
    rows: list[Row] = [
        ("damage", {(base, c): f"lost without the {short}: {label(c)}" for c in of.pair}),
        ("recovery", {(c, base): f"won by the {short} alone: {label(c)}" for c in of.pair}),
    ]
    frame = _of(run, site, rows, heads=True)
    frame = frame[frame["position"] == "all"]
    if frame.empty:
        raise NotMeasured(f"this run has no interchange by head at {site}")
    return _figure(
        run,
        frame.assign(column=frame["head"]),
        rows,
        ("head", style.axis("head (from 0)", **style.integer_ticks(run.n_heads))),
        f"What single heads carry: {SITES.get(site, site)} ({site}) exchanged with {base}'s",
        f"Lost: damage when {base}'s {part} of the head takes its place in the condition's run; "
        f"won: recovery when the condition's does in {base}'s. {_what_moves(run, site)}"
        f"{_RECOVERY.format(base)}",
    )


def _what_moves(run: Run, site: str) -> str:
    if site != "pattern":
        return ""
    if run.interchange.found.get("pattern") == "row":
        return "Whole rows of the pattern move. "
    return "How a head divides its attention within the query moves, not the mass before it. "


def _of(run: Run, site: str, rows: Sequence[Row], heads: bool) -> pd.DataFrame:
    """The table's rows of these moves at one site."""
    import pandas as pd

    return pd.concat([run.rows(m, site, move, heads=heads) for m, two in rows for move in two])


def _figure(
    run: Run,
    frame: pd.DataFrame,
    rows: Sequence[Row],
    across: tuple[str, dict[str, Any]],
    words: str,
    note: str,
) -> go.Figure:
    """Rows of panels that have a defined value, one colour scale for the rows of a measure; a
    cell stands in its row's `column`."""
    column, x = across
    last = {int(x["tickvals"][-1]): "last"} if column == "position" else {}
    shape = (run.n_layers, max(last, default=run.n_heads - 1) + 1)

    def panel(measure: str, move: Pair, heading: str) -> MapPanel:
        own = of_pair(frame[frame["measure"] == measure], move)
        grid = Grid.of(move, own, own["column"], shape)
        return MapPanel(grid, heading, {"measure": measure, "queries": "matched"}, columns=last)

    panels = [(measure, [panel(measure, *one) for one in two.items()]) for measure, two in rows]
    panels = [(m, row) for m, row in panels if len(finite([one.grid.values for one in row]))]
    if not panels:
        raise NotMeasured("this run's interchange has no defined value here")
    height = min(720 // len(panels), max(150, 17 * run.n_layers))
    y = style.layer_axis(run, most=16)
    board = Board(right=BAR)
    drawn: list[list[Panel]] = []
    for measure, same in groupby(panels, key=lambda two: two[0]):
        own = [row for _, row in same]
        values = [one.grid.values for row in own for one in row]
        scale = ColourScale.symlog if measure == "damage" else ColourScale.linear
        named = title(measure, frame[frame["measure"] == measure])
        drawn += draw_maps(board, own, scale(values, measure, named), x, y, height, column)
    board.one_x(drawn)
    return board.finish(
        run,
        words,
        pairs=[run.interchange.pair],
        notes=[
            note,
            "One colour scale per measure; damage: logarithmic colours, linear below a hundredth "
            "of the largest",
        ],
    )
