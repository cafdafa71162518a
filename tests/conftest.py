"""One thread, no network, deterministic examples, and shapes checked wherever they are written.

Every jaxtyping annotation of the rooms that compute (`TYPED`) is checked at run time while
testing; the hook must be in place before these modules are imported.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # for child processes

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

torch.set_num_threads(1)
settings.register_profile("interp", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("interp")
TYPED = ["measures", "statistics", "significance", "families", "geometry", "readout", "weights"]
install_import_hook([f"interp.{room}" for room in TYPED], "beartype.beartype")
