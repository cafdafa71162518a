"""The headline numbers of a run for a terminal: certificate, divergence by layer, families.

    rich.print(text_table(load_run("RUN")))

It fits 80 columns (of a run with a null) and is plain text where there is no terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.names import pair_name
from interp.report import chats, controls, tables
from interp.runs.heads import HeadView
from interp.runs.view import Run, Verdict
from interp.showing import visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def text_table(run: Run, position: str = "last") -> RenderableType:
    """One row per layer under the certificate, one line per pair of families below.

    Colour only where a terminal shows it.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    source, verdict = tables.layer_table(run, position), run.verdict()
    table = Table(
        title=Text(f"{visible(verdict.text)}\n", style=verdict_style(verdict)),
        title_justify="left",
        caption=Text(f"\n{_caption(run, position)}"),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for heading in _headings(run):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for row in source.rows:
        first = [row[0].text, _full(row[1])]
        table.add_row(*first, *(cell.text for cell in row[2:-1]), _full(row[-1]))
    below = [
        *controls.withheld(run),
        *chats.chat_lines(run),
        *controls.control_lines(run, position),
    ]
    return Group(table, Text("\n".join([*below, ""]))) if below else table


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
    names[0] += " [interval]"
    return ["layer", *names, "largest\ncontent JS"]


def _caption(run: Run, position: str) -> str:
    columns = tables.layer_columns(run)
    null = run.null_pair
    words = f"{pair_name(columns[0][2])}, position {position}; {run.interval}"
    words += f"; null: {pair_name(null)}" if null else ""
    return visible(f"{words}; {tables.head_note(run, position)}")


def head_view_table(view: HeadView) -> Table:
    """What a head attends to most under each condition, from the last query token."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    source = tables.attended_table(view, view.most_attended())
    table = Table(title=Text(source.caption), title_justify="left", box=box.SIMPLE_HEAD)
    for heading, cell in zip(source.columns, source.rows[0] if source.rows else [], strict=False):
        table.add_column(heading, justify="right" if cell.kind == "number" else "left")
    for row in source.rows:
        table.add_row(*(Text(cell.text) for cell in row))
    return table
