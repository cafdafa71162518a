"""Words of the command line as what a command takes; a fault in them is a line like any other.

parsed(settings, words, "interp head")
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import dropwhile, takewhile
from typing import TypeVar

import tyro

from interp.errors import ConfigError

_Result = TypeVar("_Result")


def parsed(
    target: Callable[..., _Result], words: Sequence[str], prog: str, description: str | None = None
) -> _Result:
    """What `target` makes of flags and positional words; a `ConfigError` where they do not fit."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(target, args=words, prog=prog, description=description)
    except SystemExit as left:
        if left.code in (0, None):
            raise
        fault = _fault(errors.getvalue())
    raise ConfigError(f"{fault} (`{prog} --help` lists the flags)")


_RULE = re.compile(r"[\W_]*[-─]{4,}[\W_]*")
_FRAME = re.compile(r"[╭╮╰╯│┃─━]")
_MISSING = re.compile(r"Missing from .*?:$")
_NEAR = re.compile(r"\s*(Got errors:|Perhaps you meant).*")


def _fault(box: str) -> str:
    """What stands in the box that the parser draws, up to its hints on further help."""
    lines = [" ".join(_FRAME.sub(" ", line).split()) for line in _first_part(box)]
    lines = [line for line in lines if line]
    if lines and _MISSING.match(lines[0]):
        flags = [line.split()[0] for line in lines[1:] if line.startswith("--")]
        return f"missing: {', '.join(flags or lines[1:2])}"
    return _NEAR.sub("", " ".join(lines)).rstrip(".") or "the flags do not fit"


def _first_part(box: str) -> Iterator[str]:
    """The lines between a box's first border and the first rule in it."""
    rows = [line for line in box.splitlines() if line.strip()][1:]
    within = dropwhile(_RULE.fullmatch, rows)  # where frames cannot be drawn, the title has one
    return takewhile(lambda row: not _RULE.fullmatch(row), within)
