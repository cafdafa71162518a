"""Text that plotly, a browser and a reader all take literally.

    visible("\\x00the")        # '␀the': control characters become pictures
    label("<b>%{z}")           # plotly shows exactly <b>%{z}
    wrapped(caption, 150)      # lines joined by <br>

Plotly reads `<b>`, `<a href>` and entities in every label, and `%{...}` in hover templates.
"""

from __future__ import annotations

import textwrap
import unicodedata

Pair = tuple[str, str | None]
"""(condition, reference); the reference is None for a measure of one condition."""

_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "{": "&#123;", "}": "&#125;"})


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


def number(value: float | None, digits: int = 3) -> str:
    """A number for people; what is missing or NaN is called undefined."""
    if value is None or value != value:
        return "undefined"
    return f"{value:#.{digits}g}".rstrip(".") if abs(value) < 10**digits else f"{value:.0f}"


def pair_name(pair: Pair) -> str:
    """`prompt vs lora`, or the condition alone."""
    condition, reference = pair
    return condition if reference is None else f"{condition} vs {reference}"
