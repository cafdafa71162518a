"""Text that plotly, a browser and a reader all take literally.

    visible("\\x00the")        # '␀the': control characters become pictures
    label("<b>%{z}")           # plotly shows exactly <b>%{z}
    wrapped(caption, 150)      # lines joined by <br>

Plotly reads `<b>`, `<a href>` and entities in every label, and `%{...}` in hover templates.
"""

from __future__ import annotations

import textwrap

from interp.showing import visible

_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;", "}": "&#125;"})


def label(text: str, limit: int | None = None) -> str:
    """The text for any plotly label, tick, name, button or hover: shown character by character."""
    shown = visible(text)
    if limit is not None and len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return shown.translate(_ENTITIES)


def wrapped(text: str, width: int) -> str:
    """The text for a plotly annotation, in lines of at most `width` characters."""
    return "<br>".join(label(line) for line in text_lines(text, width))


def text_lines(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` characters; at least one line."""
    return textwrap.wrap(text, width) or [""]
