"""Work for engines, in a module that workers can import: squares of numbers, in the open."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from interp.errors import QueryError

Tick = Callable[[int], None]


def opened_in(folder: Path) -> Path:
    """A context: a folder, in which everybody who opens it leaves a file."""
    (folder / f"opened {os.getpid()}").touch()
    return folder


def squares(folder: Path) -> Callable[[int, Tick], np.ndarray]:
    """`[number, its square]`; ticks as often as the number says."""
    (folder / f"begun {os.getpid()}").touch()

    def square(number: int, tick: Tick) -> np.ndarray:
        for _ in range(number):
            tick(1)
        return np.array([number, number**2])

    return square


def deadly(folder: Path) -> Callable[[int, Tick], np.ndarray]:
    """As `squares`; who comes first to the number 2 kills its own process."""

    def square(number: int, tick: Tick) -> np.ndarray:
        dead = folder / "dead"
        if number == 2 and not dead.exists():
            dead.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return squares(folder)(number, tick)

    return square


def always_deadly(folder: Path) -> Callable[[int, Tick], Any]:
    """Kills every process that begins it."""

    def die(number: int, tick: Tick) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    return die


def refusing(folder: Path) -> Callable[[int, Tick], Any]:
    """Finds fault with its item."""

    def refuse(number: int, tick: Tick) -> Any:
        raise QueryError(f"query {number} cannot be used")

    return refuse


def broken(folder: Path) -> Callable[[int, Tick], Any]:
    """A mistake of the program's."""

    def divide(number: int, tick: Tick) -> Any:
        return number / 0

    return divide


def slow(folder: Path) -> Callable[[int, Tick], int]:
    """Takes longer than a worker has to give a sign of life."""

    def sleep(number: int, tick: Tick) -> int:
        time.sleep(4.5)
        return number

    return sleep
