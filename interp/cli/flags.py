"""Flags for a settings model: its fields, their docstrings as help, its defaults.

settings = read_flags(Experiment, sys.argv[1:], "interp diverge", {"seed": 1})
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import BaseModel, ValidationError

from interp.cli.parsing import parsed
from interp.config import FILE_ONLY, Computing, Loading, explain
from interp.errors import ConfigError, similar

_SHARED = frozenset(Loading.model_fields | Computing.model_fields)

_Settings = TypeVar("_Settings", bound=BaseModel)


def read_flags(
    model: type[_Settings],
    words: Sequence[str],
    prog: str,
    fields: Mapping[str, Any] | None = None,
    description: str | None = None,
    positional: Sequence[str] = (),
) -> _Settings:
    """Flags as a settings model; `fields` stand where no flag is given, `positional` ones are
    written without their name.

    The flags are read without the model's bounds, so that a value out of bounds is one line; those
    that commands share come last.
    """
    given = dict(fields or {})
    flags = []
    for name, field in sorted(model.model_fields.items(), key=lambda item: item[0] in _SHARED):
        if name in FILE_ONLY:
            continue
        required = field.is_required() and name not in given
        default = dataclasses.MISSING if required else given.get(name, field.default)
        shown = tyro.conf.arg(help=field.description, help_behavior_hint=_default_hint(default))
        kind: Any = Annotated[field.annotation, shown]
        if name in positional:
            kind = Annotated[kind, tyro.conf.Positional, tyro.conf.arg(metavar=name.upper())]
        flags.append((name, kind, dataclasses.field(default=default)))
    reader = dataclasses.make_dataclass(model.__name__, flags, kw_only=True)
    _refuse_unknown(words, [name for name, _, _ in flags])
    read: Any = parsed(reader, words, prog, description or model.__doc__)
    try:
        return model(**given | vars(read))
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def _refuse_unknown(words: Sequence[str], names: Sequence[str]) -> None:
    """A `ConfigError` that says what a misspelt flag may have been."""
    known = [f"--{name.replace('_', '-')}" for name in (*names, "help")]
    for word in words:
        flag = word.split("=")[0].replace("_", "-")
        if not flag.startswith("--") or flag == "--" or flag.startswith("--tyro-"):
            continue
        if flag not in known and f"--{flag.removeprefix('--no-')}" not in known:
            what = f"{word.split('=')[0]}{similar(flag, known)}"
            raise ConfigError(f"no flag {what}")


def _default_hint(default: Any) -> str | None:
    """A default with a line break, as it is written in code; tyro shows all others itself."""
    return f"(default: {default!r})" if isinstance(default, str) and "\n" in default else None
