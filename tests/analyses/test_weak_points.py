"""All experiments in one go: order, flags, resumption, a failure, an interruption.

The experiments are tiny scripts in a folder of their own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from report import synthetic_findings as synthetic

from interp import organism
from interp.cli import guarded
from interp.cli.child import run_child
from interp.cli.flags import as_flags, read_flags
from interp.matching.settings import Emulation, bundled_emulation
from interp.plots import exporting

SCRIPT = Path(__file__).resolve().parents[2] / "analyses" / "weak_points.py"
STUB = """
import pathlib, shutil, sys, time
name, here = pathlib.Path(__file__).stem, pathlib.Path(__file__).parent
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
if "--resume" in sys.argv and (out / "finding.json").exists():
    sys.exit(0)
with (here / "ran.txt").open("a") as ran:
    print(name, *sys.argv[1:], file=ran)
print("half done", file=sys.stderr, flush=True)
if (here / f"{name}.fails").exists():
    sys.exit(here.joinpath(f"{name}.fails").read_text())
if (here / f"{name}.hangs").exists():
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(130)
shutil.copytree(here / "found" / name, out, dirs_exist_ok=True)
"""
NAMES = ("generalisation", "context_distortion", "golden_zone")


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder of scripts that copy a finding made up before."""
    folder = tmp_path / "stubs"
    synthetic.write(folder / "found", [f for f in synthetic.FINDINGS if f.name in NAMES])
    for name in NAMES:
        (folder / f"{name}.py").write_text(STUB)
    return folder


_SPEC = importlib.util.spec_from_file_location("weak_points", SCRIPT)
assert _SPEC
assert _SPEC.loader
weak_points = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = weak_points
_SPEC.loader.exec_module(weak_points)


class Done(NamedTuple):
    """What a run left on the terminal."""

    code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(
    stubs: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run in the folder beside the stubs; no browser, so no pictures."""
    monkeypatch.chdir(stubs.parent)
    monkeypatch.setattr(exporting, "find_browser", lambda: None)
    fields = bundled_emulation(weak_points.OUT)

    def once(*words: str, only: Sequence[str] = NAMES) -> Done:
        every = ["--scripts", str(stubs), "--only", *only, *words]
        config = read_flags(weak_points.Config, every, "weak_points.py", fields)
        code = guarded(lambda: weak_points.main(config))
        return Done(code, *capfd.readouterr())

    return once


def start(stubs: Path, *words: str) -> subprocess.Popen[str]:
    """The same as a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), "--scripts", str(stubs), "--only", *NAMES, *words],
        cwd=stubs.parent,
        env={**os.environ, "PATH": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ran(stubs: Path) -> list[list[str]]:
    """The words of every stub that did its work, in order."""
    return [line.split() for line in (stubs / "ran.txt").read_text().splitlines()]


def test_all_run_in_order_with_progress_flags_and_one_report(
    stubs: Path, run: Callable[..., Done]
) -> None:
    (stubs.parent / "p.txt").write_text("opposite :")
    code, stdout, stderr = run("--seed", "3", "--adapter", "None", "--prompt-file", "p.txt")
    assert code == 0, stderr
    assert [words[0] for words in ran(stubs)] == list(NAMES)
    passed = "--adapter None --prompt-file p.txt --seed 3 --out"
    for name, words in zip(NAMES, ran(stubs), strict=True):
        assert " ".join(words[1:]) == f"{passed} runs/weak_points/{name}"
    for place, name in enumerate(NAMES, 1):
        assert f"[{place}/3] {name} (" in stderr
    assert stderr.count("  half done\n") == 3
    assert stdout.splitlines()[-1] == "report: runs/weak_points/report.html"
    assert "1 Generalisation: weak point supported" in stdout
    report = (stubs.parent / "runs/weak_points/report.html").read_text(encoding="utf-8")
    assert all(f'<h2 id="{name}">' in report for name in NAMES)


def test_a_failing_one_is_a_line_and_the_others_go_on(
    stubs: Path, run: Callable[..., Done]
) -> None:
    (stubs / "generalisation.fails").write_text("interp: no queries; give --queries")
    (stubs / "golden_zone.fails").write_text("Traceback (most recent call last):\n  a\nKeyError: 1")
    code, _, stderr = run()
    assert code == 2
    assert "generalisation: FAILED: no queries; give --queries, " in stderr
    assert "golden_zone: FAILED: KeyError: 1, " in stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == (
        "interp: 2 of 3 experiments failed (generalisation, golden_zone); what they said is in "
        "runs/weak_points/NAME/output.txt"
    )
    out = stubs.parent / "runs" / "weak_points"
    assert "Traceback" in (out / "golden_zone" / "output.txt").read_text()
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "generalisation failed: no queries; give --queries" in report
    assert '<h2 id="context_distortion">' in report
    assert '<h2 id="generalisation">' not in report
    (stubs / "generalisation.fails").unlink()
    (stubs / "golden_zone.fails").unlink()
    code, _, stderr = run("--resume")
    assert code == 0, stderr
    again = ["generalisation", "golden_zone"]
    assert [words[0] for words in ran(stubs)] == [*NAMES, *again]
    assert ran(stubs)[-1][1] == "--resume"


def test_an_interruption_ends_the_child_and_says_how_to_go_on(
    stubs: Path, run: Callable[..., Done]
) -> None:
    (stubs / "context_distortion.hangs").touch()
    with start(stubs, "--limit", "5") as process:
        assert process.stderr
        seen = ""
        while seen.count("half done") < 2:
            seen += process.stderr.readline()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)  # to us alone: the child must be told
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "report" not in stdout
    hint = stderr.splitlines()[-1]
    assert hint.startswith("interp: interrupted. Go on with: python ")
    assert hint.endswith("--limit 5 --resume")
    (stubs / "context_distortion.hangs").unlink()
    code, _, stderr = run("--limit", "5", "--resume")
    assert code == 0, stderr
    names = [words[0] for words in ran(stubs)]
    assert names == ["generalisation", "context_distortion", "context_distortion", "golden_zone"]


