"""Every notebook of `demos/` runs from its first cell to its last, and is kept without output."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DEMOS = sorted((Path(__file__).resolve().parent.parent / "demos").glob("*.ipynb"))


def test_there_are_three() -> None:
    assert [demo.stem[:2] for demo in DEMOS] == ["1_", "2_", "3_"]


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.stem)
def test_it_is_committed_without_output(demo: Path) -> None:
    for cell in nbformat.read(demo, as_version=4).cells:
        assert cell.cell_type == "markdown" or not (cell.outputs or cell.execution_count)


@pytest.mark.parametrize("demo", DEMOS, ids=lambda demo: demo.stem)
def test_it_runs(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(demo, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
