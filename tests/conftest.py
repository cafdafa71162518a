"""One thread, no network, deterministic examples, and shapes checked wherever they are written.

Every jaxtyping annotation of the rooms that compute (`TYPED`) is checked at run time while
testing; the hook must be in place before these modules are imported.
"""

from __future__ import annotations

import ast
import functools
import gc
import inspect
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for child processes

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from filelock import FileLock
from hypothesis import settings
from jaxtyping import _decorator, _import_hook, _storage

gc.disable()  # until all is imported: see `pytest_collection_finish`
torch.set_num_threads(1)
settings.register_profile("interp", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("interp")
TYPED = [
    "measures",
    "statistics",
    "moments",
    "rungs.maps",
    "significance",
    "families",
    "geometry",
    "readout",
    "influence",
    "weights",
    "reading",
]


class Outermost(_import_hook.JaxtypingTransformer):
    """Functions inside of functions that name no shape are left alone: their checks would be
    compiled again at every call of the outer one."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        inside = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        hints = [arg.annotation for arg in ast.walk(node.args) if isinstance(arg, ast.arg)]
        parts = [part for hint in (*hints, node.returns) if hint for part in ast.walk(hint)]
        shaped = any(isinstance(p, ast.Constant) and isinstance(p.value, str) for p in parts)
        return super().visit_FunctionDef(node) if shaped or not inside else node


def checked(function: Any = None, *, typechecker: Callable[..., Any]) -> Any:
    """As `jaxtyped`, in half its time: the arguments are checked once and not with the result
    again, and are not bound to their names, which shapes of ours never speak of."""
    if function is None:
        return functools.partial(checked, typechecker=typechecker)
    if not inspect.isfunction(function):
        return JAXTYPED(function, typechecker=typechecker)
    written = function.__annotations__
    function.__annotations__ = {
        name: _decorator._destring_annotation(hint, function.__globals__)
        for name, hint in written.items()
    }
    inside = typechecker(function)
    function.__annotations__ = written

    @functools.wraps(function)
    def outside(*args: Any, **kwargs: Any) -> Any:
        _storage.push_shape_memo({})
        try:
            return inside(*args, **kwargs)
        except BeartypeCallHintViolation as wrong:
            raise jaxtyping.TypeCheckError(str(wrong)) from wrong
        finally:
            _storage.pop_shape_memo()

    return outside


JAXTYPED = jaxtyping.jaxtyped
jaxtyping.jaxtyped = _decorator.jaxtyped = checked
_import_hook.JaxtypingTransformer = Outermost
jaxtyping.install_import_hook([f"interp.{room}" for room in TYPED], "beartype.beartype")


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder that `recipes/smollm2.py` makes, or a skip."""
    beside = Path(__file__).resolve().parent.parent / ".cache" / "smollm2"
    folder = Path(os.environ.get("INTERP_SMOLLM2", beside))
    if not (folder / "config.json").is_file():
        pytest.skip("SmolLM2 is not here: `make smollm2`, or set INTERP_SMOLLM2 to its folder")
    return str(folder)


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once("ladder", fill)`: a folder that a function fills, once for the workers of xdist
    together. Whoever changes something copies it."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def filled(name: str, fill: Callable[[Path], object]) -> Path:
        folder, whole = root / name, root / f"{name}.whole"
        with FileLock(root / f"{name}.lock"):
            if not whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # an attempt that failed
                folder.mkdir()
                fill(folder)
                whole.touch()
        return folder

    return filled


LONGEST = (
    "test_brute_force_architectures.py",
    "frames/test_brute_force_chat.py",
    "test_brute_force.py",
    "patching/test_reference.py",
    "test_capabilities.py",
    "validation/test_architectures.py",
)
"""Modules of minutes. What begins last should be short, so that no worker ends alone."""


def pytest_configure(config: pytest.Config) -> None:
    """xdist begins with the modules that have most tests; here it keeps to the order below."""
    config.option.loadscopereorder = False


def pytest_collection_finish() -> None:
    """Modules, classes and tests are never garbage, and are most of what there is to look through:
    no collection while they are made, and none looks at them later."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    rank = {here / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(LONGEST)))