def test_only_some_keeps_findings_of_the_same_target_alone(
    stubs: Path, run: Callable[..., Done]
) -> None:
    first = sorted(organism.ADAPTERS.iterdir())[0]
    same = {"model": str(organism.MODEL), "adapter": str(first), "fine_tuned": None}
    for name, settings in (("golden_zone", same), ("context_distortion", {"model": "other"})):
        folder = stubs.parent / "runs" / "weak_points"
        synthetic.write(folder, [f for f in synthetic.FINDINGS if f.name == name])
        file = folder / name / "finding.json"
        kept = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(kept | {"settings": {**settings, "prompt_file": None}}))
    code, stdout, stderr = run(only=("generalisation",))
    assert code == 0, stderr
    assert "Golden zone" in stdout
    assert "Context distortion" not in stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "nothing"], "no experiment 'nothing'; there are generalisation,"),
        (["--queries", "nothing.jsonl"], "nothing.jsonl: "),
        (["--adapter", "None"], "give exactly one of --adapter"),
    ],
)
def test_what_would_fail_everywhere_is_one_line_at_once(
    stubs: Path, run: Callable[..., Done], words: list[str], message: str
) -> None:
    code, _, stderr = run(*words)
    assert code == 2
    assert stderr.startswith(f"interp: {message}")
    assert stderr.count("\n") == 1
    assert not (stubs / "ran.txt").exists()


def test_flags_make_the_same_settings_again(tmp_path: Path) -> None:
    fields = bundled_emulation(tmp_path)
    changed = {
        "adapter": None,
        "fine_tuned": "other",
        "floor": (),
        "limit": 3,
        "template": "{query} = {answer} - ",
        "overwrite": False,
        "trust_remote_code": True,
    }
    settings = Emulation(**fields | changed)
    words = as_flags(settings, Emulation(**fields))
    assert read_flags(Emulation, words, "test", fields) == settings
    assert as_flags(settings, settings) == []


def test_a_childs_words_are_kept_and_its_code_told(tmp_path: Path) -> None:
    script = "import sys; print('out'); print('é', file=sys.stderr); sys.exit(int(sys.argv[1]))"
    child = [sys.executable, "-c", script]
    assert run_child([*child, "0"], tmp_path / "a" / "log.txt") is None
    assert sorted((tmp_path / "a" / "log.txt").read_text().split()) == ["out", "é"]
    assert run_child([*child, "3"], tmp_path / "log.txt") == "é"
    assert run_child([sys.executable, "-c", "exit(3)"], tmp_path / "log.txt") == "exit code 3"
    with pytest.raises(KeyboardInterrupt):
        run_child([*child, "130"], tmp_path / "log.txt")
