"""Conditions as experiment files have them, and prompts as files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from interp.conditions import CONDITION_KINDS, REFERENCES, Composed, Condition
from interp.errors import ConditionError, ConfigError, similar

CONDITION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def read_prompt(path: Path) -> str:
    """A prompt file's text, without one line break at its end (the editor's)."""
    try:
        text = path.read_text(encoding="utf-8-sig").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise ConfigError(f"prompt file {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"prompt file {path} is not UTF-8 text ({error.reason})") from error
    if not text:
        raise ConfigError(f"prompt file {path} is empty: write a prompt, or leave the file away")
    return text


def parse_condition(name: str, spec: Any, known: Mapping[str, Condition]) -> Condition:
    """`{kind: {field: value}}`, or a list of them (composed); `like`, `of`, `by` name others."""
    if isinstance(spec, list) and spec:
        first, *rest = (parse_condition(name, part, known) for part in spec)
        for part in rest:
            first = first + part
        return first
    if not (isinstance(spec, dict) and len(spec) == 1):
        raise ConfigError(
            f"condition {name}: write one of {', '.join(CONDITION_KINDS)} with its fields"
        )
    ((kind, given),) = spec.items()
    if kind not in CONDITION_KINDS:
        what = f"{kind!r}{similar(str(kind), CONDITION_KINDS)}"
        raise ConfigError(
            f"condition {name}: no kind {what}; there are {', '.join(CONDITION_KINDS)}"
        )
    if not isinstance(given, dict | None):
        raise ConfigError(f"condition {name}: write {kind}'s fields as `field: value`")
    values = dict(given or {})
    for reference in REFERENCES & values.keys():
        if not isinstance(values[reference], str) or values[reference] not in known:
            raise ConfigError(f"condition {name}: {reference} names no condition above it")
        values[reference] = known[values[reference]]
    for field, form in {"file": "text", "system_file": "system"}.items():
        if field in values and kind == "prompt":
            if not isinstance(file := values.pop(field), str):
                raise ConfigError(f"condition {name}: {field} is not a file's name: {file!r}")
            values[form] = read_prompt(Path(file))
    try:
        return TypeAdapter(CONDITION_KINDS[kind]).validate_python(values)
    except ValidationError as error:
        written = getattr(CONDITION_KINDS[kind], "__dataclass_fields__", ())
        raise ConfigError(f"condition {name}: {explain(error, written)}") from error
    except ConditionError as error:
        raise ConfigError(f"condition {name}: {error}") from error


def write_condition(name: str, condition: Condition, known: Mapping[str, Condition]) -> Any:
    """A condition as `parse_condition` reads it; what it refers to must be among those `known`."""
    if isinstance(condition, Composed):
        return [write_condition(name, part, known) for part in condition.conditions]
    if not is_dataclass(condition):
        raise ConfigError(f"condition {name}: an experiment has no {type(condition).__name__}")
    values = {field.name: getattr(condition, field.name) for field in fields(condition)}
    for reference in REFERENCES & values.keys():
        named = (other for other, own in known.items() if own == values[reference])
        if (found := next(named, name)) == name:
            raise ConfigError(f"condition {name}: give what it is {reference} a name of its own")
        values[reference] = found
    return {condition.tag: {key: v for key, v in values.items() if v not in (None, ())}}


def explain(error: ValidationError, known: Iterable[str] = ()) -> str:
    """The first fault of a configuration in one line, a misspelt field before all others; `known`:
    the names that a field may have."""
    faults = error.errors(include_url=False, include_input=False)
    fault = next((f for f in faults if f["type"] in _UNKNOWN), faults[0])
    field = ".".join(map(str, fault["loc"])) or "experiment"
    like = similar(str(fault["loc"][-1]), known) if fault["type"] in _UNKNOWN else ""
    return f"{field}: {' '.join(fault['msg'].split())}{like}"


_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
"""pydantic's types of a field that there is not."""
