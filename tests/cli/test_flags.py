"""Every flag has a help of its own: one whole sentence or phrase, without a raw line break."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from interp.cli.flags import read_flags
from interp.config import FILE_ONLY, Distillation, Experiment
from interp.edges.settings import EdgeTracing
from interp.experiments import QUESTIONS, AllTrials, Claims, trial_named
from interp.matching.settings import Inversion
from interp.patching.settings import Patching
from interp.subspace.settings import Subspaces
from interp.validation.settings import Validating
from interp.weights.settings import Weighing

ANALYSES = Path(__file__).resolve().parents[2] / "analyses"
SCRIPTS = sorted(
    path
    for path in ANALYSES.rglob("*.py")
    if "(BaseModel)" in path.read_text() or "class Config(" in path.read_text()
)
TRIALS = [trial_named(name) for name in QUESTIONS]
COMMANDS = [Experiment, Patching, Weighing, Validating, Distillation, Inversion, AllTrials, Claims]
COMMANDS += TRIALS
COMMANDS += [EdgeTracing, Subspaces]


def settings_of(path: Path) -> type[BaseModel]:
    """The settings that a script reads from its flags. Of a script that another test has loaded,
    these: the docstrings of a second one are not found, as its source stands for the first."""
    for loaded in list(sys.modules.values()):
        if getattr(loaded, "__file__", None) == str(path):
            return _settings(loaded)
    spec = importlib.util.spec_from_file_location(f"flags_of_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return _settings(module)


def _settings(module: ModuleType) -> type[BaseModel]:
    found: type[BaseModel] = getattr(module, "Config", None) or module.Study
    return found


def check_helps(model: type[BaseModel]) -> None:
    """The helps of all flags are sentences of their own."""
    helps = {
        name: " ".join((field.description or "").split())
        for name, field in model.model_fields.items()
        if name not in FILE_ONLY
    }
    for name, words in helps.items():
        assert words.endswith((".", "...")), f"--{name}: {words!r} goes on elsewhere"
        assert words[0].isupper() or words.startswith("peft"), (
            f"--{name}: {words!r} has no beginning"
        )
        assert words.count("(") == words.count(")"), f"--{name}: {words!r}"
    assert len(set(helps.values())) == len(helps)


@pytest.mark.parametrize("model", COMMANDS)
def test_every_flag_of_a_command_has_a_sentence_of_its_own(model: type[BaseModel]) -> None:
    check_helps(model)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_flag_of_a_script_has_a_sentence_of_its_own(path: Path) -> None:
    check_helps(settings_of(path))


@pytest.mark.parametrize("model", [Experiment, Distillation, Inversion])
def test_a_line_break_in_a_default_is_shown_as_it_is_written(
    model: type[BaseModel], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with pytest.raises(SystemExit):
        read_flags(model, ["--help"], "interp")
    assert r"(default: '\n')" in capsys.readouterr().out
