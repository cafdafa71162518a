"""What pages read from elsewhere: flags, kinds of conditions and columns of the code, notebooks.

    python recipes/handbook.py        # print them
    filled(app, page, source)          # what `docs/conf.py` calls for every page

A page says where a table stands by an empty block of code in its name, ```` ```{flags} ````.
Nothing is kept: what the documentation shows is what the code has when it is built.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin
from unittest.mock import patch

import tyro
from pydantic import BaseModel

import interp
from interp.cli import COMMANDS, choose, commands, series
from interp.conditions import CONDITION_KINDS
from interp.config import FILE_ONLY, Computing, Framing, Loading
from interp.experiments import QUESTIONS
from interp.matching.settings import Emulation
from interp.runs.files import COLUMNS

PACKAGE = Path(interp.__file__).parent
DEMOS = Path(__file__).resolve().parents[1] / "demos"

SHARED: Mapping[str, type[BaseModel]] = {
    "Opening a model": Loading,
    "Chats and answers": Framing,
    "Workers of Ray": Computing,
}
"""Groups of flags that several commands share, in tables of their own."""


class Flag(NamedTuple):
    """A flag, or a word without one (`positional`); `default` is `inspect.Parameter.empty` where it
    must be given."""

    name: str
    kind: Any
    default: Any
    help: str
    positional: bool = False

    @property
    def written(self) -> str:
        """How it is written on the command line; a switch that is on can be turned off."""
        if self.positional:
            return f"`{self.name.upper()}`"
        dashed = self.name.replace("_", "-")
        return f"`--{dashed}`" + (f", `--no-{dashed}`" if self.default is True else "")


class _Read(Exception):
    """Raised in place of reading flags, with these."""

    def __init__(self, flags: Sequence[Flag]) -> None:
        self.flags = flags


# --- what a command reads ------------------------------------------------------------------------


def flags_of(*command: str) -> list[Flag]:
    """What a command reads; nothing is run."""
    with _reading():
        try:
            function, rest = choose(command)
            function(rest)
        except _Read as read:
            return list(read.flags)
    raise ValueError(f"interp {' '.join(command)} reads no flags")


@contextmanager
def _reading() -> Iterator[None]:
    """Reading flags raises `_Read`."""
    with (
        patch.object(commands, "read_flags", _of_model),
        patch.object(series, "read_flags", _of_model),
        patch.object(tyro, "cli", _of_function),
    ):
        yield


def _of_model(
    model: type[BaseModel],
    words: Sequence[str],
    prog: str,
    fields: Mapping[str, Any] | None = None,
    description: str | None = None,
    positional: Sequence[str] = (),
) -> None:
    given = fields or {}
    found = []
    for name, field in model.model_fields.items():
        if name not in FILE_ONLY:
            default = inspect.Parameter.empty if field.is_required() else field.default
            words_of = field.description or ""
            at = given.get(name, default)
            found.append(Flag(name, field.annotation, at, words_of, name in positional))
    raise _Read(found)


def _of_function(function: Callable[..., Any], **_: Any) -> None:
    helps = dict(re.findall(r"^ +(\w+): (.*(?:\n {12,}.*)*)", function.__doc__ or "", re.MULTILINE))
    parameters = inspect.signature(function, eval_str=True).parameters
    raise _Read(
        [
            Flag(
                name,
                get_args(parameter.annotation)[0]
                if tyro.conf.Positional in get_args(parameter.annotation)
                else parameter.annotation,
                parameter.default,
                helps.get(name, ""),
                tyro.conf.Positional in get_args(parameter.annotation),
            )
            for name, parameter in parameters.items()
        ]
    )


# --- tables --------------------------------------------------------------------------------------


_SERIES = {
    "experiment all": "all experiments but the last two, and a scorecard",
    "experiment claims": "do claims of the literature hold here? one table",
}
"""Commands of several experiments -> what they do."""


def flags() -> str:
    """Every flag: those that commands share, those of each command, those of each experiment."""
    parts = []
    read = {name: flags_of(*name.split()) for name in COMMANDS if name != "experiment"}
    read |= {name: flags_of(*name.split()) for name in _SERIES}
    for heading, model in SHARED.items():
        names = _own(model)
        by = [
            f"`interp {name}`" for name, found in read.items() if names <= {f.name for f in found}
        ]
        shared = [f for f in _model_flags(model) if f.name in names]
        parts.append(f"## {heading}\n\nRead by {', '.join(by)}.\n\n{_table(shared)}")
    for name, found in read.items():
        about = (COMMANDS | _SERIES)[name]
        parts.append(f"## interp {name}\n\n{_sentence(about)}\n\n{_and_shared(found)}")
    for name, question in QUESTIONS.items():
        own = [f for f in flags_of("experiment", name) if f.name not in Emulation.model_fields]
        parts.append(f"## interp experiment {name}\n\n{_sentence(question)}\n\n{_table(own)}")
        parts.append("And those of `interp experiment all`, but `--only` and Ray's.")
    return "\n\n".join(parts)


def _own(model: type[BaseModel]) -> set[str]:
    """The names of a group's flags, those of `Loading` only in its own."""
    inherited = set() if model is Loading else set(Loading.model_fields)
    return set(model.model_fields) - inherited - FILE_ONLY


