"""What is printed where: progress on stderr, a bar with rate and time left on a terminal, plain
lines elsewhere; tables on stdout."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_PLAIN_EVERY = 5.0
"""Seconds between plain lines."""


def console() -> Console:
    """Where progress and notices go; results go to stdout."""
    return Console(stderr=True, highlight=False)


def results() -> Console:
    """Where tables go: as wide as the terminal, and 80 columns where there is none (or as many as
    `COLUMNS` says)."""
    asked = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if asked else 80)


@dataclass
class _Counter:
    """Counts what is done per label and shows it; what was whole begins anew with the next."""

    screen: Console
    bars: Progress
    unit: str
    tasks: dict[str, TaskID] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    started: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.monotonic)
    said: float = 0.0

    def add(self, label: str, newly: int, total: int, note: str = "") -> None:
        """`newly` more of `total` are done; 0 says the note alone."""
        if label not in self.tasks:
            self.tasks[label] = self.bars.add_task(label, note="")
            self._begin(label, total)
        elif newly > 0 and self.done[label] >= self.totals[label]:
            self._begin(label, total)
        self.done[label], self.totals[label] = self.done[label] + newly, total
        rate = self.done[label] / max(1e-9, time.monotonic() - self.started[label])
        note = note or f"{rate:.1f} {self.unit}".rstrip() + "/s"
        self.bars.update(self.tasks[label], completed=self.done[label], note=note)
        self.last = time.monotonic()
        if not self.screen.is_terminal:
            self._say(label, total, note, rate, always=newly == 0)

    def _begin(self, label: str, total: int) -> None:
        self.done[label] = 0
        self.started[label] = self.last
        self.bars.reset(self.tasks[label], total=total)

    def _say(self, label: str, total: int, note: str, rate: float, always: bool) -> None:
        now = time.monotonic()
        finished = self.done[label] >= total
        if finished or always or now - self.said >= _PLAIN_EVERY:
            self.said = now
            open_ended = finished or not rate
            left = "" if open_ended else f", {(total - self.done[label]) / rate:.0f} s left"
            done = f"{label}: {self.done[label]}/{total} {self.unit}".rstrip()
            self.screen.print(f"{done} ({note}{left})")


@contextmanager
def counting(unit: str = "") -> Iterator[_Counter]:
    """A counter whose bars live while inside; no unit where labels say it."""
    screen = console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=screen, disable=not screen.is_terminal)
    with bars:
        yield _Counter(screen, bars, unit)
