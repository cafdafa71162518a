"""What a terminal sees beside results: help of groups, suggestions, completion, the doctor."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import on_a_terminal

from interp import cli
from interp.cli import COMMANDS
from interp.cli.completion import script
from interp.cli.progress import counting


def test_a_group_of_commands_has_a_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["match", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "interp match distil" in shown
    assert "interp match invert" in shown
    assert "interp diverge" not in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["diverge", "--modle", "m"], "no flag --modle; did you mean --model?"),
        (["diverg"], "no command 'diverg'; did you mean diverge?"),
        (["match", "distill"], "did you mean match distil?"),
        (["experiment", "goldn_zone"], "did you mean golden_zone?"),
        (["diverge", "--model", "m"], "missing: --queries, --out"),
        (["report"], "missing: RUN"),
        (["head", "run"], "missing: HEAD"),
        (["demo", "--seed", "x"], "--seed: invalid literal"),
        (["diverge", "--out", "caf\udce9"], "is not UTF-8"),
    ],
)
def test_a_slip_is_one_line_with_a_suggestion(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("interp: ")
    assert error.count("\n") == 1
    assert said in error


def test_a_pipe_that_closes_early_is_no_traceback() -> None:
    code = "import sys; from interp.cli import main; sys.exit(main(['diverge', '--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_what_is_missing_or_taken_is_told_before_the_heavy_imports(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"text": "hot is"}\n')
    (tmp_path / "p.txt").write_text("a prompt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.json").write_text("{}")
    files = {"queries": "q.jsonl", "prompt-file": "p.txt", "out": "new", "model": "/nowhere/model"}
    faults = {
        "none.jsonl: No such file": {"queries": "none.jsonl"},
        "prompt file": {"prompt-file": "none.txt"},
        "no model '/nowhere/model': no such folder": {},
        "run holds a finished run": {"out": "run", "model": "org/name"},
    }
    code = """
import json, sys
from interp.cli import main
for words in json.loads(sys.argv[1]):
    assert main(["diverge", *words]) == 2
    assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    asked = [
        [w for name, value in (files | changed).items() for w in (f"--{name}", value)]
        for changed in faults.values()
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said, line in zip(faults, done.stderr.splitlines(), strict=True):
        assert said in line


def test_a_run_that_is_not_there_is_told_before_the_heavy_imports(tmp_path: Path) -> None:
    names = ["patch", "weights", "subspace", "edges", "read", "ladder", "head", "report"]
    code = f"""
import sys
from interp.cli import main
for name in {names}:
    assert main([name, "nowhere", *(["L0H0"] if name == "head" else [])]) == 2
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == [done.stderr.splitlines()[0]] * len(names)
    assert "nowhere is not a run" in done.stderr


@pytest.mark.parametrize("words", [("--help",), ("experiment", "--help")])
def test_lists_are_as_wide_as_the_terminal(words: tuple[str, ...]) -> None:
    longest = {}
    for width in (50, 120):
        lines = on_a_terminal(width, *words)
        longest[width] = max(map(len, lines))
        assert longest[width] <= width
    assert longest[120] > 80


def test_elsewhere_lines_have_80_columns() -> None:
    env = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    said = subprocess.run(
        [sys.executable, "-m", "interp", "--help"], capture_output=True, text=True, env=env
    )
    assert 70 < max(map(len, said.stdout.splitlines())) <= 80


COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_interp
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    file = tmp_path_factory.mktemp("shell") / "interp.bash"
    file.write_text(script("bash"))
    return file


@pytest.mark.parametrize(
    ("words", "there"),
    [
        (["interp", ""], {name.split()[0] for name in COMMANDS}),
        (["interp", "div"], {"diverge"}),
        (["interp", "diverge", "--bat"], {"--batch-size"}),
        (["interp", "match", ""], {"distil", "invert"}),
        (["interp", "match", "invert", "--ki"], {"--kind"}),
        (["interp", "experiment", "gold"], {"golden_zone"}),
    ],
)
def test_bash_completes_commands_and_flags(bash: Path, words: list[str], there: set[str]) -> None:
    done = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", str(bash), *words], capture_output=True, text=True
    )
    assert done.stderr == ""
    assert there <= set(done.stdout.split())


def test_other_shells_have_a_script_too() -> None:
    assert script("zsh").startswith("autoload -U +X bashcompinit")
    assert "-l batch-size" in script("fish")


def test_the_doctor_fits_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    for what in ("interp", "libraries", "device", "browser", "hub", "cache"):
        assert any(line.startswith(what) for line in lines)
    assert any("torch 2" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_progress_begins_anew_where_the_same_is_done_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with counting() as counter:
        for total in (2, 3):  # a model that is opened twice
            for _ in range(total):
                counter.add("plain runs", 1, total)
    said = [line.split(" (")[0] for line in capsys.readouterr().err.splitlines()]
    assert said == ["plain runs: 1/2", "plain runs: 2/2", "plain runs: 3/3"]
    assert counter.done == {"plain runs": 3}
