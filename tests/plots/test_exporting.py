"""Figures as files, with a browser and without one."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from interp import plots
from interp.plots import exporting
from interp.runs.heads import HeadView
from interp.runs.view import Run

NO_BROWSER = exporting.find_browser() is None


def test_without_a_browser_numbers_are_kept_and_one_line_says_so(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exporting, "find_browser", lambda: None)
    with caplog.at_level(logging.WARNING):
        files = plots.export({"layers": plots.layers(run)}, tmp_path)
    assert files == ["layers.csv", "layers.json"]
    assert [m.count("\n") for m in caplog.messages] == [0]
    assert "no PNG or SVG" in caplog.text


def test_a_browser_that_cannot_start_costs_only_the_pictures(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("kaleido")
    monkeypatch.setattr(exporting, "find_browser", lambda: str(tmp_path / "no-such-browser"))
    files = plots.export({"layers": plots.layers(run)}, tmp_path / "out")
    assert files == ["layers.csv", "layers.json"]
    assert "no PNG or SVG" in caplog.text


def test_csv_holds_what_json_draws(run: Run, tmp_path: Path) -> None:
    figure = plots.head_map(run, "content_js")
    plots.export({"map": figure}, tmp_path, pictures=())
    numbers = pd.read_csv(tmp_path / "map.csv")
    assert len(numbers) == 2 * 4 * 3
    assert set(numbers["condition"]) == {"prompt", "neutral"}
    document = json.loads((tmp_path / "map.json").read_text())
    assert document["layout"]["meta"]["caption"] == figure.layout.meta["caption"]


KILLED = """
import sys, threading, time
from pathlib import Path
import plotly.graph_objects as go
import psutil
from interp.plots import exporting
from interp.plots.exporting import export

exporting._SECONDS = 3
done = threading.Event()

def kill():
    myself = psutil.Process()
    until = time.monotonic() + 60
    while not myself.children(recursive=True) and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(float(sys.argv[1]))
    for process in myself.children(recursive=True):
        getattr(process, sys.argv[3])()
    done.wait(60)
    for process in myself.children(recursive=True):
        process.kill()

killer = threading.Thread(target=kill)
killer.start()
figures = {str(i): go.Figure(go.Scatter(y=[1, i])) for i in range(200)}
print(len(export(figures, Path(sys.argv[2]))))
done.set()
killer.join()
"""


@pytest.mark.skipif(NO_BROWSER, reason="no Chromium or Chrome on PATH")
@pytest.mark.parametrize(
    ("after", "what"),
    [(0.0, "kill"), (3.0, "kill")],
    ids=lambda value: str(value),
)
def test_a_browser_that_dies_costs_the_pictures_and_one_line(
    after: float, what: str, tmp_path: Path
) -> None:
    """While it starts, or while it draws, or where it only does nothing more: nothing more is said,
    not even when Python ends."""
    pytest.importorskip("kaleido")
    command = [sys.executable, "-c", KILLED, str(after), str(tmp_path), what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0
    assert done.stdout.split() == ["400"]
    said = [line for line in done.stderr.splitlines() if line]
    assert len(said) == 1
    assert "the browser failed" in said[0]


@pytest.mark.skipif(NO_BROWSER, reason="no Chromium or Chrome on PATH")
def test_with_a_browser_pictures_are_drawn(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    files = plots.export({"head_view": plots.head_view(HeadView.of(run), run)}, tmp_path)
    assert len(files) == 4
    assert (tmp_path / "head_view.png").read_bytes().startswith(b"\x89PNG")
    picture = (tmp_path / "head_view.svg").read_text()
    assert "%{z}" in picture
    assert "$x$" in picture
    assert "<script" not in picture
