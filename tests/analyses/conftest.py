"""Analyses without pictures: tests/report/test_experiments.py and tests/plots make them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """No browser is found, by a script's own process neither: each would start one."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
