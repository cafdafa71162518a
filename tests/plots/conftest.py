"""A synthetic run with hostile names, read back once per session."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from interp.runs.view import Run, load_run

_SPEC = importlib.util.spec_from_file_location(
    "synthetic_run", Path(__file__).with_name("synthetic.py")
)
assert _SPEC
assert _SPEC.loader
synthetic = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(synthetic)


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Write and load a run; keywords are those of `synthetic.write`."""
    return lambda **options: load_run(synthetic.write(tmp_path_factory.mktemp("run"), **options))


@pytest.fixture(scope="session")
def run(make_run: Callable[..., Run]) -> Run:
    return make_run()


@pytest.fixture(scope="session")
def failed(make_run: Callable[..., Run]) -> Run:
    return make_run(passed=False)
