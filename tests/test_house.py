"""No name of the library stands for two things; the account of the rooms adds up."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "house.py"


def _recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


house = _recipe()


def rooms(folder: Path, **files: str) -> Path:
    """A house with these modules; `__` in a name is a folder."""
    for name, text in files.items():
        file = folder / (name.replace("__", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


@pytest.mark.parametrize(
    "definition",
    [
        "def Pair(): ...",
        "class Pair: ...",
        "Pair = tuple[str, str]",
        "Pair: type = tuple[str, str]",
        "Other, Pair = 1, 2",
        "try:\n    Pair = 1\nexcept ImportError:\n    pass",
    ],
)
def test_a_name_that_two_modules_define_is_one_line(tmp_path: Path, definition: str) -> None:
    rooms(tmp_path, design=definition, plots__text="Pair = tuple[str, str]")
    assert house.check(tmp_path, {}) == ["Pair is defined in design.py and plots/text.py"]


@pytest.mark.parametrize(
    "other",
    [
        "from interp.design import Pair",
        "_Pair = 1",
        "def f():\n    Pair = 1\n    def Pair(): ...",
        "class Other:\n    Pair = 1",
    ],
)
def test_imports_private_and_inner_names_are_not_double(tmp_path: Path, other: str) -> None:
    rooms(tmp_path, design="Pair = tuple[str, str]", other=other)
    assert house.check(tmp_path, {}) == []


def test_a_name_that_one_module_defines_twice_is_not_double(tmp_path: Path) -> None:
    rooms(tmp_path, design="if True:\n    Pair = 1\nelse:\n    Pair = 2")
    assert house.check(tmp_path, {}) == []


def test_exceptions_are_honoured_and_go_when_they_are_not_needed(tmp_path: Path) -> None:
    rooms(tmp_path, organism="MODEL = 1", toy="MODEL = 2")
    assert house.check(tmp_path, {"MODEL": "a folder"}) == []
    idle = ["Pair is an exception and is not double"]
    assert house.check(tmp_path, {"MODEL": "a folder", "Pair": "a pair"}) == idle


def test_rooms_add_up(tmp_path: Path) -> None:
    rooms(tmp_path, design="a = 1\n", plots__text="b = 1\nc = 2\n", plots__lines="d = 1\n")
    lines = [line.split() for line in house.rooms(tmp_path)]
    assert lines == [["3", "2", "plots"], ["1", "1", "design.py"], ["4", "3", "together"]]


def test_long_functions_and_files_are_listed(tmp_path: Path) -> None:
    long = "def long():\n" + "    pass\n" * house.LONG_FUNCTION
    short = "def short():\n" + "    pass\n" * (house.LONG_FUNCTION - 1)
    rooms(tmp_path, design=long + short, whole="a = 1\n" * (house.LONG_FILE + 1))
    assert house.long_functions(house.modules(tmp_path)) == ["     61  design.py: long"]
    assert house.long_files(tmp_path) == ["    301  whole.py"]


def test_flags_are_those_of_the_command_line() -> None:
    from interp import Experiment
    from interp.cli import COMMANDS
    from interp.config import FILE_ONLY

    counted = {line.split("interp ")[1]: int(line.split()[0]) for line in house.flags()}
    assert list(counted) == list(COMMANDS)
    assert counted["diverge"] == len({"plan", *Experiment.model_fields} - FILE_ONLY)
    assert counted["demo"] == counted["report"] == 2
    assert counted["head"] == 4
