"""Figures as files: plotly JSON and the plotted numbers, and PNG and SVG where a browser is.

    files = export({"layers": layers(run)}, Path("RUN/figures"))

One browser serves all figures of a call and is gone afterwards; nothing is fetched from a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import importlib.util
import logging
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from interp.plots.tidy import tidy
from interp.runs.files import check_inside, write_atomic

if TYPE_CHECKING:
    import pandas as pd

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


_LOG = logging.getLogger(__name__)


def find_browser() -> str | None:
    """The path of a Chromium or Chrome, or None."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def export(
    figures: Mapping[str, go.Figure], folder: Path, pictures: Sequence[str] = ("png", "svg")
) -> list[str]:
    """Write NAME.json and NAME.csv of every figure, and its `pictures` if possible.

    Returns the names of the files written. Without kaleido or a browser one logged line says that
    there are no pictures.
    """
    check_inside(folder.parent, folder)
    # The browser draws while the numbers are written out, in a thread of its own: asyncio.run also
    # works there where a loop is running (notebooks).
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(_pictures, figures, pictures) if pictures and figures else None
        contents: dict[str, bytes] = {}
        for name, figure in figures.items():
            contents[f"{name}.json"] = figure.to_json().encode()
            contents[f"{name}.csv"] = _csv(tidy(figure)).encode()
    drawn, notice = drawing.result() if drawing else ({}, None)
    if notice:
        _LOG.warning(notice)
    for file, content in (contents | drawn).items():
        write_atomic(folder / file, content)
    return sorted(contents | drawn)


def _csv(frame: pd.DataFrame) -> str:
    return frame.to_csv(index=False, float_format="%.7g", lineterminator="\n")


def _pictures(
    figures: Mapping[str, go.Figure], endings: Sequence[str]
) -> tuple[dict[str, bytes], str | None]:
    path = find_browser()
    if importlib.util.find_spec("kaleido") is None:
        return {}, "no PNG or SVG: kaleido is not installed (pip install 'interp[export]')"
    if path is None:
        return {}, "no PNG or SVG: no Chromium or Chrome found on PATH"
    try:
        with _hushed():
            return asyncio.run(_render(figures, path, endings)), None
    except (Exception, asyncio.CancelledError) as error:  # whatever it does, the numbers are there
        first = error.args[0] if error.args else ""
        reason = str(first[0] if isinstance(first, tuple) and first else first).strip()
        reason = reason.splitlines()[0] if reason else type(error).__name__
        return {}, f"no PNG or SVG: the browser failed ({reason})"


TALKATIVE = ("asyncio", "choreographer", "kaleido")
"""Loggers of what drives the browser."""


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """What a browser that dies leaves behind says nothing, neither now nor when it is collected as
    garbage: tasks that nobody awaits, pipes of a loop that is closed."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels, hook = [logger.level for logger in loggers], sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda _: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.collect()
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


SCALES = {"png": 2, "svg": 1}

_SECONDS = 60
"""What a browser may take to draw a picture, and twice that to start, or to close."""


async def _render(
    figures: Mapping[str, go.Figure], path: str, endings: Sequence[str]
) -> dict[str, bytes]:
    """Pictures by file name; a TimeoutError from a browser that does nothing more, even where it
    does not close either."""
    from kaleido import Kaleido  # its sandbox is off by default, so that root can use it too

    drawn: dict[str, bytes] = {}
    async with (
        asyncio.timeout(2 * _SECONDS) as given_up,
        Kaleido(n=1, timeout=_SECONDS, mathjax=False, path=path) as kaleido,
    ):
        for name, figure in figures.items():
            still = _still(figure)
            for ending in endings:
                options: Any = {"format": ending, "scale": SCALES[ending]}
                given_up.reschedule(asyncio.get_running_loop().time() + 2 * _SECONDS)
                async with asyncio.timeout(_SECONDS):
                    drawn[f"{name}.{ending}"] = await kaleido.calc_fig(still, opts=options)
    return drawn


def _still(figure: go.Figure) -> go.Figure:
    """Without menus, and without the traces that only a menu shows."""
    if not figure.layout.updatemenus:
        return figure
    plain = copy.deepcopy(figure)
    plain.layout.updatemenus = []
    plain.data = [trace for trace in plain.data if trace.visible is not False]
    return plain
