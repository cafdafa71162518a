"""`interp patch`: a quick help, one line per fault of the input, a way on after Ctrl-C."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from command_line import check_flags, failed
from manifests import run_manifest

from interp import cli
from interp.config import Experiment, bundled_families
from interp.errors import InterpError
from interp.patching.settings import Patching
from interp.runs.files import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the bundled model, as far as it is read before anything is computed."""
    path = tmp_path_factory.mktemp("run")
    return _written(path, ("instruction_0", "lora_0"))


def _written(path: Path, headline: tuple[str, str] | None, **without: Any) -> Path:
    experiment = Experiment(**{**bundled_families(path), **without})
    manifest = run_manifest(
        {name: {} for name in experiment.build()},
        headline,
        config=experiment.model_dump(mode="json"),
        hashes={},
    )
    write_run(path, [], {}, manifest)
    return path


# Help -------------------------------------------------------------------------------------------


def test_every_setting_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    check_flags(["patch"], set(Patching.model_fields) - {"run"}, capsys)


# Faults of the input ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--limit", "8"],
        ["run", "--limt", "8"],
        ["run", "more"],
        ["run", "--limit", "few"],
        ["run", "--sites", "resid"],
        ["run", "--pattern", "column"],
    ],
)
def test_a_bad_flag_is_one_line_that_says_what_or_where_help_is(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    error = failed(["patch", *words], capsys)
    assert "`interp patch --help`" in error or error.startswith("interp: no flag --limt")


@pytest.mark.parametrize("flag", [["--limit", "1"], ["--positions", "-1"], ["--memory", "0"]])
def test_a_value_out_of_bounds_is_one_line(
    flag: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert flag[0].removeprefix("--") in failed(["patch", "run", *flag], capsys)


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a run: it has no manifest.json" in failed(["patch", str(tmp_path)], capsys)
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere} is not a run" in failed(["patch", str(nowhere)], capsys)
    assert not nowhere.exists()


@pytest.mark.parametrize("role", ["condition", "reference"])
def test_a_condition_that_is_not_there_is_named_with_those_that_are(
    role: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failed(["patch", str(run), f"--{role}", "lora_9"], capsys)
    assert "no condition 'lora_9' to patch" in line
    assert "instruction_0" in line
    assert "lora_4" in line


def test_both_conditions_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = failed(["patch", str(run), "--condition", "lora_0"], capsys)
    assert "--condition and --reference are both lora_0" in line


def test_a_run_that_compares_with_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _written(tmp_path, ("lora_0", "base"))
    line = failed(["patch", str(path)], capsys)
    assert "two conditions beside base: name --reference; it has instruction_0, " in line


def test_a_run_without_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = _written(tmp_path, None, adapter=())
    line = failed(["patch", str(path), "--condition", "instruction_0"], capsys)
    assert "has no headline: name --reference; it has instruction_0, " in line


def test_a_failed_attempt_leaves_the_run_as_it_was(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in run.glob("*.*") if file.is_file()}
    failed(["patch", str(run), "--reference", "lora_9"], capsys)
    assert {file: file.read_bytes() for file in run.glob("*.*") if file.is_file()} == before


# Ctrl-C -----------------------------------------------------------------------------------------


def test_the_folder_stands_anywhere_and_ctrl_c_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Patching] = []

    def interrupted(settings: Patching, *_: Any) -> None:
        seen.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("interp.patching.run.patch", interrupted)
    monkeypatch.setattr("interp.cli.early.read_manifest", lambda run: {})
    for words in (["it's a run", "--limit", "8"], ["--limit", "8", "it's a run"]):
        assert cli.main(["patch", *words]) == 130
        resumed = shlex.split(capsys.readouterr().err.split("Go on with: ")[1])
        assert resumed[:2] == ["interp", "patch"]
        assert cli.main(resumed[1:]) == 130
        capsys.readouterr()
    assert seen[0] == seen[2] == Patching(run=Path("it's a run"), limit=8)
    assert seen[1] == seen[3] == seen[0].model_copy(update={"resume": True})


def test_an_error_while_patching_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> None:
        raise InterpError("what, where, what to do")

    monkeypatch.setattr("interp.patching.run.patch", refused)
    monkeypatch.setattr("interp.cli.early.read_manifest", lambda run: {})
    assert failed(["patch", "run"], capsys) == "interp: what, where, what to do"
