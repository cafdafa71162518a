"""The synthetic run of the figures' tests, with a report written beside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from interp.plots.exporting import find_browser
from interp.report import write

_SPEC = importlib.util.spec_from_file_location(
    "synthetic_run", Path(__file__).parents[1] / "plots" / "synthetic.py"
)
assert _SPEC
assert _SPEC.loader
synthetic = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(synthetic)


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a run folder; keywords are those of `synthetic.write`."""
    return lambda **options: synthetic.write(tmp_path_factory.mktemp("run"), **options)


@pytest.fixture(scope="session")
def folder(make_folder: Callable[..., Path]) -> Path:
    """A run folder with its report, without pictures."""
    path = make_folder()
    write(path)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless browser; one at a time, since playwright takes the thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def address(folder: Path) -> str:
    """Where the report of the synthetic run is."""
    return (folder / "report.html").as_uri()
