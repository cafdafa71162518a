"""Pictures of figures by a browser: a program of its own, which can be ended at any moment.

    python -P pictures.py /usr/bin/chromium FOLDER png,svg RUN/figures/layers.json ...

writes FOLDER/layers.png and FOLDER/layers.svg, and says a line for each, so that whoever waits sees
that the browser is alive; the last line is `done`, or why not. Where a browser stops in the middle,
what drives it waits for it without end: `interp.plots.exporting` then ends this program and the
browser together. It imports nothing else of the package, and nothing is fetched from a network.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from choreographer.browsers import Chromium
from kaleido import Kaleido

SCALES = {"png": 2, "svg": 1}


class _Browser(Chromium):
    """In the process group of this program, with which it ends."""

    def get_popen_args(self) -> dict[str, Any]:
        return {**super().get_popen_args(), "start_new_session": False}


async def _draw(path: str, folder: Path, endings: Sequence[str], files: Iterable[Path]) -> None:
    # The browser's sandbox is off by default, so that root can use it too.
    options: dict[str, Any] = {"path": path, "browser_cls": _Browser, "mathjax": False}
    async with Kaleido(n=1, timeout=None, **options) as kaleido:
        for file in files:
            still = _still(json.loads(file.read_bytes()))
            for ending in endings:
                asked: Any = {"format": ending, "scale": SCALES[ending]}
                picture = await kaleido.calc_fig(still, opts=asked)
                (folder / f"{file.stem}.{ending}").write_bytes(picture)
                print("drawn", flush=True)


def _still(figure: dict[str, Any]) -> dict[str, Any]:
    """Without menus, and without the traces that only a menu shows."""
    if not figure["layout"].pop("updatemenus", None):
        return figure
    return {**figure, "data": [one for one in figure["data"] if one.get("visible") is not False]}


def _reason(error: BaseException) -> str:
    """The first line of what an error says; its name where it says nothing."""
    first = error.args[0] if error.args else ""
    said = str(first[0] if isinstance(first, tuple) and first else first).strip()
    return said.splitlines()[0] if said else type(error).__name__


if __name__ == "__main__":
    browser, out, kinds, *asked_for = sys.argv[1:]
    try:
        asyncio.run(_draw(browser, Path(out), kinds.split(","), map(Path, asked_for)))
        print("done", flush=True)
    except (Exception, asyncio.CancelledError) as error:
        print(_reason(error), flush=True)
