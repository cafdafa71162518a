"""Tables of what `interp edges` found, for the page and for a terminal.

strongest_edge_table(of, "won").rows[0]          # an edge, to first order and patched, by condition
rich.print(edge_table(load_run("RUN")))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.errors import RunError
from interp.report.patching import arrow
from interp.report.tables import Cell, Table
from interp.runs.edges import FoundEdges
from interp.runs.view import NotMeasured, Run
from interp.showing import Paragraph, number, paragraphs, visible

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType


def edge_section(run: Run) -> dict[str, Any] | None:
    """What the report's section shows; None without one."""
    try:
        of = run.edges
    except NotMeasured:
        return None
    return {
        "findings": [visible(str(line)) for line in of.found["verdict"]],
        "notes": [visible(str(note)) for note in of.found["notes"]],
        "won": strongest_edge_table(of, "won"),
        "lost": strongest_edge_table(of, "lost"),
        "overlap": edge_overlap_table(of),
        "agreement": edge_agreement_table(of),
    }


def strongest_edge_table(of: FoundEdges, by: str, most: int = 10) -> Table:
    """The strongest edges of each of the pair's conditions, rank by rank."""
    frames = {c: of.strongest(of.move(c, by)).head(most) for c in of.pair}
    rows = []
    for rank in range(max(map(len, frames.values()))):
        cells = [Cell(str(rank + 1), kind="number")]
        for frame in frames.values():
            cells += _edge_cells(frame.iloc[rank])
        rows.append(cells)
    columns = ["rank"]
    for condition in of.pair:
        move = arrow(*of.move(condition, by))
        columns += [f"edge, {move}", "first order [nats]", "patched [nats]"]
    what = f"put into {of.base}'s run" if by == "won" else f"replaced by {of.base}'s in its own run"
    words = f"The strongest edges of each condition, {visible(what)}; n = {of.found['n']} queries."
    return Table(words, columns, rows, stacked=True)


def _edge_cells(row: pd.Series) -> list[Cell]:
    return [Cell(visible(str(row["edge"]))), _with_ends(row, "estimate"), _with_ends(row, "exact")]


def _with_ends(row: pd.Series, name: str) -> Cell:
    if row[name] != row[name]:
        return Cell("–", kind="number")
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    ends = f"[{number(low)}, {number(high)}]" if low == low else ""
    return Cell(number(row[name]), ends, "number")


def edge_overlap_table(of: FoundEdges) -> Table:
    """Whether two conditions use the same edges."""
    rows = [
        [
            Cell(visible(f"{entry['condition']} and {entry['reference']}")),
            Cell(str(entry["by"])),
            Cell(number(entry["share"], 2), kind="number"),
            Cell(number(entry["p"], 2), kind="number"),
            Cell(number(entry["rank_correlation"], 2), kind="number"),
            Cell(number(entry["rank_p"], 2), kind="number"),
        ]
        for entry in of.found["overlap"]
    ]
    k = of.found["overlap"][0]["k"] if of.found["overlap"] else 0
    words = f"Are the {k} strongest edges the same? p: edges permuted among those from the same "
    words += "layer and kind of node into the same layer and kind of input."
    columns = ["conditions", "by", "share in common", "p of the share"]
    return Table(words, [*columns, "rank correlation, all edges", "p of it"], rows)


def edge_agreement_table(of: FoundEdges) -> Table:
    """How far the first order is right."""
    rows = [
        [
            Cell(arrow(entry["source"], entry["target"])),
            Cell(str(entry["edges"]), kind="number"),
            Cell(number(entry["same_sign"], 2), kind="number"),
            Cell(number(entry["spearman"], 2), kind="number"),
        ]
        for entry in of.found["agreement"]
    ]
    columns = ["move", "edges", "share of equal signs", "rank correlation"]
    return Table("First order against exact path patching, the strongest edges.", columns, rows)


def edge_table(run: Run) -> RenderableType:
    """The strongest edges, then a line per finding; RunError where the run has none."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    if not run.manifest.get("edges"):
        raise RunError(f"{run.path} has no edges: use `interp edges {run.path}`")
    of = run.edges
    grid = Grid(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False)
    for condition in of.pair:
        grid.add_column(Text(visible(f"{condition} → {of.base}")))
        for title in ("first\norder", "patched"):
            grid.add_column(Text(title), justify="right")
    for row in strongest_edge_table(of, "won").rows:
        grid.add_row(*(Text(cell.text) for cell in row[1:]))
    lines = [*map(str, of.found["verdict"]), *map(str, of.found["notes"])]
    legend = "Change of the answer's log-odds by one edge alone, nats per answer."
    return Group(grid, Paragraph(legend, "dim"), Text(""), *paragraphs(lines), Text(""))
