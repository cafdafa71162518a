"""The table of what the toolkit survives: every row, and tests that are there."""

from __future__ import annotations

import re

from documentation.pages import ROOT

PAGE = ROOT / "docs" / "reliability.md"
CASES = 40


def rows() -> list[list[str]]:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [
        re.split(r"(?<!\\) \| ", line.strip("| ")) for line in lines if re.match(r"\| +\d", line)
    ]


def test_every_case_has_a_row_with_a_promise_and_a_test() -> None:
    assert [int(row[0]) for row in rows()] == list(range(1, CASES + 1))
    for _, case, promised, tests in rows():
        assert case
        assert promised
        assert re.fullmatch(r"`test_\w+`(, `test_\w+`)*", tests)


def test_every_test_that_is_named_is_there() -> None:
    sources = "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    assert {name for name in named if f"def {name}(" not in sources} == set()
