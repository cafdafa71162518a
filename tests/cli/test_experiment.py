"""`interp experiment`: names, one by name, and all in one go: order, flags, resumption, a failure.

The experiments run in one go are stubs that take a made-up finding for measured.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from killing import heeding_signals
from report import synthetic_findings as synthetic

from interp import cli, organism
from interp.cli import series
from interp.errors import ConfigError
from interp.experiments import QUESTIONS, SCORED, trial_named
from interp.experiments.trial import Measurement, Trial
from interp.plots import Curves, curves, exporting

SCRIPT = Path(__file__).resolve().parents[2] / "analyses" / "weak_points.py"
NAMES = ("generalisation", "context_distortion", "golden_zone")


class Done(NamedTuple):
    """What a run left on the terminal."""

    code: int
    stdout: str
    stderr: str


@dataclass
class Stubs:
    """Experiments that note with what they run, and fail as they are told."""

    ran: list[tuple[str, Trial]] = field(default_factory=list)
    fails: dict[str, Callable[[], BaseException]] = field(default_factory=dict)
    held: list[weakref.ref] = field(default_factory=list)

    def trial(self, name: str) -> type[Trial]:
        stubs, (found,) = self, (one for one in synthetic.FINDINGS if one.name == name)

        class Stub(Trial):
            point, claim = found.point, found.claim
            __module__ = name

            def measure(self, _: Any) -> Measurement:
                stubs.begin(self)
                figures = {name: curves(synthetic.table(), Curves(name, "tokens", "strength"), "c")}
                seen = (found.sentence, found.contrast, found.n)
                return Measurement(*seen, synthetic.table(), figures)

        return Stub

    def begin(self, trial: Trial) -> None:
        """Note it, and fail if told so; what the one before held must be free."""
        assert [one() for one in self.held] == [None] * len(self.held)
        model: Any = type("Model", (), {})()
        model.itself = model  # only a collection of garbage frees it
        self.held.append(weakref.ref(model))
        self.ran.append((trial.name(), trial))
        print("half done", file=sys.stderr, flush=True)
        if trial.name() in self.fails:
            raise self.fails[trial.name()]()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.ran]


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stubs:
    """In a folder of their own; no browser, so no pictures."""
    made = Stubs()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporting, "find_browser", lambda: None)
    monkeypatch.setattr(series, "trial_named", made.trial)
    return made


@pytest.fixture
def run(stubs: Stubs, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """Run the stubs in one go."""

    def once(*words: str, only: Sequence[str] = NAMES) -> Done:
        code = cli.main(["experiment", "all", "--only", *only, *words])
        return Done(code, *capsys.readouterr())

    return once


def test_without_a_name_they_are_listed_with_their_questions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["experiment"])
    assert left.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    for name, question in QUESTIONS.items():
        assert f"{name} {question}" in " ".join(" ".join(lines).split())


def test_a_typo_is_one_line_with_the_names_that_there_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["experiment", "goldenzone"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("interp: no experiment 'goldenzone'")
    assert error.endswith(f"{', '.join(QUESTIONS)}\n")
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_has_its_own_flags_and_its_question(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["experiment", name, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    trial = trial_named(name)
    assert trial.name() == name
    for flag in trial.model_fields:
        assert f"--{flag.replace('_', '-')}" in shown
    assert f"interp experiment {name}" in shown
    assert trial(**trial.bundled_fields()).out == Path("runs") / name


def test_all_run_in_order_with_progress_flags_and_one_report(
    tmp_path: Path, stubs: Stubs, run: Callable[..., Done]
) -> None:
    (tmp_path / "p.txt").write_text("opposite :")
    words = ("--seed", "3", "--adapter", "None", "--prompt-file", "p.txt")
    code, stdout, stderr = run(*words, only=NAMES[::-1])
    assert code == 0, stderr
    assert stubs.names == list(NAMES)
    for name, settings in stubs.ran:
        given = (settings.seed, settings.adapter, settings.prompt_file, settings.resume)
        assert given == (3, None, Path("p.txt"), False)
        assert settings.out == Path("runs/weak_points") / name
        assert settings.overwrite
    for place, name in enumerate(NAMES, 1):
        assert f"[{place}/3] {name} (" in stderr
    assert stderr.count("  half done\n") == 3
    log = (tmp_path / "runs/weak_points/golden_zone/output.txt").read_text()
    assert log.startswith("half done\n")
    assert "golden_zone is so." in log
    assert "golden_zone is so." not in stdout
    assert stdout.splitlines()[-1] == "report: runs/weak_points/report.html"
    assert "◆ fails 1 Generalisation: " in " ".join(stdout.split())
    report = (tmp_path / "runs/weak_points/report.html").read_text(encoding="utf-8")
    assert all(f'<h2 id="{name}">' in report for name in NAMES)


def test_a_failing_one_is_a_line_and_the_others_go_on(
    tmp_path: Path, stubs: Stubs, run: Callable[..., Done]
) -> None:
    stubs.fails["generalisation"] = lambda: ConfigError("no queries; give --queries")
    stubs.fails["golden_zone"] = lambda: KeyError(1)
    code, _, stderr = run()
    assert code == 2
    assert "generalisation: FAILED: no queries; give --queries, " in stderr
    assert "golden_zone: FAILED: KeyError: 1, " in stderr
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == (
        "interp: 2 of 3 experiments failed (generalisation, golden_zone); what they said is in "
        "runs/weak_points/NAME/output.txt"
    )
    out = tmp_path / "runs" / "weak_points"
    assert "Traceback" in (out / "golden_zone" / "output.txt").read_text()
    said = (out / "generalisation" / "output.txt").read_text()
    assert said == "half done\ninterp: no queries; give --queries\n"
    report = (out / "report.html").read_text(encoding="utf-8")
    assert "generalisation failed: no queries; give --queries" in report
    assert '<h2 id="context_distortion">' in report
    assert '<h2 id="generalisation">' not in report
    stubs.fails.clear()
    code, _, stderr = run("--resume")
    assert code == 0, stderr
    assert stubs.names == [*NAMES, "generalisation", "golden_zone"]
    assert stubs.ran[-1][1].resume


def test_an_interruption_says_how_to_go_on(stubs: Stubs, run: Callable[..., Done]) -> None:
    stubs.fails["context_distortion"] = KeyboardInterrupt
    code, stdout, stderr = run("--limit", "5")
    assert code == 130
    assert "report" not in stdout
    hint = stderr.splitlines()[-1]
    assert hint.startswith("interp: interrupted. Go on with: interp experiment all ")
    assert hint.endswith("--limit 5 --resume")
    stubs.fails.clear()
    code, _, stderr = run("--limit", "5", "--resume")
    assert code == 0, stderr
    assert stubs.names == [*NAMES[:2], *NAMES[1:]]


def test_a_signal_ends_a_real_experiment_in_one_line(tmp_path: Path) -> None:
    words = ["--only", "context_distortion", "--limit", "4"]
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heeding_signals,
    ) as process:
        assert process.stderr
        while "distortion: " not in process.stderr.readline():
            pass
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.splitlines()[-1].endswith("--limit 4 --resume")
    assert "Traceback" not in stderr


def test_only_some_keeps_findings_of_the_same_target_alone(
    tmp_path: Path, run: Callable[..., Done]
) -> None:
    first = sorted(organism.ADAPTERS.iterdir())[0]
    same = {"model": str(organism.MODEL), "adapter": str(first), "fine_tuned": None}
    for name, settings in (("golden_zone", same), ("context_distortion", {"model": "other"})):
        folder = tmp_path / "runs" / "weak_points"
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
        (["--only", "nothing"], f"no experiment 'nothing'; there are {SCORED[0]},"),
        (["--queries", "nothing.jsonl"], "nothing.jsonl: "),
        (["--adapter", "None"], "give exactly one of --adapter"),
    ],
)
def test_what_would_fail_everywhere_is_one_line_at_once(
    stubs: Stubs, run: Callable[..., Done], words: list[str], message: str
) -> None:
    code, _, stderr = run(*words)
    assert code == 2
    assert stderr.startswith(f"interp: {message}")
    assert stderr.count("\n") == 1
    assert stubs.ran == []
