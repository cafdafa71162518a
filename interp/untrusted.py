"""What people and other programs write, read with suspicion: each guard stands here, once.

    read_json(path.read_bytes())        # a ValueError of one line, or what the file holds
    read_yaml(path.read_bytes())
    is_there(Path(name))                # a name that is too long for a path is not there
    check_text("...")                   # a ValueError where it is no text: half a character

A parser takes some of this silently, fails on some with a traceback, and hangs on some: a key given
twice, numbers that no computation can hold, nesting without end, half of a surrogate pair, aliases
of YAML that stand for themselves or multiply. Nothing is ever unpickled. Torch-free.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

DEEPEST = 64
"""Lists within lists that a file may have."""

LARGEST = 2**63
"""Whole numbers are smaller than this."""

_NODES = 100_000
"""Values that a YAML file may have, aliases written out."""


def read_json(content: bytes) -> Any:
    """The value in JSON text (UTF-8, with or without a byte order mark)."""
    try:
        found = json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_number
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check(found)
    return found


def read_yaml(content: bytes) -> Any:
    """The value in YAML text, of plain types alone."""
    import yaml

    text = content.decode("utf-8-sig")
    try:
        found = _constructed(yaml.SafeLoader(text))
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    _check(found)
    return found


def check_text(text: str) -> None:
    """A ValueError where a text cannot be written as UTF-8."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise ValueError(f"U+{ord(half):04X} is half a character (a lone surrogate)") from None


def is_there(path: Path) -> bool:
    """Whether a file or folder has this name; False of a name that none can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


_TOO_DEEP = f"it is nested more than {DEEPEST} deep"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {max(names, key=names.count)!r} stands twice")
    return found


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number in JSON")


def _check(found: Any) -> None:
    """A ValueError where a value is nested too deeply, or holds what cannot be computed with."""
    level, depth = [found], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(_TOO_DEEP)
        level = [inner for value in level for inner in _inside(value)]
        depth += 1


def _inside(value: Any) -> Iterable[Any]:
    """What a value holds, once it is checked itself."""
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, dict):
        return (*value, *value.values())
    elif isinstance(value, list | tuple | set):
        return value
    elif isinstance(value, int) and abs(value) >= LARGEST:
        raise ValueError("it has a whole number of more than 64 bits")
    elif isinstance(value, float) and math.isinf(value):
        raise ValueError("it has a number that is infinite, or too large")
    return ()


def _constructed(loader: yaml.SafeLoader) -> Any:
    try:
        node = loader.get_single_node()
        if node is not None:
            _count(node, {}, 0)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values a YAML node stands for, aliases written out; a ValueError where they are too
    many, and where a key stands twice. `known`: identity of a node -> its count (0: not yet)."""
    import yaml

    if depth > DEEPEST:
        raise ValueError(_TOO_DEEP)
    if id(node) in known:
        if not known[id(node)]:
            raise ValueError(f"line {node.start_mark.line + 1}: an alias stands for itself")
        return known[id(node)]
    known[id(node)] = 0
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys(node)
        inner = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    count = 1 + sum(_count(part, known, depth + 1) for part in inner)
    if count > _NODES:
        raise ValueError(f"its aliases stand for more than {_NODES:,} values")
    known[id(node)] = count
    return count


def _check_keys(node: yaml.MappingNode) -> None:
    seen: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if not isinstance(key.value, str):
            continue  # a list or mapping as a key, which the constructor refuses
        line = key.start_mark.line + 1
        if (first := seen.get((key.tag, key.value))) is not None:
            raise ValueError(
                f"line {line}: the key {key.value!r} stands twice, first in line {first}"
            )
        seen[key.tag, key.value] = line
