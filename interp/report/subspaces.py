"""Tables of what `interp subspace` found, for the page and for a terminal.

smallest_table(of).rows[0]                       # the smallest dimension of a move at a layer
rich.print(subspaces_table(load_run("RUN")))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.errors import RunError
from interp.report.patching import arrow
from interp.report.tables import Cell, Table, value
from interp.runs.subspaces import LEARNED, SUBSPACE_KINDS, FoundSubspaces
from interp.runs.view import NotMeasured, Run
from interp.showing import paragraphs, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

TITLES = {
    "learned": "learned",
    "principal": "principal directions",
    "random_rotation": "random directions",
    "shuffled": "other queries' states",
    "random_difference": "random difference",
    "crossed": "the other's subspace",
}
"""Kind of subspace -> what it is called."""


def subspace_section(run: Run) -> dict[str, Any] | None:
    """What the report's section shows; None without one."""
    try:
        of = run.subspaces
    except NotMeasured:
        return None
    return {
        "findings": [visible(str(line)) for line in of.found["verdict"]],
        "notes": [visible(str(note)) for note in of.found["notes"]],
        "sizes": smallest_table(of),
        "recovery": recovery_table(of),
    }


def smallest_table(of: FoundSubspaces) -> Table:
    """The smallest dimension of every move at every layer, and what it and the whole state do."""
    groups = list(of.found["n"])
    rows = []
    for move in of.moves:
        for layer in of.layers:
            cells = [Cell(arrow(*move)), Cell(str(layer), kind="number")]
            for group in groups:
                cells += [_size(of, move, layer, group), value(of.whole(move, layer, group))]
            rows.append(cells)
    columns = ["move", "layer"]
    for group in groups:
        columns += [f"dimensions, {group}", f"recovery by the whole state, {group}"]
    counts = ", ".join(f"{count} {group}" for group, count in of.found["n"].items())
    words = (
        f"The smallest of 0, {', '.join(map(str, of.dimensions))} and {of.found['width']} "
        "dimensions from which on a learned subspace recovers as much as the whole state, up to "
        f"{of.found['margin']:g}; learned on {of.found['learned_on']} queries, scored on {counts} "
        "others."
    )
    return Table(words, columns, rows, stacked=True)


def _size(of: FoundSubspaces, move: tuple[str, str], layer: int, queries: str) -> Cell:
    found = of.size(move, layer, queries)
    row = found.iloc[0] if len(found) else None
    if row is None or row["value"] != row["value"]:
        return Cell("undefined", kind="number")
    known = row["ci_low"] == row["ci_low"]
    ends = f"[{row['ci_low']:.0f}, {row['ci_high']:.0f}]" if known else ""
    return Cell(f"{row['value']:.0f}", ends, "number")


def recovery_table(of: FoundSubspaces, queries: str = "matched") -> Table:
    """Recovery by dimension, of the learned subspace and of its controls."""
    rows = []
    for move in of.moves:
        for layer in of.layers:
            curves = {kind: of.curve(kind, move, layer, queries) for kind in SUBSPACE_KINDS}
            for k in of.dimensions:
                here = [f[f["dimension"] == k] for f in curves.values()]
                place = [Cell(arrow(*move)), *(Cell(str(n), kind="number") for n in (layer, k))]
                rows.append([*place, *map(value, here)])
    columns = ["move", "layer", "dimensions", *(TITLES[kind] for kind in SUBSPACE_KINDS)]
    n = of.found["n"][queries]
    words = f"Recovery by the state in k dimensions, n = {n} {queries} queries not learned on."
    return Table(words, columns, rows, stacked=True)


def subspaces_table(run: Run) -> RenderableType:
    """A row per move and layer, then a line per finding; RunError where the run has none."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    if not run.manifest.get("subspaces"):
        raise RunError(f"{run.path} has no subspaces: use `interp subspace {run.path}`")
    found = run.manifest["subspaces"]
    grid = Grid(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    of = run.subspaces if found["moves"] else None
    if of is not None:
        for title in ("move", "layer", "dimensions", f"{LEARNED} there", "whole\nstate"):
            grid.add_column(Text(title), justify="left" if title == "move" else "right")
        for move in of.moves:
            for layer in of.layers:
                size, whole = _size(of, move, layer, "matched"), of.whole(move, layer)
                there = _there(of, move, layer)
                cells = [arrow(*move), str(layer), f"{size.text} {size.extra}".strip(), there]
                grid.add_row(*map(Text, [*cells, f"{whole.iloc[0]['value']:.2f}"]))
    lines = [*map(str, found["verdict"]), *map(str, found["notes"])]
    return Group(grid, Text(""), *paragraphs(lines), Text(""))


def _there(of: FoundSubspaces, move: tuple[str, str], layer: int) -> str:
    """Recovery of the learned subspace at its smallest sufficient dimension, of those compared."""
    k = float(of.size(move, layer).iloc[0]["value"])
    curve = of.curve(LEARNED, move, layer)
    here = curve[curve["dimension"] == k]
    return f"{here.iloc[0]['value']:.2f}" if len(here) else "–"
