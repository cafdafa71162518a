"""The command line: instant help, exit codes, and errors that are one line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import interp
from interp import cli
from interp.cli import COMMANDS, commands, resume_hint
from interp.config import FILE_ONLY, Experiment
from interp.errors import ConfigError, InterpError, QueryError

HEAVY = ("torch", "transformers", "transformer_lens", "peft", "pandas", "plotly", "scipy")


def answered(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a child."""
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60
    )


MAIN = "import sys; from interp.cli import main; sys.exit(main())"
MAIN_AND_MODULES = """
import sys
from interp.cli import main
try:
    main()
finally:
    print("MODULES", *sorted(sys.modules))
"""
HELPS = """
import contextlib, io, json, sys
from interp.cli import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        try:
            code = main(words)
        except SystemExit as left:
            code = left.code
    assert not code, words
    assert said.getvalue().strip(), words
    assert not set(sys.argv[2:]) & set(sys.modules), words
    print(*words, file=sys.stderr)
"""


# Help -------------------------------------------------------------------------------------------


def test_no_help_imports_anything_heavy() -> None:
    """That of every command, asked in one child. What a help costs is measured in benchmarks/."""
    asked = [[], ["--help"], ["--version"], ["experiment"]]
    asked += [[*name.split(), "--help"] for name in COMMANDS]
    asked += [["experiment", name, "--help"] for name in ("all", "claims")]
    done = answered(HELPS, json.dumps(asked), *HEAVY)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [" ".join(words) for words in asked]


def test_a_fault_of_the_flags_imports_nothing_heavy() -> None:
    done = answered(MAIN_AND_MODULES, "diverge", "none.yaml")
    assert not set(HEAVY) & set(done.stdout.split("MODULES")[1].split())
    assert done.stderr.startswith("interp: none.yaml: No such file")


@pytest.mark.parametrize("words", [(), ("-h",), ("--help",), ("help",)])
def test_the_top_help_lists_every_command(
    words: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    out, error = capsys.readouterr()
    flat = " ".join(out.split())
    assert all(f"interp {name} {what}" in flat for name, what in COMMANDS.items())
    assert error == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([*name.split(), "--help"])
    assert left.value.code == 0
    assert f"interp {name}" in capsys.readouterr().out


def test_flags_are_those_of_the_settings(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["diverge", "--help"])
    shown = capsys.readouterr().out
    for field in set(Experiment.model_fields) - FILE_ONLY:
        assert f"--{field.replace('_', '-')}" in shown


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"interp {interp.__version__}\n"


def test_the_command_is_a_module_too() -> None:
    words = [sys.executable, "-m", "interp", "--version"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == f"interp {interp.__version__}\n"


# Errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["divergee"], ["match"], ["match", "revert"], ["--seed", "1"]])
def test_an_unknown_command_is_one_line_that_lists_the_known(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("interp: no command")
    assert error.count("\n") == 1
    assert all(name in error for name in COMMANDS)


def test_the_old_name_of_a_command_says_the_new_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["probe", "RUN", "L5H3"]) == 2
    assert "interp head RUN L5H3" in capsys.readouterr().err


REQUIRED = ["--model", "m", "--queries", "q.jsonl", "--out", "run", "--adapter", "a"]


@pytest.mark.parametrize(
    "words",
    [
        ["diverge", *REQUIRED, "--sead", "1"],
        ["diverge", *REQUIRED, "--seed", "many"],
        ["diverge", *REQUIRED, "--dtype", "float8"],
        ["diverge", "--model", "m"],
        ["head", "run"],
        ["report"],
        ["match", "distil"],
        ["demo", "--no-such-flag"],
    ],
)
def test_a_bad_flag_exits_2_and_says_what(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_run", None)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("interp: ")
    assert error.count("\n") == 1
    assert "--help" in error or "no flag" in error


def test_a_missing_query_file_is_one_line_on_stderr(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["--model", "m", "--adapter", "a", "--queries", str(tmp_path / "q.jsonl")]
    done = answered(MAIN, "diverge", *words, "--out", str(out))
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("interp: ")
    assert "q.jsonl: No such file" in last
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("interp: ") for line in done.stderr.splitlines()) == 1
    assert not out.exists()


def test_an_empty_query_file_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "q.jsonl").write_text("")
    words = ["--model", "m", "--adapter", "a", "--queries", str(tmp_path / "q.jsonl")]
    assert cli.main(["diverge", *words, "--out", str(tmp_path / "run")]) == 2
    assert "has no queries" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["report"], ["head"]])
def test_a_folder_that_is_no_run_exits_2(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = ["L0H0"] if command == ["head"] else []
    assert cli.main([*command, str(tmp_path), *rest]) == 2
    error = capsys.readouterr().err
    assert "is not a run" in error
    assert error.count("\n") == 1


def failing(error: BaseException) -> Any:
    def command(_: Sequence[str]) -> None:
        raise error

    return command


def test_every_error_of_the_input_is_one_line_and_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = InterpError.__subclasses__()
    assert len(kinds) >= 5
    for kind in [InterpError, *kinds]:
        monkeypatch.setattr(commands, "diverge_command", failing(kind("what, where, what to do")))
        assert cli.main(["diverge"]) == 2
        assert capsys.readouterr().err == "interp: what, where, what to do\n"


@pytest.mark.parametrize("words", [["--debug", "diverge"], ["diverge", "--debug"]])
def test_debug_raises(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "diverge_command", failing(QueryError("bad line")))
    with pytest.raises(QueryError, match="bad line"):
        cli.main(words)


def test_debug_shows_the_traceback_of_an_unknown_command() -> None:
    with pytest.raises(ConfigError):
        cli.main(["--debug", "divergee"])


def test_a_fault_of_the_program_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "diverge_command", failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["diverge"])


# Ctrl-C -----------------------------------------------------------------------------------------


def test_ctrl_c_exits_130_with_the_command_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "diverge_command", failing(KeyboardInterrupt()))
    assert cli.main(["diverge", "a b.yaml", "--out", "it's", "--overwrite"]) == 130
    error = capsys.readouterr().err
    command = shlex.split(error.split("Go on with: ")[1])
    assert command[:2] == ["interp", "diverge"]
    assert command[2:5] == ["a b.yaml", "--out", "it's"]
    assert command[-1] == "--resume"
    assert "Traceback" not in error


def test_the_resume_command_is_read_as_resuming(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Experiment] = []
    monkeypatch.setattr(commands, "_run", seen.append)
    words = ["diverge", *REQUIRED, "--seed", "3"]
    command = shlex.split(resume_hint(words).split("Go on with: ")[1])
    assert cli.main(command[1:]) == 0
    assert cli.main(words) == 0
    assert seen[0] == seen[1].model_copy(update={"resume": True})


def test_resuming_twice_says_so_once() -> None:
    assert resume_hint(["diverge", "--resume", "--out", "run"]).count("--resume") == 1


@pytest.mark.parametrize("command", ["report", "head", "demo", "match"])
def test_other_commands_have_nothing_to_resume(command: str) -> None:
    assert "--resume" not in resume_hint([command])


# The package ------------------------------------------------------------------------------------


def test_importing_the_package_costs_nothing_and_every_name_is_there() -> None:
    code = "import interp, json, sys; print(json.dumps([sorted(sys.modules), dir(interp)]))"
    done = answered(code)
    modules, names = json.loads(done.stdout)
    assert not {*HEAVY, "numpy", "pydantic"} & set(modules)
    assert all(getattr(interp, name) is not None for name in names)
    assert {"load", "diverge", "load_run", "plots", "__version__"} <= set(names)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'divergee'"):
        _ = interp.divergee
