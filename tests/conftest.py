"""One thread, no network, deterministic examples, and shapes checked wherever they are written.

Every jaxtyping annotation of the rooms that compute (`TYPED`) is checked at run time while
testing; the hook must be in place before these modules are imported.
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for child processes

import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

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
install_import_hook([f"interp.{room}" for room in TYPED], "beartype.beartype")


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The folder that `recipes/smollm2.py` makes, or a skip."""
    beside = Path(__file__).resolve().parent.parent / ".cache" / "smollm2"
    folder = Path(os.environ.get("INTERP_SMOLLM2", beside))
    if not (folder / "config.json").is_file():
        pytest.skip("SmolLM2 is not here: `make smollm2`, or set INTERP_SMOLLM2 to its folder")
    return str(folder)
