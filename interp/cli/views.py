"""Commands that read a finished run or the machine, and need no settings: quick to import.

report, compare and head draw; doctor and completion print.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from interp.cli.importing import preload
from interp.cli.parsing import parsed
from interp.cli.progress import console, results
from interp.runs.files import REPORT, read_manifest
from interp.showing import Paragraph

_Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]


def show_run(out: Path, pictures: Sequence[str] = ()) -> None:
    """The run's table on stdout, and its report."""
    preload("interp.report")
    from interp.report import text_table, write
    from interp.runs.view import load_run

    report_file = write(out, pictures)
    run = load_run(out)
    results().print(text_table(run))
    for note in run.manifest["notes"]:
        console().print(f"note: {note}", style="yellow", markup=False)
    print(f"report: {report_file}")


def report_command(words: Sequence[str]) -> None:
    """Draw figures and report of a run again, with pictures."""

    def settings(run: _Run, svg: bool = False) -> tuple[Path, Sequence[str]]:
        """Draw the figures and the report of a run again, from its files alone, and every figure as
        a PNG picture (where Chromium or Chrome is installed).

        Args:
            run: Folder of the run.
            svg: Also draw every figure as SVG.
        """
        return run, ("png", "svg") if svg else ("png",)

    show_run(*parsed(settings, words, "interp report"))


def compare_command(words: Sequence[str]) -> None:
    """Several runs in one page."""

    def settings(
        runs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path = Path("compare.html")
    ) -> tuple[Sequence[Path], Path]:
        """Several finished runs in one page on shared scales: models, adapters, checkpoints.

        Args:
            runs: Folders of the runs.
            out: The page.
        """
        return runs, out

    folders, out = parsed(settings, words, "interp compare")
    preload("interp.report")
    from interp.report import write_comparison

    print(f"page: {write_comparison(folders, out)}")


def head_command(words: Sequence[str]) -> None:
    """One head of a run under every condition."""

    def settings(
        run: _Run,
        head: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="HEAD")],
        query: int | None = None,
        all_queries: bool = False,
    ) -> tuple[Path, str, int | None, bool]:
        """One head of a run, closely: patterns, prefix mass, content JS, top attended tokens.

        Reads the patterns that the run keeps of a few queries.

        Args:
            run: Folder of the run.
            head: The head, such as L5H3 (layer and head counted from 0).
            query: Kept query whose most attended tokens are listed (none: the first).
            all_queries: Average over all queries instead, with pictures; the model is loaded again
                and must not have changed.
        """
        return run, head, query, all_queries

    folder, name, query, everything = parsed(settings, words, "interp head")
    read_manifest(folder)
    preload("interp.report", "pandas", "xarray")
    from interp.report import kept_head, write_head_view
    from interp.runs.view import load_run

    run = load_run(folder)
    view = None if everything else kept_head(run, name, query)
    if view is not None:
        table, files = write_head_view(folder, view, (), run)
    else:
        from interp.study import head_of_run

        table, files = write_head_view(folder, head_of_run(folder, name))
    results().print(table)
    print("\n".join(f"figure: {file}" for file in files))
    if view is not None:
        print(f"report: {folder / REPORT}#{view.head}")


def doctor_command(words: Sequence[str]) -> None:
    """What a run depends on, on one screen."""

    def look() -> None:
        """Versions, device, browser, whether the hub answers, and the cache, on one screen."""

    parsed(look, words, "interp doctor")
    from interp.cli.doctor import symptoms

    for what, found in symptoms():
        results().print(Paragraph(f"{what:<14}{found}", indent=" " * 14))


def completion_command(words: Sequence[str]) -> None:
    """A script for a shell."""

    def shell(name: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional]) -> str:
        """Print a script that completes commands and flags: `eval "$(interp completion bash)"`.

        Args:
            name: The shell.
        """
        return name

    from interp.cli.completion import script

    print(script(parsed(shell, words, "interp completion")))
