"""Figures as files, with a browser and without one."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from killing import heeding_signals

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


# A browser that fails ----------------------------------------------------------------------------

ASKED = """
import sys
from pathlib import Path
import plotly.graph_objects as go
from interp.cli import guarded
from interp.plots import exporting

exporting._SECONDS = int(sys.argv[1])
figures = {name: go.Figure(go.Scatter(y=[1, 2])) for name in sys.argv[3:]}
code = guarded(lambda: print(*exporting.export(figures, Path(sys.argv[2]))))
raise SystemExit(code)
"""


def asked(folder: Path, seconds: int, *figures: str, browser: str = "") -> subprocess.Popen[str]:
    """Pictures, drawn by a command that may wait for so long; `browser`: a script in the place of
    Chromium. What is left over would lie in `folder/tmp`."""
    for name in ("bin", "tmp"):
        (folder / name).mkdir()
    path = os.environ["PATH"]
    if browser:
        script = folder / "bin" / exporting.BROWSERS[0]
        script.write_text(f"#!/bin/sh\necho $$ > {folder / 'pid'}\n{browser}\n")
        script.chmod(0o755)
        path = f"{script.parent}:{path}"
    return subprocess.Popen(
        [sys.executable, "-c", ASKED, str(seconds), str(folder / "figures"), *figures],
        env=os.environ | {"PATH": path, "TMPDIR": str(folder / "tmp")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_signals,
    )


def until(what: Callable[[], Any]) -> Any:
    """What is found, as soon as it is there."""
    for _ in range(1_200):
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not come in a minute")


def gone(number: int) -> bool:
    """Whether a process has ended, though perhaps nobody has asked how."""
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def browser_of(command: subprocess.Popen[str]) -> list[psutil.Process]:
    """What draws for a command: not the command, nor the program that drives the browser."""
    drivers = psutil.Process(command.pid).children()
    return [one for driver in drivers for one in driver.children(recursive=True)]


def check_costs_only_pictures(folder: Path, out: str, error: str, *figures: str) -> None:
    """The numbers are there; one line says that there are no pictures, and what to do; nothing is
    left over."""
    names = sorted(f"{name}.{ending}" for name in figures for ending in ("csv", "json"))
    assert out.split() == names
    assert sorted(path.name for path in (folder / "figures").iterdir()) == names
    (line,) = error.splitlines()
    assert line.startswith("no PNG or SVG: the browser failed (")
    assert line.endswith(" starts, then draw again")
    assert list((folder / "tmp").iterdir()) == []


@pytest.mark.parametrize("browser", ["exec sleep 600", "exit 3"])
def test_a_browser_that_never_answers_is_ended_and_costs_only_the_pictures(
    browser: str, tmp_path: Path
) -> None:
    """What drives it would wait for it without end."""
    pytest.importorskip("kaleido")
    command = asked(tmp_path, 12, "a", "b", browser=browser)
    out, error = command.communicate(timeout=120)
    assert command.returncode == 0
    check_costs_only_pictures(tmp_path, out, error, "a", "b")
    until(lambda: gone(int((tmp_path / "pid").read_text())))


def test_ctrl_c_ends_the_browser_too(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    command = asked(tmp_path, 600, "a", browser="exec sleep 600")
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip())
    command.send_signal(signal.SIGINT)
    _, error = command.communicate(timeout=60)
    assert command.returncode == 130
    assert error.strip().startswith("interp: interrupted.")
    until(lambda: gone(int((tmp_path / "pid").read_text())))
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == ["a.csv", "a.json"]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.skipif(NO_BROWSER, reason="no Chromium or Chrome on PATH")
@pytest.mark.parametrize("what", ["kill", "suspend"])
@pytest.mark.parametrize("after", [0.0, 3.0])
def test_a_browser_that_dies_or_stops_costs_only_the_pictures(
    after: float, what: str, tmp_path: Path
) -> None:
    """While it starts, or while it draws; where it stops, nothing of it stays."""
    pytest.importorskip("kaleido")
    names = [str(number) for number in range(200)]
    command = asked(tmp_path, 12, *names)
    until(lambda: browser_of(command))
    time.sleep(after)
    processes = browser_of(command)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            getattr(process, what)()
    out, error = command.communicate(timeout=240)
    assert command.returncode == 0
    check_costs_only_pictures(tmp_path, out, error, *names)
    until(lambda: all(gone(process.pid) for process in processes))


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
