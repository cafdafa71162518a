"""The pages that people read, and what stands in their blocks of code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "README.ru.md", *(ROOT / "docs").rglob("*.md")],
    key=lambda page: page.relative_to(ROOT).as_posix(),
)

_BLOCK = re.compile(r"^```([\w{}-]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_SHELL = ("", "bash", "sh")
_PRINTED = "console"


def named(page: Path) -> str:
    """A page's path from the root."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[tuple[str, str]]:
    """Every block of code with its language."""
    return _BLOCK.findall(page.read_text(encoding="utf-8"))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path, *, printed: bool = True) -> list[str]:
    """The lines of shell in a page's blocks, those that go on joined; with `printed`, those too
    that stand with their real output."""
    found = []
    for language, block in blocks(page):
        if language in _SHELL or (printed and language == _PRINTED):
            typed = re.sub(r"^[$>] ", "", block, flags=re.MULTILINE)
            found += [line.strip() for line in typed.replace("\\\n", " ").splitlines()]
    return [line for line in found if line]


def inline(page: Path) -> list[str]:
    """What stands in a page's prose as code."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]
