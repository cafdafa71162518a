"""Settings of `interp read`. Torch-free, so that its `--help` answers at once."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from interp.config import Bootstrapped, OfRun


class DifferenceReading(OfRun, Bootstrapped):
    """What do the differences between a run's conditions say in words?"""

    words: tuple[str, ...] = ()
    """Task words whose ranks are reported, each by its first token (none: the tokens that more
    queries are answered with by both sides of the headline than by base; chosen on one half of
    the queries and scored on the other)."""
    texts: Path | None = None
    """JSONL file of unrelated texts (none: those that come with interp)."""
    limit: int = Field(default=64, ge=2)
    """Use only the first matched queries, and as many unrelated texts."""
    every: int = Field(default=1, ge=1)
    """Read every n-th layer and the last one."""
    top: int = Field(default=10, ge=1)
    """Tokens listed of every reading."""
    directions: int = Field(default=2, ge=0)
    """Leading directions of the differences, over queries, that are read beside the mean."""
    variables: bool = True
    """Also follow the LoRA's own variables: what drives its singular directions, what they write,
    and whether the prompt moves along them."""
    strongest: int = Field(default=8, ge=1)
    """Directions of the LoRA whose drivers and writes are listed."""
    batch_size: int = Field(default=8, ge=1)
    """Queries per forward pass."""
    resume: bool = False
    """Go on with an unfinished `interp read` of this run."""
