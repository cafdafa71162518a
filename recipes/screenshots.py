"""A report as readers meet it, as pictures to look at: desktop, phone, dark, paper, one head.

    python recipes/screenshots.py                  # of runs/demo, which is made where it is not
    python recipes/screenshots.py --run RUN --out build/screenshots

Needs Chromium or Chrome; everything is opened offline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import tyro

from interp import diverge, load_run
from interp.cli.commands import demo_experiment
from interp.plots.exporting import find_browser
from interp.report import write
from interp.runs.files import MANIFEST, REPORT

READY = "html[data-ready]"
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 400, "height": 800}


class Shot(NamedTuple):
    """A picture: the address within the page, what to wait for, and the reader's screen."""

    name: str
    place: str
    seen: str
    screen: dict[str, Any]


def shots(head: str) -> list[Shot]:
    """Every picture; `head`: the one that is opened."""
    desktop, phone = {"viewport": DESKTOP}, {"viewport": PHONE, "device_scale_factor": 2}
    dark = desktop | {"color_scheme": "dark"}
    drawn, opened = "[data-figure=layers] .main-svg", "#head-drawing .main-svg"
    return [
        Shot("first-screen", "", READY, desktop),
        Shot("layers", "figure-layers", drawn, desktop),
        Shot("explore", "explore", "#chart .main-svg", desktop),
        Shot("head", head, opened, desktop),
        Shot("dark", "", READY, dark),
        Shot("dark-layers", "figure-layers", drawn, dark),
        Shot("dark-head", head, opened, dark),
        Shot("phone", "", READY, phone),
        Shot("phone-layers", "figure-layers", drawn, phone),
        Shot("phone-head", head, opened, phone),
    ]


def main(run: Path = Path("runs/demo"), out: Path = Path("build/screenshots")) -> None:
    """Make them.

    Args:
        run: Folder of a run; the bundled model's is made where there is none.
        out: Folder of the pictures.
    """
    from playwright.sync_api import sync_playwright

    browser = find_browser()
    if browser is None:
        raise SystemExit("no browser was found: install chromium")
    if not (run / MANIFEST).exists():
        diverge(demo_experiment(run))
    if not (run / REPORT).exists():
        write(run)
    found = load_run(run)
    address = (run / REPORT).resolve().as_uri()
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for shot in shots(f"L{found.n_layers // 2}H0"):
            page = opened.new_context(offline=True, **shot.screen).new_page()
            page.goto(f"{address}#{shot.place}")
            page.wait_for_selector(shot.seen, timeout=60_000)
            page.wait_for_timeout(1000)
            page.screenshot(path=str(out / f"{shot.name}.png"))
            page.context.close()
        page = opened.new_context(offline=True).new_page()
        page.goto(address)
        page.wait_for_selector(READY, timeout=60_000)
        page.pdf(path=str(out / "paper.pdf"), format="A4")
        opened.close()
    print(f"{len(shots('')) + 1} pictures in {out}")


if __name__ == "__main__":
    tyro.cli(main)
