"""A script as a child process: its progress is passed on, its output kept, its failure one line.

failure = run_child([sys.executable, "analyses/golden_zone.py"], Path("OUT/output.txt"))
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_INTERRUPTED = 130
_PATIENCE = 10.0
"""Seconds in which an interrupted child may end by itself."""


def run_child(command: Sequence[str], log: Path) -> str | None:
    """Run to the end; None, or the line that says why it failed.

    stdout and stderr go into `log`, stderr up to a traceback also to our own. A child that was
    interrupted interrupts us; if we are, it ends first.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w", encoding="utf-8") as kept,
        subprocess.Popen(
            command, stdout=kept, stderr=subprocess.PIPE, text=True, errors="replace"
        ) as child,
    ):
        try:
            last = _passed_on(child.stderr, kept) if child.stderr else ""
            code = child.wait()
        except BaseException:
            _end(child)
            raise
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    return (last.removeprefix("interp: ") or f"exit code {code}") if code else None


def _passed_on(lines: IO[str], kept: IO[str]) -> str:
    """Show and keep lines as they come; returns the last one."""
    last, quiet = "", False
    for line in lines:
        kept.write(line)
        kept.flush()
        quiet = quiet or line.startswith(("Traceback", "interp: "))
        if not quiet:
            print(f"  {line}", end="", file=sys.stderr, flush=True)
        last = line.strip() or last
    return last


def _end(child: subprocess.Popen[str]) -> None:
    """A terminal has told the child too, another sender has not; what hangs is killed."""
    for patience, sign in ((1.0, signal.SIGINT), (_PATIENCE, signal.SIGKILL)):
        try:
            child.wait(patience)
            return
        except subprocess.TimeoutExpired:
            child.send_signal(sign)
    child.wait()
