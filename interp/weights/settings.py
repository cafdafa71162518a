"""Settings of `interp weights`. Torch-free, so that its `--help` answers at once."""

from __future__ import annotations

from pydantic import Field

from interp.config import OfRun, Seed


class Weighing(OfRun):
    """How do a run's adapters change the weights, how alike are they, and what does a prompt do?"""

    compare: tuple[str, ...] = ()
    """Conditions to compare (none: all that change the weights)."""
    heads: bool = True
    """Also measure q, k, v and o by head."""
    singular_values: int = Field(default=64, ge=1)
    """Largest number of singular values listed per update, in descending order."""
    overlap: int = Field(default=16, ge=1)
    """Largest number of singular directions compared between two updates."""
    intruders: bool = True
    """Count intruder dimensions; needs all singular vectors of the base's matrices."""
    top: int = Field(default=10, ge=1)
    """Leading singular vectors of the changed matrix that are tested as intruders."""
    epsilon: float = Field(default=0.5, gt=0, le=1)
    """A singular vector is an intruder if its cosine to each of the base's is below this."""
    largest: float = Field(default=5e6, gt=0)
    """Largest matrix, in entries, that is decomposed in full (2048 x 2048 takes ten seconds on a
    core); the update of a plain LoRA never needs it."""
    implicit: int = Field(default=64, ge=0)
    """Matched queries whose implicit updates by a prompt are stacked (0: none)."""
    draws: int = Field(default=40, ge=2)
    """Random draws behind every chance level of implicit updates."""
    seed: Seed = 0
    """Seed of the random draws."""
