"""Every command of README and documentation is one that the real parser reads, with these flags."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro
from documentation.pages import PAGES, ROOT, commands, inline, named

from interp import cli
from interp.cli import COMMANDS, series
from interp.cli import commands as command_functions
from interp.experiments import QUESTIONS
from recipes import handbook

_SET = re.compile(r"^(?:[A-Z_]+=\S+ )+")
EXPERIMENT = "model: MODEL\nprompt_file: [P]\nadapter: [A]\nqueries: Q.jsonl\nout: RUN\n"


class Parsed(Exception):
    """Flags were read; nothing else was done."""


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands stop once their flags were read, in a folder with the files that examples name."""
    real_cli, real_flags, depth = tyro.cli, command_functions.read_flags, []

    def read(*args: Any, **kwargs: Any) -> Any:
        depth.append(1)
        try:
            real_flags(*args, **kwargs)
        finally:
            depth.pop()
        raise Parsed

    def parse(*args: Any, **kwargs: Any) -> Any:
        found = real_cli(*args, **kwargs)
        if depth:
            return found
        raise Parsed

    monkeypatch.setattr(command_functions, "read_flags", read)
    monkeypatch.setattr(series, "read_flags", read)
    monkeypatch.setattr(tyro, "cli", parse)
    monkeypatch.chdir(tmp_path)
    for file in ("experiment.yaml", "PROMPT/experiment.yaml"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(EXPERIMENT)
    (tmp_path / "analyses").symlink_to(ROOT / "analyses")


def interp_lines() -> Iterator[tuple[str, str]]:
    """Page and words of every `interp` command in a block."""
    for page in PAGES:
        for line in commands(page):
            line = _SET.sub("", line)
            if line.startswith("interp "):
                yield named(page), re.split(r" #| \| ", line)[0].strip()


LINES = list(dict.fromkeys(interp_lines()))


def test_there_are_commands_to_read() -> None:
    assert len(LINES) > 25
    assert {page for page, _ in LINES} >= {"README.md", "README.ru.md", "docs/tutorial.md"}


@pytest.mark.parametrize(("page", "line"), LINES)
def test_the_real_parser_reads_it(page: str, line: str, parser: None) -> None:
    words = shlex.split(line)[1:]
    if "..." in words:
        check_words(line)
        return
    command, rest = cli.choose(words)
    with pytest.raises((Parsed, SystemExit)) as ended:
        command(rest)
    assert not getattr(ended.value, "code", 0), f"{page}: {line}"


def check_words(line: str) -> None:
    """A command that is only named, or cut short: it is there, and so are its flags."""
    words = [word for word in line.split()[1:] if word != "..."]
    if not words or words[0].startswith("-") or words[0].isupper():
        return
    name = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in COMMANDS), None)
    assert name, f"no command in {line!r}"
    flags = {f"--{word}" for word in re.findall(r"--([a-z][\w-]*)", line)}
    assert flags <= flags_of(name) | {"--help", "--debug", "--version"}, line


def flags_of(name: str) -> set[str]:
    """All flags of a command; of `experiment`, those of any."""
    if name != "experiment":
        return written(handbook.flags_of(*name.split()))
    every = [written(handbook.flags_of("experiment", one)) for one in ("all", *QUESTIONS)]
    return set.union(*every)


def written(flags: list[handbook.Flag]) -> set[str]:
    """As they are written, switches both ways."""
    dashed = {flag.name.replace("_", "-") for flag in flags}
    return {f"--{one}" for one in dashed} | {f"--no-{one}" for one in dashed}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_flags_in_the_prose_are_there(page: Path) -> None:
    every = set.union(*(flags_of(name) for name in COMMANDS)) | OTHERS
    for code in inline(page):
        if code.startswith("interp "):
            check_words(code)
        elif code.startswith("--"):
            assert code.split()[0].partition("=")[0] in every, f"{named(page)}: {code}"
        elif code.startswith("make ") and " " not in code[5:]:
            assert re.search(rf"^{code[5:]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), code


OTHERS = {"--help", "--debug", "--version", "--plan", "--no-"}
"""Flags that no table has (`--plan` is added where the command is run), and how switches begin."""


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_scripts_and_targets_are_there(page: Path) -> None:
    for line in commands(page):
        words = line.split()
        if words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), line
            source = (ROOT / words[1]).read_text(encoding="utf-8")
            for flag in re.findall(r"--([a-z][\w-]*)", line):
                assert flag in source or flag.replace("-", "_") in source, line
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
