"""Sentences of a terminal's text, 80 columns wide.

folded("a long sentence ...")       # lines after the first begin where the first does
paragraphs(["a finding", "..."])    # each with its later lines indented
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING

from interp.showing import visible

if TYPE_CHECKING:
    from rich.text import Text

_WIDTH = 80


def folded(text: str, indent: str = "") -> str:
    """At most 80 columns; the lines after the first are indented."""
    return textwrap.fill(visible(text), _WIDTH, subsequent_indent=indent)


def paragraphs(lines: Iterable[object]) -> list[Text]:
    """A paragraph for every line."""
    from rich.text import Text

    return [Text(folded(str(line), "  ")) for line in lines]