def _model_flags(model: type[BaseModel]) -> list[Flag]:
    try:
        _of_model(model, (), "")
    except _Read as read:
        return list(read.flags)
    raise AssertionError


def _and_shared(found: Sequence[Flag]) -> str:
    """The flags of a command, and the names of the groups that it shares with others."""
    names, own, groups = {f.name for f in found}, list(found), []
    for heading, model in SHARED.items():
        if (group := _own(model)) <= names:
            plain = {f.name: f.help for f in _model_flags(model)}
            own = [f for f in own if f.name not in group or f.help != plain[f.name]]
            groups.append(f"[{heading.lower()}](#{heading.lower().replace(' ', '-')})")
    table = _table(own) if own else ""
    return f"{table}\nAnd those on {', '.join(groups)}." if groups else table


def _sentence(words: str) -> str:
    return words[0].upper() + words[1:] + ("" if words.endswith(("?", ".")) else ".")


def _table(found: Iterable[Flag]) -> str:
    rows = [(f.written, _shown(f.default), _help(f)) for f in found]
    lines = [("flag", "default", ""), ("---", "---", "---"), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _help(flag: Flag) -> str:
    choices = [str(value) for kind in _kinds(flag.kind) for value in _literals(kind)]
    words = re.sub(r"(?<![`\w])(--[a-z][\w-]*)", r"`\1`", " ".join(flag.help.split()))
    one_of = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
    return (words + one_of).replace("|", "\\|")


def _kinds(kind: Any) -> list[Any]:
    """The parts of a union or tuple."""
    if get_origin(kind) is Literal or not get_args(kind):
        return [kind]
    return [part for inner in get_args(kind) for part in _kinds(inner)]


def _literals(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) is Literal else ()


def _shown(default: Any) -> str:
    """A default; files of the bundled model by their name."""
    if default is inspect.Parameter.empty:
        return "**required**"
    if default is None or default == ():
        return "–"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return " ".join(_shown(one) for one in default)
    if Path(str(default)).is_relative_to(PACKAGE):
        return f"bundled `{Path(str(default)).name}`"
    return f"`{default!r}`" if "\n" in str(default) else f"`{default}`"


def conditions() -> str:
    """Every kind of condition: its name in a file, its fields, what it is."""
    lines = [("kind", "fields", "what it is"), ("---", "---", "---")]
    for name, kind in CONDITION_KINDS.items():
        fields = ", ".join(f"`{field}`" for field in inspect.signature(kind).parameters) or "–"
        about = " ".join((inspect.getdoc(kind) or "").split())
        lines.append((f"`{name}`", fields, about.replace("|", "\\|")))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def columns() -> str:
    """The columns of the table of results."""
    lines = [("column", "type"), ("---", "---"), *((f"`{c}`", t) for c, t in COLUMNS.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def notebooks() -> str:
    """The cells of every notebook of `demos/`, headings one level lower."""
    parts = []
    for path in sorted(DEMOS.glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            code = cell["cell_type"] == "code"
            parts.append(
                f"```python\n{text}\n```" if code else re.sub("^#", "##", text, flags=re.M)
            )
    return "\n\n".join(parts) + "\n"


_OUTWARD = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+)([^)]+)\)")
"""A link that goes up: its words, the steps, the rest."""

TABLES: Mapping[str, Callable[[], str]] = {
    "flags": flags,
    "conditions": conditions,
    "columns": columns,
    "notebooks": notebooks,
}
"""Name of a block of code -> the table that takes its place."""


def filled(app: Any, page: str, source: list[str]) -> None:
    """Put the tables of a page where it says; of links out of this folder keep the words."""
    for name, table in TABLES.items():
        place = f"```{{{name}}}\n```\n"
        if place in source[0]:
            source[0] = source[0].replace(place, table())
    source[0] = _OUTWARD.sub(partial(_inward, len(Path(page).parts)), source[0])


def _inward(depth: int, link: re.Match[str]) -> str:
    """A link as it is if it stays in the folder of the documentation; else a download of numbers,
    or its words alone."""
    words, up, target = link.groups()
    if up.count("..") < depth:
        return link[0]
    return f"{{download}}`{words} <{up}{target}>`" if target.endswith(".csv") else words


if __name__ == "__main__":
    print("\n\n".join(table() for table in TABLES.values()))
