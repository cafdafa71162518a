"""How a long job says how far it is: the calls that it makes while it runs. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with (what is done, how many newly, how many in all)."""

TrainingProgress = Callable[[str, int, int, str], None]
"""Called with (what is done, how many newly, how many in all, a note)."""

StepProgress = Callable[[int, float, float], None]
"""Called after every step with (step, loss, best so far)."""

SearchProgress = Callable[[str, int, int, float], None]
"""Called with (what is searched, steps done, of how many, best loss so far)."""


def no_progress(*_: Any) -> None:
    """No progress shown."""
