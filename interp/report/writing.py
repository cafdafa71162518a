"""Write a run's figures and its one-file report, and vouch for both in its manifest.

    write(Path("RUN"))                # RUN/figures/*, RUN/report.html, RUN/manifest.json

The order matters: the manifest is sealed last, over files that are already in place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from interp.plots import export, figures
from interp.report.page import page
from interp.results import FIGURES, REPORT, load_run, seal, write_atomic

_DRAWN = re.compile(rf"{FIGURES}/\w[\w.-]*|{re.escape(REPORT)}")


def write(path: Path, browser: bool = True) -> Path:
    """Draw the run in the folder `path`; returns the path of the report.

    `browser=False` makes no PNG and SVG. Interrupted, it can be called again: the manifest stops
    vouching for the old report and figures before they are replaced.
    """
    run = load_run(path)
    manifest = _without_drawings(path, run.manifest)
    drawn = figures(run)
    files = export(drawn, path / FIGURES, browser)
    write_atomic(path / REPORT, page(run, drawn).encode())
    seal(path, manifest, [REPORT, *(f"{FIGURES}/{file}" for file in files)])
    return path / REPORT


def _without_drawings(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, on disk too, without the drawings of an earlier report; those are removed."""
    old = [name for name in manifest["files"] if _DRAWN.fullmatch(name)]
    kept = {name: digest for name, digest in manifest["files"].items() if name not in old}
    slim = {**manifest, "files": kept}
    if old:
        seal(path, slim, [])
        for name in old:
            (path / name).unlink(missing_ok=True)
    return slim
