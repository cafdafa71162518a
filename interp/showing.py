"""What objects show of themselves in a notebook: short, offline, and every text escaped.

    page("tiny/model", Table(("condition", "parity"), [("base", "0")]), "nothing is withheld")

Torch-free.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple


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
