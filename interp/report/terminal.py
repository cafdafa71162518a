"""The headline numbers of a run for a terminal: certificate, divergence by layer, families.

    rich.print(text_table(load_run("RUN")))

It is as wide as the terminal, of which 80 columns are enough for a run with a null: where there are
more, more of its numbers have their interval. Plain text where there is no terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.names import pair_name
from interp.report import chats, controls, tables
from interp.runs.heads import HeadView
from interp.runs.view import Run, Verdict
from interp.showing import FirstThatFits, Paragraph, paragraphs, visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def text_table(run: Run, position: str = "last") -> RenderableType:
    """One row per layer under the certificate, one line per pair of families below.

    Colour only where a terminal shows it.
    """
    from rich.console import Group
    from rich.text import Text

    source, verdict = tables.layer_table(run, position), run.verdict()
    headings = _headings(run)
    short = [heading.replace("_out\nrel. L2", "\nout") for heading in headings]
    most = len(headings) - 2
    grids = [
        *(_grid(source, headings, wide) for wide in range(most, 0, -1)),
        *(_grid(source, short, wide) for wide in (1, 0)),
    ]
    below = [
        *controls.withheld(run),
        *chats.chat_lines(run),
        *controls.control_lines(run, position),
    ]
    rest: list[RenderableType] = [Text(""), *paragraphs(below), Text("")] if below else []
    return Group(
        Paragraph(verdict.text, verdict_style(verdict)),
        Text(""),
        FirstThatFits(grids),
        Text(""),
        Paragraph(_caption(run, position), "dim"),
        *rest,
    )


def _grid(source: tables.Table, headings: Sequence[str], wide: int) -> Table:
    """The table by layer with the intervals of the first `wide` of its measures."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for at, heading in enumerate(headings):
        more = " [interval]" if 0 < at <= wide else ""
        grid.add_column(Text(heading + more), justify="right", no_wrap=True)
    for layer, *measures, top in source.rows:
        cells = [_full(cell) if at < wide else cell.text for at, cell in enumerate(measures)]
        grid.add_row(layer.text, *cells, _full(top))
    return grid


def _full(cell: tables.Cell) -> str:
    return f"{cell.text} {cell.extra}".strip()


def verdict_style(verdict: Verdict) -> str:
    """The colour of a certificate's line."""
    passed = verdict.passed
    return "bold yellow" if passed is None else "bold green" if passed else "bold red"


def _headings(run: Run) -> list[str]:
    columns = tables.layer_columns(run)
    names = []
    for at, (site, measure, pair) in enumerate(columns):
        what = "delta\nalign." if measure == "delta_alignment" else f"{site}\nrel. L2"
        if at == 1 and pair != columns[0][2]:
            null = pair == run.null_pair
            what = "\nnull" if null else f"rel. L2,\n{visible(pair[0])}"
        names.append(what)
    return ["layer", *names, "largest\ncontent JS"]


def _caption(run: Run, position: str) -> str:
    columns = tables.layer_columns(run)
    null = run.null_pair
    words = f"{pair_name(columns[0][2])}, position {position}; {run.interval}"
    words += f"; null: {pair_name(null)}" if null else ""
    return visible(f"{words}; {tables.head_note(run, position)}")


def head_view_table(view: HeadView) -> RenderableType:
    """What a head attends to most under each condition, from the last query token."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    source = tables.attended_table(view, view.most_attended())
    grid = Table(box=box.SIMPLE_HEAD)
    for heading, cell in zip(source.columns, source.rows[0] if source.rows else [], strict=False):
        grid.add_column(heading, justify="right" if cell.kind == "number" else "left")
    for row in source.rows:
        grid.add_row(*(Text(cell.text) for cell in row))
    return Group(Paragraph(source.caption), grid)
