"""One thread, no network, deterministic examples, and shapes checked wherever they are written.

Every jaxtyping annotation of the rooms that compute (`TYPED`) is checked at run time while
testing; the hook must be in place before these modules are imported.
"""

from __future__ import annotations

import ast
import os
import shutil
from collections.abc import Callable
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for child processes

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from jaxtyping import _import_hook, install_import_hook

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


_import_hook.JaxtypingTransformer = Outermost
install_import_hook([f"interp.{room}" for room in TYPED], "beartype.beartype")


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    rank = {here / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path, len(LONGEST)))
