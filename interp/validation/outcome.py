"""What a check expected and what it measured, and the table of many. Torch-free.

outcome = Outcome("no-op patch", "llama", Reading(0.0, limit=0.0), seconds=0.2)
outcome.passed, outcome.expected, outcome.measured       # True, "0", "0"
rich.print(outcome_table(worst([outcome, ...])))
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.table import Table


class Reading(NamedTuple):
    """A number and its bound; NaN is never within it."""

    value: float
    limit: float
    at_least: bool = False
    """The bound is the smallest value allowed, not the largest."""
    note: str = ""
    """What a failure is about."""

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def strain(self) -> float:
        """How near the bound is (1: reached), for the worst of many; infinite where it is NaN."""
        above, below = (self.limit, self.value) if self.at_least else (self.value, self.limit)
        if math.isnan(self.value) or (below <= 0 < above):
            return math.inf
        return above / below if below > 0 else 0.0


def largest_or_nan(values: Iterable[float]) -> float:
    """The largest value; NaN if one is (which `max` may miss)."""
    listed = list(values)
    return math.nan if any(map(math.isnan, listed)) else max(listed)


@dataclass(frozen=True)
class Outcome:
    """One check of one model (or of none), and the seconds that it took. `withheld`: why a model
    does not allow what is checked; its measures are left out of its runs."""

    check: str
    on: str
    reading: Reading
    seconds: float
    withheld: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.withheld) or self.reading.passed

    @property
    def expected(self) -> str:
        if not self.reading.at_least and self.reading.limit == 0:
            return "0"
        return f"{'>=' if self.reading.at_least else '<='} {self.reading.limit:.2g}"

    @property
    def measured(self) -> str:
        return f"{self.reading.value:.2g}"


def worst(outcomes: Iterable[Outcome], on: str) -> list[Outcome]:
    """Every check once, for many models: the worst failure, or the closest to one; all seconds."""
    by_check: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_check.setdefault(outcome.check, []).append(outcome)
    found = []
    for check, all_of_it in by_check.items():
        one = max(all_of_it, key=lambda o: (not o.passed, o.reading.strain))
        where = on if one.passed else f"{on}: {one.on}"
        found.append(Outcome(check, where, one.reading, sum(o.seconds for o in all_of_it)))
    return found


def outcome_table(outcomes: Iterable[Outcome]) -> Table:
    """One row per check; a failure is followed by what it is about."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for heading in ("check", "of", "expected", "measured", "s"):
        number = heading in ("expected", "measured", "s")
        shown.add_column(heading, justify="right" if number else "left", no_wrap=number)
    shown.add_column("verdict", no_wrap=True)
    for o in outcomes:
        name = Text(o.check)
        if o.withheld:
            verdict = Text("withheld", "yellow")
            name.append(f"\n{o.withheld}", "yellow")
            numbers = (Text(""), Text(""), Text(f"{o.seconds:.1f}"))
            shown.add_row(name, Text(o.on), *numbers, verdict)
            continue
        verdict = Text("pass", "green") if o.passed else Text("FAIL", "bold red")
        if not o.passed and o.reading.note:
            name.append(f"\n{o.reading.note}", "red")
        numbers = (Text(o.expected), Text(o.measured), Text(f"{o.seconds:.1f}"))
        shown.add_row(name, Text(o.on), *numbers, verdict)
    return shown


def summary_line(outcomes: Iterable[Outcome]) -> str:
    """How many checks passed, in one line."""
    all_of_them = list(outcomes)
    failed = sum(not outcome.passed for outcome in all_of_them)
    seconds = sum(outcome.seconds for outcome in all_of_them)
    withheld = sum(bool(outcome.withheld) for outcome in all_of_them)
    verdict = f"{failed} of {len(all_of_them)} checks FAILED" if failed else "all checks passed"
    verdict += f", {withheld} withheld" if withheld else ""
    return f"{verdict} ({len(all_of_them)}, {seconds:.0f} s)"
