"""Tables of what `interp weights` found, for the page and for a terminal.

by_condition(of).rows[0]             # size, rank and new directions of an adapter's updates
rich.print(weights_table(load_run("RUN")))
"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import mean
from typing import TYPE_CHECKING, Any

from interp.errors import RunError
from interp.report.tables import Cell, Table
from interp.runs.view import NotMeasured, Run
from interp.runs.weights import INTRUDERS, NORM, RANK, Weighed
from interp.showing import Paragraph, number, paragraphs, visible

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

_MOST = 6
"""Columns of a terminal, and most pairs that have a line there."""


def weights_section(run: Run) -> dict[str, Any] | None:
    """What the report's section shows; None without one."""
    try:
        of = run.weights
    except NotMeasured:
        return None
    return {
        "findings": [visible(line) for line in findings(of)[:1]],
        "notes": [visible(str(note)) for note in of.found.get("notes") or []],
        "conditions": by_condition(of),
        "overlaps": subspace_table(of),
        "matrices": matrices(of),
        "heads": head_slice_table(of),
    }


def _cells(*values: float, digits: int = 3) -> list[Cell]:
    return [Cell(number(value, digits), kind="number") for value in values]


def by_condition(of: Weighed) -> Table:
    """Every condition that changes the weights: how much, in how many directions, how new."""
    rows = []
    for name in of.conditions:
        found = of.matrices(name)
        found = found[~found["site"].str.contains(":")]
        if found.empty:
            continue
        largest = found.loc[found[NORM].idxmax()] if found[NORM].notna().any() else None
        counted = found[INTRUDERS].dropna()
        rows.append(
            [
                Cell(visible(name)),
                Cell(str(len(found)), kind="number"),
                *_cells(found[NORM].median(), found[RANK].median()),
                Cell("–" if largest is None else visible(str(largest["name"]))),
                *_cells(float("nan") if largest is None else largest[NORM]),
                Cell(_of(counted, of.found["top"]), kind="number"),
            ]
        )
    columns = ["condition", "matrices", "relative norm, median", "stable rank, median"]
    columns += ["most changed", "its relative norm", "intruder dimensions"]
    return Table("What each condition adds to the weights.", columns, rows)


def _of(counted: pd.Series, top: int) -> str:
    """`3 of 420`."""
    return f"{counted.sum():.0f} of {top * len(counted)}" if len(counted) else "–"


