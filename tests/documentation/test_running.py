"""Every command of README and documentation runs, on models that are small enough for a test.

Each runs as it is written, in a folder where the names that its page takes for granted are there
(`standins.py`). Commands in blocks of the language `console` stand with their real output instead.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from conftest import Once
from documentation import standins
from documentation.pages import PAGES, ROOT, blocks, commands, named
from scripts import script

from interp import cli
from interp.runs.files import read_manifest

_COMMAND = re.compile(r"^(\w+=\S+ )*(interp|python|make|pip|\.) ")


def lines() -> Iterator[tuple[str, str]]:
    """Every command with the first page that has it, without remarks."""
    known = set()
    for page in PAGES:
        for whole in commands(page, printed=False):
            line = " ".join(re.split(r" +#", whole)[0].split())
            if _COMMAND.match(line) and line not in known:
                known.add(line)
                yield named(page), line


def substituted(line: str) -> str:
    """A command as it runs here."""
    for place, instead in standins.SMALLER.items():
        line = line.replace(place, instead)
    return line


def distinct() -> Iterator[tuple[str, str]]:
    """The commands that run here; of those that differ in names for the same alone, the first."""
    known = set()
    for page, line in LINES:
        alike = " ".join(standins.NAMES.get(word, word) for word in substituted(line).split())
        if line not in standins.NOT_HERE and alike not in known:
            known.add(alike)
            yield page, line


LINES = list(lines())


@pytest.fixture(autouse=True)
def no_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    """No browser is found: pictures are drawn in tests/plots."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))


@pytest.fixture(scope="module")
def shelf(once: Once) -> Path:
    """What stands for the pages' models, files and runs."""
    return once("standins", standins.build)


def lay(words: Sequence[str], out: str, shelf: Path, folder: Path) -> None:
    """Put what the words name into a folder; runs are copied, since commands write into them."""
    for name, made in standins.NAMES.items():
        if name != out and any(word == name or word.startswith(f"{name}/") for word in words):
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if (shelf / made / "manifest.json").is_file():
                shutil.copytree(shelf / made, place)
            else:
                place.symlink_to(shelf / made)


def run(words: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    if words[0] == "python":
        done = script(words[1].removeprefix("analyses/"), *words[2:], folder=folder)
        return done.returncode, done.stdout, done.stderr
    return cli.main(words[1:]), *capsys.readouterr()


@pytest.mark.parametrize(
    ("page", "line"),
    distinct(),
    ids=lambda word: word[:40],
)
def test_it_runs_and_leaves_what_it_promises(
    page: str,
    line: str,
    shelf: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = shlex.split(substituted(line))
    out = words[words.index("--out") + 1] if "--out" in words else ""
    lay(words, out, shelf, tmp_path)
    monkeypatch.chdir(tmp_path)
    code, said, error = run(words, tmp_path, capsys)
    assert code == 0, f"{page}: {line}\n{error}"
    if "--plan" in words:
        assert "forward passes" in said
        assert not Path(out).exists()
        return
    command = " ".join(words[1:3]) if words[1] == "match" else words[1]
    where = Path(out or ("compare.html" if command == "compare" else words[2]))
    assert where.exists(), f"{page}: {line}\nwrote no {where}"
    for pattern in standins.WRITES[command]:
        assert list(where.glob(pattern)), f"{page}: {line}\nleft no {pattern}"


def test_the_experiment_file_runs(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its conditions but those that it says a chat alone has."""
    page = ROOT / "docs" / "reference" / "conditions.md"
    (whole,) = (block for language, block in blocks(page) if language == "yaml")
    text = "\n".join(line for line in substituted(whole).splitlines() if "#" not in line)
    assert "`interp diverge experiment.yaml --seed 1`" in page.read_text(encoding="utf-8")
    lay(re.findall(r"[\w./]+", text), "RUN", shelf, tmp_path)
    (tmp_path / "experiment.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    line = "diverge experiment.yaml --seed 1 --measures relative_l2 --controls neutral"
    assert cli.main(line.split()) == 0
    manifest = read_manifest(Path("RUN"))
    assert set(yaml.safe_load(text)["conditions"]) < set(manifest["conditions"])
    assert manifest["seed"] == 1


def test_what_does_not_run_here_is_on_a_page_and_runs_elsewhere() -> None:
    assert set(standins.NOT_HERE) <= {line for _, line in LINES}
    text = " ".join(line for page in PAGES for line in page.read_text(encoding="utf-8").split())
    written = re.sub(r"\\ ", "", text)
    assert [name for name in (*standins.NAMES, *standins.SMALLER) if name not in written] == []
    for reason in standins.NOT_HERE.values():
        for file in re.findall(r"tests/\S+\.py", reason):
            assert (ROOT / file).is_file(), reason
