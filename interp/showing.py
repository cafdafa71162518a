"""What is shown in a notebook and on a terminal: short, offline, and every text escaped.

    html_page("tiny/model", HtmlTable(("condition", "parity"), [("base", "0")]), "nothing withheld")
    rich.print(*paragraphs(["A finding ...", "another"]))   # as wide as the terminal

Torch-free.
"""

from __future__ import annotations

import html
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table


class HtmlTable(NamedTuple):
    """Names of columns, and rows of as many cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


def html_page(title: str, *parts: HtmlTable | str) -> str:
    """A heading, tables and lines as HTML that needs nothing from elsewhere."""
    shown = "".join(_table(part) if isinstance(part, HtmlTable) else _line(part) for part in parts)
    return f"<div><b>{escaped(title)}</b>{shown}</div>"


def escaped(value: Any) -> str:
    """The text of a value as a browser shows it, character by character."""
    return html.escape(visible(str(value)))


def _line(text: str) -> str:
    return f"<div>{escaped(text)}</div>"


def _table(table: HtmlTable) -> str:
    head = "".join(f"<th>{escaped(name)}</th>" for name in table.head)
    rows = ("".join(f"<td>{escaped(cell)}</td>" for cell in row) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def visible(text: str) -> str:
    """The text with control and bidi-control characters, lone surrogates and end spaces shown."""
    shown = "".join(map(_picture, text))
    core = shown.strip(" ")
    head = len(shown) - len(shown.lstrip(" "))
    return "␣" * head + core + "␣" * (len(shown) - head - len(core))


def _picture(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if 0xD800 <= code <= 0xDFFF:
        return "\ufffd"
    if unicodedata.category(character) == "Cc" or code in _BIDI or code in (0x2028, 0x2029):
        return f"\\u{code:04x}"
    return character


_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C}


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; what is missing or NaN is called undefined."""
    if value is None or value != value:
        return "undefined"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) < 10**digits else f"{value:.0f}"


# --- on a terminal -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paragraph:
    """A text for `rich.print` in lines as wide as the terminal; those after the first begin with
    `indent`. The spaces that it begins with stay."""

    text: str
    style: str = ""
    indent: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines."""
        from rich.text import Text

        core = self.text.lstrip(" ")
        lead = " " * (len(self.text) - len(core))
        lines = textwrap.fill(
            visible(core), options.max_width, initial_indent=lead, subsequent_indent=self.indent
        )
        yield Text(lines, self.style)


def paragraphs(lines: Iterable[object]) -> list[Paragraph]:
    """A paragraph for every line, its later lines indented."""
    return [Paragraph(str(line), indent="  ") for line in lines]


@dataclass(frozen=True)
class FirstThatFits:
    """Tables for `rich.print`, the widest first: the first one that the terminal has room for, or
    the last."""

    tables: Sequence[Table]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """One of them."""
        free = options.update(max_width=10_000)
        widths = (console.measure(table, options=free).maximum for table in self.tables)
        fitting = (
            t for t, wide in zip(self.tables, widths, strict=True) if wide <= options.max_width
        )
        yield next(fitting, self.tables[-1])
