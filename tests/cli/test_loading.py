"""What every command is told about the model that it opens, from flag to report."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import MODULES, save_adapter, save_model
from transformers import AutoTokenizer

from interp import cli
from interp.cli import COMMANDS
from interp.config import Distillation, Experiment, Loading
from interp.matching.settings import Inversion
from interp.runs.files import read_manifest
from interp.subject.adapter_files import WEIGHTS_FILE
from interp.validation.settings import Validating

LEAN = ["--controls", "--bootstrap", "0", "--permutations", "0", "--sample", "0"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("llama", tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def study(model: str, tmp_path: Path) -> list[str]:
    """A study of an adapter that does nothing, as words of the command line."""
    adapter = Path(save_adapter(model, tmp_path / "idle", MODULES["llama"]["q"]))
    tensors = load_file(adapter / WEIGHTS_FILE)
    save_file({k: t * ("lora_A" in k) for k, t in tensors.items()}, adapter / WEIGHTS_FILE)
    (tmp_path / "prompt.txt").write_text("up is down\n")
    (tmp_path / "queries.jsonl").write_text('{"text": "hot is"}\n{"text": "a river"}\n')
    files = ["--prompt-file", tmp_path / "prompt.txt", "--queries", tmp_path / "queries.jsonl"]
    words = ["diverge", "--model", model, "--adapter", adapter, *files, "--out", tmp_path / "run"]
    return [*map(str, words), "--separator", " ", *LEAN]


def test_an_idle_adapter_ends_a_study_and_allowed_it_is_a_note(
    study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(study) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "changes nothing" in line]
    assert "condition lora" in line
    assert str(tmp_path / "idle") in line
    assert "--allow-idle" in line
    assert cli.main([*study, "--allow-idle", "--overwrite"]) == 0
    note = "condition lora changes nothing: its weights give the outputs of base"
    assert note in " ".join(capsys.readouterr().err.split())
    assert note in read_manifest(tmp_path / "run")["notes"]
    assert note in (tmp_path / "run" / "report.html").read_text()


def test_another_tokenizer_ends_a_study_and_chosen_it_is_used(
    model: str, study: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = AutoTokenizer.from_pretrained(model)
    words.chat_template = "{{ messages[0]['content'] }}"
    words.save_pretrained(tmp_path / "idle")
    study = [*study, "--allow-idle", "--overwrite"]
    assert cli.main(study) == 2
    assert f"--tokenizer {tmp_path / 'idle'}" in " ".join(capsys.readouterr().err.split())
    assert cli.main([*study, "--tokenizer", str(tmp_path / "idle")]) == 0
    hashes = read_manifest(tmp_path / "run")["hashes"]
    assert hashes["tokenizer"] == hashes["adapter of lora"]  # the same folder


@pytest.mark.parametrize("settings", [Experiment, Distillation, Inversion, Validating])
def test_every_command_that_opens_a_model_takes_the_same_flags(settings: type) -> None:
    assert issubclass(settings, Loading)


@pytest.mark.parametrize("name", ["diverge", "match distil", "match invert", "validate"])
def test_their_help_has_them_all_last(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert name in COMMANDS
    with pytest.raises(SystemExit):
        cli.main([*name.split(), "--help"])
    shown = capsys.readouterr().out
    places = [shown.rindex(f"--{field.replace('_', '-')}") for field in Loading.model_fields]
    assert places == sorted(places)
    assert min(places) > shown.rindex("--model ")
