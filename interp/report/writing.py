"""Write a run's figures and its one-file report, and vouch for both in its manifest.

    write(Path("RUN"))                # RUN/figures/*, RUN/report.html, RUN/manifest.json
    write_head_view(Path("RUN"), view)    # RUN/figures/head_L5H3.*

The order matters: the manifest is sealed last, over files that are already in place, and first
stops vouching for those that are about to be replaced. Interrupted, both can be called again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.names import Head
from interp.plots import export, figures, head_view
from interp.report.page import page
from interp.report.terminal import head_view_table
from interp.runs.files import (
    FIGURES,
    REPORT,
    check_inside,
    remove_temporaries,
    seal,
    write_atomic,
)
from interp.runs.heads import HeadView
from interp.runs.samples import Samples
from interp.runs.view import Run, load_run

if TYPE_CHECKING:
    from rich.console import RenderableType

_DRAWN = re.compile(rf"{FIGURES}/(?!head_L)\w[\w.-]*|{re.escape(REPORT)}")


class DrawnHead(NamedTuple):
    """A head's most attended tokens for the terminal, and the figure files written."""

    table: RenderableType
    files: list[Path]


def write(path: Path, pictures: Sequence[str] = ()) -> Path:
    """Draw the run in the folder `path`; returns the path of the report.

    `pictures`: `png` or `svg`, of which a browser draws each in about half a second. Figures of
    single heads stay.
    """
    run = _opened(path)
    old = [name for name in run.manifest["files"] if _DRAWN.fullmatch(name)]
    manifest = _without(path, run.manifest, old)
    drawn = figures(run)
    with ThreadPoolExecutor(1) as pool:  # the browser draws while the page is made
        text = pool.submit(page, run, drawn)
        files = export(drawn, path / FIGURES, pictures)
    write_atomic(path / REPORT, text.result().encode())
    seal(path, manifest, [REPORT, *(f"{FIGURES}/{file}" for file in files)])
    return path / REPORT


def kept_head(run: Run, name: str, query: int | None = None) -> HeadView | None:
    """A head from the patterns that the run keeps, without its model; None where it keeps none of
    this head."""
    head = Head.parse(name)
    kept = Samples.of(run)
    if kept is None or not kept.has(head):
        return None
    pairs = [(a, b) for a, b in run.main_pairs if b is not None]
    return kept.view(head, pairs, query)


def write_head_view(
    path: Path,
    view: HeadView,
    pictures: Sequence[str] = ("png", "svg"),
    run: Run | None = None,
) -> DrawnHead:
    """Draw one head of the run in the folder `path` as `figures/head_<head>`; `run`: that run,
    where it is open already."""
    run = _opened(path, run)
    name = f"head_{view.head}"
    old = [file for file in run.manifest["files"] if file.startswith(f"{FIGURES}/{name}.")]
    manifest = _without(path, run.manifest, old)
    files = export({name: head_view(view, run)}, path / FIGURES, pictures)
    seal(path, manifest, [f"{FIGURES}/{file}" for file in files])
    return DrawnHead(head_view_table(view.narrowed(run)), [path / FIGURES / file for file in files])


def _opened(path: Path, run: Run | None = None) -> Run:
    """The run in a folder, which is cleared of what a killed process has left."""
    run = run or load_run(path)
    check_inside(path, path / FIGURES)
    remove_temporaries(path)
    return run


def _without(path: Path, manifest: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The manifest, on disk too, without these files, and the files removed."""
    gone = set(names)
    kept = {name: digest for name, digest in manifest["files"].items() if name not in gone}
    slim = {**manifest, "files": kept}
    if gone:
        seal(path, slim, [])
        for name in gone:
            (path / name).unlink(missing_ok=True)
    return slim
