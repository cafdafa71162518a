"""What an experiment leaves, and when its work is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report.synthetic_findings import FINDINGS, table

from interp.finding import read_finding
from interp.matching.settings import Emulation, bundled_emulation
from interp.plots import Curves, curves, exporting
from interp.report.experiments import conclude, finished


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_browser", lambda: None)


def config(out: Path, **changed: Any) -> Emulation:
    return Emulation(**bundled_emulation(out) | changed)


def leave(settings: Emulation) -> None:
    figure = curves(table(), Curves("Strength", "tokens", "strength"), "caption")
    conclude(settings, FINDINGS[0], table(), {"strength": figure})


def test_finding_table_and_figure_are_left_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(config(tmp_path))
    found = read_finding(tmp_path)
    assert found.contrast == FINDINGS[0].contrast
    assert found.settings["seed"] == 0
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), table(), rtol=1e-6)
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == [
        "strength.csv",
        "strength.json",
    ]
    said = capsys.readouterr().out
    assert f"NOT SUPPORTED here: {found.number}.\n{found.sentence}" in said


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({}, True),
        ({"device": "cuda", "batch_size": 3, "overwrite": False}, True),
        ({"seed": 1}, False),
        ({"dtype": "bfloat16"}, False),
        ({"limit": 5}, False),
        ({"floor": ()}, False),
    ],
)
def test_the_same_settings_are_not_run_again_and_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, Any], same: bool
) -> None:
    leave(config(tmp_path))
    capsys.readouterr()
    assert finished(config(tmp_path, resume=True, **changed)) is same
    assert ("is finished. NOT SUPPORTED here: " in capsys.readouterr().out) is same


def test_without_resume_all_is_run_again(tmp_path: Path) -> None:
    leave(config(tmp_path))
    assert not finished(config(tmp_path))


def test_nothing_damaged_or_older_counts_as_finished(tmp_path: Path) -> None:
    wanted = config(tmp_path, resume=True)
    assert not finished(wanted)
    leave(wanted)
    file = tmp_path / "finding.json"
    kept = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({k: v for k, v in kept.items() if k != "settings"}))
    assert not finished(wanted)
    file.write_text("{")
    assert not finished(wanted)