def _grouped(of: Weighed) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The compared pairs by what they are: within a family, between two, or with a control."""
    known = of.run.families
    home = {name: family for family, members in known.items() for name in members}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in of.found["alike"]:
        pair = (str(entry["condition"]), str(entry["reference"]))
        sides = sorted((home.get(n, n) for n in pair), key=lambda n: (n not in known, n))
        alone = sides[0] == sides[1]
        found.setdefault(f"within {sides[0]}" if alone else " – ".join(sides), []).append(entry)
    return sorted(found.items(), key=lambda item: not item[0].startswith("within "))


def subspace_table(of: Weighed) -> Table:
    """Whether two conditions change the same directions, beside chance."""
    rows = []
    for name, entries in _grouped(of):
        cells = [Cell(visible(name)), Cell(str(len(entries)), kind="number")]
        for side in ("left", "right"):
            cells += [_range(entries, side), *_cells(_mean(entries, f"{side}_chance"))]
            cells.append(Cell(f"{100 * _mean(entries, f'{side}_above'):.0f} %", kind="number"))
        rows.append(cells)
    columns = ["conditions", "pairs"]
    for what in ("written", "read"):
        columns += [f"overlap of what is {what}", "chance", "matrices above chance"]
    words = "Overlap of the updates' strongest directions, mean over matrices [range over pairs]"
    return Table(f"{words}; above chance: above the middle 95 % of random spaces.", columns, rows)


def _mean(entries: list[Mapping[str, Any]], name: str) -> float:
    return mean(float(entry[name]) for entry in entries)


def _range(entries: list[Mapping[str, Any]], side: str) -> Cell:
    values = [float(entry[side]) for entry in entries]
    ends = f"[{number(min(values), 2)}, {number(max(values), 2)}]" if len(values) > 1 else ""
    return Cell(number(mean(values)), ends, "number")


def matrices(of: Weighed, most: int = 12) -> Table:
    """The matrices that the shown condition changes most."""
    found = of.matrices(of.shown[0]).nlargest(most, NORM)
    sizes = of.rows("singular_value", of.shown[0])
    sizes = sizes[sizes["head"].isna() & (sizes["position"] == "0")].set_index("site")["value"]
    rows = [
        [
            Cell(visible(str(row["name"]))),
            *_cells(row[NORM], row[RANK], sizes.get(row["site"], float("nan"))),
            Cell(
                "–" if row[INTRUDERS] != row[INTRUDERS] else f"{row[INTRUDERS]:.0f}", "", "number"
            ),
        ]
        for row in found.to_dict("records")
    ]
    columns = ["matrix", "relative norm", "stable rank", "largest singular value"]
    columns += ["intruder dimensions"]
    return Table(f"What {visible(of.shown[0])} changes most.", columns, rows)


def _count(x: float) -> str:
    return "–" if x != x else f"{x:.0f}"


def head_slice_table(of: Weighed, most: int = 10) -> Table:
    """The heads whose slice of a projection the shown condition changes most."""
    found = of.heads(of.shown[0])
    rows = [
        [
            Cell(visible(f"{row['name']}, head {row['head']}")),
            *_cells(row[NORM], row[RANK]),
        ]
        for row in found.nlargest(most, NORM).to_dict("records")
    ]
    words = f"The heads that {visible(of.shown[0])} changes most (of k and v: key/value heads)."
    return Table(words, ["slice", "relative norm", "stable rank"], rows)


def findings(of: Weighed) -> list[str]:
    """What the numbers say, a sentence each."""
    lines = []
    for name, entries in _grouped(of):
        said = [
            f"{what} overlap by {number(_mean(entries, side))} (chance "
            f"{number(_mean(entries, f'{side}_chance'), 2)}), above chance in "
            f"{100 * _mean(entries, f'{side}_above'):.0f} % of the matrices"
            for side, what in (("left", "written directions"), ("right", "read directions"))
        ]
        pairs = f"{len(entries)} pair{'s' * (len(entries) > 1)}"
        lines.append(f"{name} ({pairs}): {'; '.join(said)}.")
    return lines


def weights_table(run: Run) -> RenderableType:
    """A row per condition, then a line per finding; RunError where the run was not weighed."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    try:
        of = run.weights
    except NotMeasured as error:
        raise RunError(f"{run.path} was not weighed: use `interp weights {run.path}`") from error
    grid = Grid(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    titles = ("condition", "matrices", "rel. norm\n(median)", "stable\nrank", "most\nchanged")
    for title in (*titles, "rel. norm\nthere", "intruder\ndimensions"):
        words = title.startswith(("condition", "most"))
        grid.add_column(Text(title), justify="left" if words else "right", overflow="fold")
    for row in by_condition(of).rows:
        grid.add_row(*(Text(cell.text) for cell in row))
    said = findings(of)
    more = [f"And {len(said) - _MOST} more, in the report."] if len(said) > _MOST else []
    lines = [*said[:_MOST], *more, *map(str, of.found.get("notes") or [])]
    legend = (
        "rel. norm: update over base's matrix, Frobenius; intruder dimensions: of the "
        f"{of.found['top']} strongest directions written by each changed matrix, those unlike all "
        f"of base's (cosine < {of.found['epsilon']:g})."
    )
    return Group(grid, Paragraph(legend, "dim"), Text(""), *paragraphs(lines), Text(""))
