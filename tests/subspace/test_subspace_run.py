"""`interp subspace` on a small finished run: its rows, its files, going on, what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from command_line import check_flags
from rich.console import Console

from interp import plots
from interp.errors import ConfigError, RunError
from interp.plots.tidy import tidy
from interp.report import subspaces_table, write
from interp.runs.files import SUBSPACES, read_manifest
from interp.runs.subspaces import CROSSED, LEARNED, SUBSPACE_KINDS
from interp.runs.view import NotMeasured, load_run
from interp.subspace import run as running
from interp.subspace.run import find_subspaces
from interp.subspace.settings import Subspaces

QUICK: dict[str, Any] = {"layers": (1,), "dimensions": (1, 3), "steps": 3, "bootstrap": 25}
MOVES = [("prompt", "base"), ("lora", "base"), ("prompt", "lora"), ("lora", "prompt")]


@pytest.fixture(scope="module")
def found(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("found") / "RUN"))
    return find_subspaces(Subspaces(run=folder, **QUICK))


def test_every_move_has_its_rows(found: Path) -> None:
    of = load_run(found).subspaces
    assert of.moves == MOVES  # the two do not say the same
    for move in MOVES:
        for queries, n in (("matched", 3), ("heldout", 3)):
            for kind in SUBSPACE_KINDS:
                curve = of.curve(kind, move, 1, queries)
                there = kind != CROSSED or move[1] == "base"  # another condition, the same target
                assert list(curve["dimension"]) == ([1, 3] if there else [])
                assert set(curve["n"]) <= {n}
            assert len(of.whole(move, 1, queries)) == len(of.size(move, 1, queries)) == 1
            assert of.size(move, 1, queries)["value"].iloc[0] in (0, 1, 3, 32)


def test_it_is_deterministic_and_goes_on(
    found: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Broken off while the second basis is learned; the first is not learned again."""
    folder = Path(shutil.copytree(finished, tmp_path / "RUN"))
    learned: list[int] = []
    learn = running.learn_basis

    def counting(*given: Any) -> Any:
        learned.append(1)
        if len(learned) == 2:
            raise KeyboardInterrupt
        return learn(*given)

    monkeypatch.setattr(running, "learn_basis", counting)
    with pytest.raises(KeyboardInterrupt):
        find_subspaces(Subspaces(run=folder, **QUICK))
    assert "subspaces" not in read_manifest(folder)
    with pytest.raises(RunError, match="other settings"):
        find_subspaces(Subspaces(run=folder, **QUICK | {"margin": 0.2}, resume=True))
    find_subspaces(Subspaces(run=folder, **QUICK, resume=True))
    assert len(learned) == 1 + 2 * len(MOVES) * len(QUICK["dimensions"])
    tables = [pd.read_parquet(path / SUBSPACES) for path in (folder, found)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert read_manifest(folder)["subspaces"] == read_manifest(found)["subspaces"]


def test_figure_report_and_terminal_show_them(found: Path) -> None:
    run = load_run(found)
    drawn = tidy(plots.subspaces(run))
    lines = drawn[drawn["measure"] == "subspace_recovery"]
    assert len(lines) == len(MOVES) * 2
    both = lines.merge(
        run.subspaces.curve(LEARNED, MOVES[0], 1), on=["condition", "reference", "dimension"]
    )
    assert (both["value_x"] - both["value_y"]).abs().max() < 1e-6
    text = write(found).read_text()
    assert 'id="subspaces"' in text
    assert "the other condition" in text
    console = Console(width=80, record=True, file=None)
    with console.capture() as shown:
        console.print(subspaces_table(run))
    assert "prompt into base, layer 1:" in shown.get()
    assert max(map(len, shown.get().splitlines())) <= 80


def test_a_run_without_any_has_no_figure(finished: Path) -> None:
    with pytest.raises(NotMeasured, match="interp subspace"):
        plots.subspaces(load_run(finished))


def test_nothing_is_recovered_between_conditions_that_say_the_same(
    finished: Path, tmp_path: Path
) -> None:
    """With a tolerance that everything is within, the run has a note for every pair, and no row."""
    folder = Path(shutil.copytree(finished, tmp_path / "RUN"))
    find_subspaces(Subspaces(run=folder, **QUICK, tolerance=1e3))
    said = read_manifest(folder)["subspaces"]
    assert said["moves"] == said["verdict"] == []
    assert len(said["notes"]) == 3
    assert pd.read_parquet(folder / SUBSPACES).empty
    with pytest.raises(NotMeasured):
        plots.subspaces(load_run(folder))
    assert write(folder).exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dimensions": (32,)}, "proper subspaces of 1 to 31 dimensions"),
        ({"dimensions": ()}, "name at least one"),
        ({"layers": (3,)}, "the model has layers 0 to 2"),
        ({"condition": "lora", "reference": "lora"}, "needs two"),
    ],
)
def test_what_is_refused(found: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find_subspaces(Subspaces(run=found, **QUICK | changed))


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    check_flags(["subspace"], set(Subspaces.model_fields) - {"run"}, capsys)
