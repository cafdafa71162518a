"""How large the rooms of `interp/` are, and which names stand for two things.

    python recipes/house.py            # rooms, long functions, long files, double names, flags
    python recipes/house.py --check    # only double names: one line each, and exit code 1

A name is double where two modules define it (a class, a function or a constant at module level,
without a leading underscore). Imports and re-exports do not count.
"""

from __future__ import annotations

import argparse
import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parent.parent / "interp"

LONG_FUNCTION, LONG_FILE = 60, 300
"""Lines above which a function or a file is listed."""

EXCEPTIONS = {
    "load": "a lab, public as interp.load, and the verified subject in it, interp.subject.load",
    "MODEL": "the folder of a bundled model, read as organism.MODEL and toy.MODEL",
    "head_view": "the data of one head, public as interp.head_view, and its figure",
    "QUERIES": "the bundled model's folder, read as organism.QUERIES, and the file of a run",
}
"""Names that two modules may define, and why."""

Modules = dict[str, ast.Module]
"""Path of a module, relative to the house -> its syntax tree."""


def modules(house: Path) -> Modules:
    """The syntax trees of all modules."""
    files = sorted(house.rglob("*.py"))
    return {str(f.relative_to(house)): ast.parse(f.read_text(encoding="utf-8")) for f in files}


def defined(tree: ast.Module) -> set[str]:
    """The public names that a module defines itself."""
    names: set[str] = set()
    for statement in _top_level(tree.body):
        match statement:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(statement.name)
            case ast.Assign():
                names |= {name for target in statement.targets for name in _targets(target)}
            case ast.AnnAssign():
                names |= set(_targets(statement.target))
    return {name for name in names if not name.startswith("_")}


def _top_level(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        yield statement
        for block in ("body", "orelse", "handlers", "finalbody"):
            if isinstance(statement, ast.If | ast.Try | ast.ExceptHandler):
                yield from _top_level(getattr(statement, block, []))


def _targets(target: ast.expr) -> Iterator[str]:
    if isinstance(target, ast.Name):
        yield target.id
    elif isinstance(target, ast.Tuple | ast.List):
        for element in target.elts:
            yield from _targets(element)


def doubles(found: Modules) -> dict[str, list[str]]:
    """The names that more than one module defines, and these modules."""
    homes: dict[str, list[str]] = defaultdict(list)
    for module, tree in found.items():
        for name in defined(tree):
            homes[name].append(module)
    return {name: homes[name] for name in sorted(homes) if len(homes[name]) > 1}


def check(house: Path, exceptions: dict[str, str] = EXCEPTIONS) -> list[str]:
    """A line per double name that is no exception, and per exception that is not double."""
    double = doubles(modules(house))
    lines = [
        f"{name} is defined in {' and '.join(homes)}"
        for name, homes in double.items()
        if name not in exceptions
    ]
    idle = sorted(exceptions.keys() - double.keys())
    return [*lines, *(f"{name} is an exception and is not double" for name in idle)]


def rooms(house: Path) -> list[str]:
    """Lines and files of every room: a folder of the house, or a file at its top."""
    lines, files = defaultdict[str, int](int), defaultdict[str, int](int)
    for file in house.rglob("*.py"):
        room = file.relative_to(house).parts[0]
        lines[room] += _length(file)
        files[room] += 1
    ordered = sorted(lines, key=lambda room: -lines[room])
    total = f"{sum(lines.values()):7}  {sum(files.values()):4}  together"
    return [*(f"{lines[room]:7}  {files[room]:4}  {room}" for room in ordered), total]


def _length(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def long_functions(found: Modules) -> list[str]:
    """Functions over `LONG_FUNCTION` lines, the longest first."""
    sizes = [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{module}: {node.name}")
        for module, tree in found.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return _longest(sizes, LONG_FUNCTION)


def long_files(house: Path) -> list[str]:
    """Files over `LONG_FILE` lines, the longest first."""
    sizes = [(_length(file), str(file.relative_to(house))) for file in house.rglob("*.py")]
    return _longest(sizes, LONG_FILE)


def _longest(sizes: list[tuple[int, str]], most: int) -> list[str]:
    return [f"{size:7}  {what}" for size, what in sorted(sizes, reverse=True) if size > most]


def flags() -> list[str]:
    """How many flags (and words without a name) every command of the command line takes."""
    from interp.cli import COMMANDS, choose
    from interp.cli.commands import MORE
    from interp.config import FILE_ONLY

    sources = [HOUSE / "cli" / file for file in ("commands.py", "views.py")]
    nodes = [node for file in sources for node in ast.parse(file.read_text(encoding="utf-8")).body]
    functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
    counted = []
    for name in COMMANDS:
        if name in MORE:
            count = len(set(MORE[name].settings.model_fields) - FILE_ONLY)
        else:
            command: Any = choose(name.split())[0]
            count = _flags(functions[command.__name__], functions, command.__globals__, FILE_ONLY)
        counted.append(f"{count:7}  interp {name}")
    return counted


def _flags(
    command: ast.FunctionDef,
    functions: dict[str, ast.FunctionDef],
    names: dict[str, object],
    without: set[str],
) -> int:
    """The fields of the settings model that a command reads, or the arguments of its function."""
    inner = {node.name: node for node in ast.walk(command) if isinstance(node, ast.FunctionDef)}
    for node in ast.walk(command):
        match node:
            case ast.Call(func=ast.Name(id="read_flags"), args=[ast.Name(id=model), *_]):
                return len(set(names[model].model_fields) - without)  # type: ignore[attr-defined]
            case ast.Call(func=ast.Name(id="parsed"), args=[ast.Name(id=function), *_]):
                return len({**functions, **inner}[function].args.args)
    raise ValueError(f"{command.name} reads no flags")


def report(house: Path) -> str:
    """The whole account as plain text."""
    found = modules(house)
    double = [f"  {name}: {', '.join(homes)}" for name, homes in doubles(found).items()]
    parts = {
        "lines, files, room": rooms(house),
        f"functions over {LONG_FUNCTION} lines": long_functions(found),
        f"files over {LONG_FILE} lines": long_files(house),
        f"{len(double)} names that more than one module defines": double,
        "flags of each command": flags(),
    }
    return "\n\n".join("\n".join([title, *(lines or ["  none"])]) for title, lines in parts.items())


def main(words: Sequence[str] | None = None) -> int:
    """Print the account, or with --check the double names; returns the exit code."""
    parser = argparse.ArgumentParser(description="How large the rooms of interp/ are.")
    parser.add_argument("--check", action="store_true", help="fail where a name is defined twice")
    if not parser.parse_args(words).check:
        print(report(HOUSE))
        return 0
    lines = check(HOUSE)
    print("\n".join(lines) if lines else "no name is defined twice")
    return 1 if lines else 0


if __name__ == "__main__":
    raise SystemExit(main())
