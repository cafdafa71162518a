"""`interp edges` on a small finished run: its rows, its files, going on, what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import check_flags
from rich.console import Console

from interp import plots
from interp.edges import run as running
from interp.edges.run import trace_edges
from interp.edges.settings import EdgeTracing
from interp.errors import ConfigError
from interp.plots.tidy import tidy
from interp.report import edge_table, write
from interp.runs.edges import ESTIMATED, PATCHED
from interp.runs.files import EDGES, read_manifest
from interp.runs.view import NotMeasured, load_run

QUICK: dict[str, Any] = {"top": 20, "exact": 3, "bootstrap": 25, "permutations": 19}
NAMES = ("prompt", "lora", "neutral")


@pytest.fixture(scope="module")
def traced(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("traced") / "RUN"))
    return trace_edges(EdgeTracing(run=folder, **QUICK))


def test_every_move_has_its_rows_and_findings(traced: Path) -> None:
    of = load_run(traced).edges
    assert (of.pair, of.conditions) == (("prompt", "lora"), [*NAMES])
    for name in NAMES:
        for by in ("won", "lost"):
            move = of.move(name, by)
            frame = of.strongest(move)
            assert frame["exact"].notna().sum() == 3
            assert list(frame["estimate"].abs()) == sorted(frame["estimate"].abs(), reverse=True)
            flow = of.flow(move)
            assert np.isnan(flow[0, 2:]).all()  # block 0 reads what enters it, and its own heads
            assert of.rows(ESTIMATED, move)["n"].eq(6).all()
    pairs = {(e["condition"], e["reference"]) for e in of.found["overlap"] if e["by"] == "won"}
    assert pairs == {("prompt", "lora"), ("prompt", "neutral"), ("lora", "neutral")}
    assert [e["edges"] for e in of.found["agreement"]] == [3] * 6
    assert of.found["verdict"][0].startswith("The strongest edges into base: ")


def test_it_goes_on_where_it_was_broken_off(
    traced: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "RUN"))

    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(running, "patch_edges", broken)
        with pytest.raises(KeyboardInterrupt):
            trace_edges(EdgeTracing(run=folder, **QUICK))
    assert "edges" not in read_manifest(folder)
    with monkeypatch.context() as patched:
        patched.setattr(running, "trace", broken)  # which is done
        trace_edges(EdgeTracing(run=folder, **QUICK, resume=True))
    tables = [pd.read_parquet(path / EDGES) for path in (folder, traced)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert read_manifest(folder)["edges"] == read_manifest(traced)["edges"]


def test_figure_report_and_terminal_show_them(traced: Path) -> None:
    run = load_run(traced)
    drawn = tidy(plots.edges(run))
    exact = drawn[drawn["exact"].notna()]
    assert len(exact) == 3 * len(NAMES) * 2
    table = run.edges.rows(PATCHED, ("lora", "base")).set_index("site")["value"]
    own = exact[exact["series"] == "lora → base"].set_index("edge")["exact"]
    np.testing.assert_allclose(own, table[own.index], rtol=1e-5)
    text = write(traced).read_text()
    assert 'id="edges"' in text
    assert "whose output into whose input" in text
    console = Console(width=80)
    with console.capture() as shown:
        console.print(edge_table(run))
    assert "Of the 20 strongest edges put into base's run" in shown.get()
    assert max(map(len, shown.get().splitlines())) <= 80


def test_a_run_without_any_has_no_figure(finished: Path) -> None:
    with pytest.raises(NotMeasured, match="interp edges"):
        plots.edges(load_run(finished))


def test_the_control_must_be_another_condition(traced: Path) -> None:
    for name in ("lora", "nobody"):
        with pytest.raises(ConfigError, match=f"--control {name}: .* has neutral beside the pair"):
            trace_edges(EdgeTracing(run=traced, **QUICK, control=name))


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    check_flags(["edges"], set(EdgeTracing.model_fields) - {"run"}, capsys)
