"""The synthetic run of the figures' tests, with a report written beside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

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
