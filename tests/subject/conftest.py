"""A tiny Llama, and a sound LoRA on its queries; a module may have fixtures of its own instead."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_models import MODULES, save_adapter, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("llama", tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def sound(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "sound"
    return Path(save_adapter(model, folder, MODULES["llama"]["q"]))


@pytest.fixture
def adapter(sound: Path, tmp_path: Path) -> Path:
    """A sound adapter of one's own, to be broken."""
    return Path(shutil.copytree(sound, tmp_path / "adapter"))
