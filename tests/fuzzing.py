"""Inputs that are almost right: mutated by hypothesis, read by the library, and counted.

    outcomes = fuzz(Fuzzed("queries", content, read), examples=300)
    outcomes                        # Counter({"refused": 251, "read": 40, "unchanged": 9})

A reader returns "read" or "unchanged", or raises an `InterpError` of one line; anything else it
raises is a fault of the library. `watched(folder)` refuses network, and writes outside the folder.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from interp.errors import InterpError

HOSTILE = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\xe2\x80\xae", b'"\\ud800"', b"NaN", b"-Infinity",
    b"1e999", b"9" * 5_000, b"[" * 1_500, b"{" * 1_500, b"../", b"/etc/passwd", b"a" * 400, b"-1",
    b"null", b"true", b"[]", b"{}", b"''", b"*a", b"&a ", b"!!python/name:os.system", b"<<: ",
    b"\t", b"\n\n", b": ", b"- ", b"{query.__class__}", b"(a", b"0", b"</script>",
]  # fmt: skip
"""Pieces that have broken a parser somewhere."""

VALUES: list[Any] = [
    None, True, -1, 0, 7, 2**40, 2**63, 1.5, float("inf"), float("nan"), "", "x", "../x", "/x",
    "a" * 400, "\ud800", "\0", "cuda", "(", "{", [], [[]], ["x"], [None], {}, {"x": 1}, {"": []},
]  # fmt: skip
"""What may stand where another value should."""


@dataclass
class Fuzzed:
    """An input: a file's right content, and what reads it."""

    name: str
    content: bytes
    read: Callable[[bytes], str]
    counts: Counter[str] = field(default_factory=Counter)


def fuzz(what: Fuzzed, examples: int) -> Counter[str]:
    """Read so many mutations of a file; how many were refused, read, or as they were."""

    @seed(0)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations(what.content))
    def once(content: bytes) -> None:
        try:
            outcome = what.read(content)
        except InterpError as error:
            said = str(error)
            assert said.strip(), content
            assert "\n" not in said, said
            assert len(said) < 2_000, said[:200]
            outcome = "refused"
        what.counts[outcome] += 1

    once()
    return what.counts


@st.composite
def mutations(draw: Any, content: bytes) -> bytes:
    """A file's content with one to four faults: of its bytes, or of the values that it holds."""
    for _ in range(draw(st.integers(1, 4))):
        structured = draw(st.booleans()) and _mutated_values(draw, content)
        content = structured or _mutated_bytes(draw, content)
    return content


def _mutated_bytes(draw: Any, content: bytes) -> bytes:
    at = draw(st.integers(0, len(content)))
    until = min(len(content), at + draw(st.sampled_from([0, 1, 2, 8, 64, 4_096])))
    how = draw(st.sampled_from(["flip", "cut", "cut off", "put", "double", "noise"]))
    if how == "flip" and at < len(content):
        bit = 1 << draw(st.integers(0, 7))
        return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :]
    if how == "cut":
        return content[:at] + content[until:]
    if how == "cut off":
        return content[:at]
    if how == "double":
        return content[:until] + content[at:]
    if how == "noise":
        return content[:at] + draw(st.binary(max_size=8)) + content[until:]
    return content[:at] + draw(st.sampled_from(HOSTILE)) + content[until:]


def _mutated_values(draw: Any, content: bytes) -> bytes | None:
    """JSON (or lines of it) in which a value is another one, or a key has gone; None of others."""
    lines = content.split(b"\n")
    number = draw(st.integers(0, len(lines) - 1))
    for whole in (True, False):
        text = content if whole else lines[number]
        try:
            tree = json.loads(text)
        except (ValueError, RecursionError):
            continue
        places = list(_places(tree)) if isinstance(tree, dict | list) else []
        if not places:
            return None
        holder, key = draw(st.sampled_from(places))
        if isinstance(holder, dict) and draw(st.booleans()):
            value = holder.pop(key)
            if draw(st.booleans()):
                holder[draw(st.sampled_from([f"{key}x", "", str(key)[:-1]]))] = value
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        changed = json.dumps(tree).encode()
        return changed if whole else b"\n".join([*lines[:number], changed, *lines[number + 1 :]])
    return None


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a tree, as what holds it and the key there; at most some thousand."""
    stack = [tree]
    while stack:
        holder = stack.pop()
        keys = holder.keys() if isinstance(holder, dict) else range(len(holder))
        for key in list(keys)[:200]:
            yield holder, key
            if isinstance(holder[key], dict | list):
                stack.append(holder[key])


# --- what nothing may do meanwhile ----------------------------------------------------------------


class Trespass(Exception):
    """A write outside the folder, or a call to the network."""


_WRITES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink",
           "os.truncate", "os.chmod", "shutil.rmtree"}  # fmt: skip
_NETWORK = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
_watch: list[Path] = []
_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watch:
        return
    if event in _NETWORK:
        raise Trespass(f"{event}{arguments[1:]}")
    if event == "open":
        path, _, flags = arguments
        writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        paths = [path] if writing else []
    else:
        paths = [a for a in arguments if isinstance(a, str | bytes)] if event in _WRITES else []
    folder = arguments[-1]
    if event in _WRITES and isinstance(folder, int) and folder > 2:  # relative to an open folder
        paths = [
            os.path.join(os.readlink(f"/proc/self/fd/{folder}"), os.fsdecode(p)) for p in paths
        ]
    for path in paths:
        if isinstance(path, str | bytes) and not _allowed(os.fsdecode(path)):
            raise Trespass(f"{event} {path!r}")


def _allowed(path: str) -> bool:
    real = os.path.realpath(path)
    return any(real == str(root) or real.startswith(f"{root}{os.sep}") for root in _watch) or (
        real.startswith(("/dev/", "/proc/")) or "__pycache__" in real
    )


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Nothing is written outside a folder while inside, and no socket is opened; a `Trespass` says
    what would have been. Temporary files are made in it."""
    if not _hooked:
        sys.addaudithook(_hook)
        _hooked.append(True)
    before, temporary = tempfile.tempdir, folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(temporary)
    _watch.append(folder.resolve())
    try:
        yield
    finally:
        _watch.pop()
        tempfile.tempdir = before
