"""`interp read`: a quick help, settings as flags, one line per fault, a way on after Ctrl-C."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from command_line import check_flags, failed

from interp import cli
from interp.errors import InterpError
from interp.reading.settings import DifferenceReading


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    check_flags(["read"], set(DifferenceReading.model_fields) - {"run"}, capsys)


@pytest.mark.parametrize("flag", [["--top", "0"], ["--limit", "1"], ["--every", "0"]])
def test_a_value_out_of_bounds_is_one_line(
    flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert flag[0].removeprefix("--") in failed(["read", "run", *flag], capsys)


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a run: it has no manifest.json" in failed(["read", str(tmp_path)], capsys)


def test_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[DifferenceReading] = []

    def interrupted(settings: DifferenceReading, *_: Any) -> None:
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.reading.run.read_run", interrupted)
    monkeypatch.setattr("interp.cli.early.read_manifest", lambda run: {})
    assert cli.main(["read", "it's a run", "--top", "5"]) == 130
    resumed = shlex.split(capsys.readouterr().err.split("Go on with: ")[1])
    assert cli.main(resumed[1:]) == 130
    assert seen[0] == DifferenceReading(run=Path("it's a run"), top=5)
    assert seen[1] == seen[0].model_copy(update={"resume": True})


def test_an_error_while_reading_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> None:
        raise InterpError("what, where, what to do")

    monkeypatch.setattr("interp.reading.run.read_run", refused)
    monkeypatch.setattr("interp.cli.early.read_manifest", lambda run: {})
    assert failed(["read", "run"], capsys) == "interp: what, where, what to do"
