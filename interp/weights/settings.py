"""Settings of `interp weights`. Torch-free, so that its `--help` answers at once."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Weighing(BaseModel):
    """What do a run's adapters do to the weights, how alike are they, and what does a prompt do?"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: Path
    """Folder of a finished run; its model and inputs are read again and must not have changed."""
    compare: tuple[str, ...] = ()
    """Only these conditions (none: all that change the weights)."""
    heads: bool = True
    """Also take q, k, v and o apart by head."""
    singular_values: int = Field(default=64, ge=1)
    """Most singular values that are listed of an update, the largest first."""
    overlap: int = Field(default=16, ge=1)
    """Most directions of two updates that are compared (fewer where one has fewer)."""
    intruders: bool = True
    """Count intruder dimensions, which takes every singular vector of the base's matrices."""
    top: int = Field(default=10, ge=1)
    """Singular vectors of the changed matrix that may be intruders, the largest first."""
    epsilon: float = Field(default=0.5, gt=0, le=1)
    """Cosine to every singular vector of the base's matrix below which one is an intruder."""
    largest: float = Field(default=5e6, gt=0)
    """Most entries of a matrix that is decomposed whole (2048 x 2048 takes ten seconds on a core);
    what a plain LoRA adds never is."""
    implicit: int = Field(default=64, ge=0)
    """Matched queries over which a prompt's implicit updates are stacked (0: none)."""
    draws: int = Field(default=40, ge=2)
    """Random directions and shuffles behind every band of chance of implicit updates."""
    seed: int = 0
    """Seed of these."""
    device: str | None = None
    """cpu, cuda, ... (none: the run's)."""
    resume: bool = False
    """Go on with an unfinished `interp weights` of this run."""
