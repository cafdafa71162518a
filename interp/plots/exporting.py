"""Figures as files: plotly JSON and the plotted numbers, and PNG and SVG where a browser is.

    files = export({"layers": layers(run)}, Path("RUN/figures"))

One browser serves all figures of a call and is gone afterwards, whatever it does: it runs in a
process group of its own, which is ended where it draws nothing more, and on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.plots.tidy import tidy
from interp.runs.files import check_inside, write_atomic

if TYPE_CHECKING:
    import pandas as pd

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

_PROGRAM = Path(__file__).with_name("pictures.py")

_SECONDS = 120
"""What a browser may take to start, to draw a picture, or to close."""

_LOG = logging.getLogger(__name__)


def find_browser() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def export(
    figures: Mapping[str, go.Figure], folder: Path, pictures: Sequence[str] = ("png", "svg")
) -> list[str]:
    """Write NAME.json and NAME.csv of every figure, and its `pictures` if possible.

    Returns the names of the files written. Without kaleido or a browser, or where the browser
    fails, one logged line says that there are no pictures, and what to do.
    """
    check_inside(folder.parent, folder)
    contents: dict[str, bytes] = {}
    for name, figure in figures.items():
        contents[f"{name}.json"] = figure.to_json().encode()
        contents[f"{name}.csv"] = _csv(tidy(figure)).encode()
    for file, content in contents.items():
        write_atomic(folder / file, content)
    drawn, notice = (
        _pictures([folder / f"{name}.json" for name in figures], pictures)
        if pictures and figures
        else ({}, None)
    )
    if notice:
        _LOG.warning(notice)
    for file, picture in drawn.items():
        write_atomic(folder / file, picture)
    return sorted(contents | drawn)


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.7g", lineterminator="\n")


def _pictures(files: Sequence[Path], endings: Sequence[str]) -> tuple[dict[str, bytes], str | None]:
    """Pictures of figures in JSON files by file name; or none, and a line that says why."""
    path = find_browser()
    if importlib.util.find_spec("kaleido") is None:
        return {}, "no PNG or SVG: kaleido is not installed (pip install 'interp[export]')"
    if path is None:
        return {}, "no PNG or SVG: no Chromium or Chrome found on PATH (install chromium)"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        words = [path, folder, ",".join(endings), *(str(file.resolve()) for file in files)]
        reason = _said_last([sys.executable, "-P", str(_PROGRAM), *words], folder)
        if reason == "done":
            names = [f"{file.stem}.{ending}" for file in files for ending in endings]
            return {name: Path(folder, name).read_bytes() for name in names}, None
    return {}, (
        f"no PNG or SVG: the browser failed ({reason}); all other files are written. "
        f"See that {path} starts, then draw again"
    )


def _said_last(command: Sequence[str], folder: str) -> str:
    """The last line of a program that says one for every picture, or what became of it. It is ended
    with all that it has started; what these leave in a temporary folder lies in `folder`."""
    process = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=os.environ | {"TMPDIR": folder},
    )
    assert process.stdout is not None
    heard = select.poll()
    heard.register(process.stdout, select.POLLIN)
    try:
        said = "drawn"
        while said == "drawn":
            if not heard.poll(1000 * _SECONDS):
                return f"it did nothing for {_SECONDS} s"
            said = process.stdout.readline().decode(errors="replace").strip()
        return said or "it ended early"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
