"""Settings of `interp edges`. Torch-free, so that its `--help` answers at once."""

from __future__ import annotations

from pydantic import Field

from interp.config import Bootstrapped, OfPair


class EdgeTracing(OfPair, Bootstrapped):
    """Whose output into whose input carries each condition, and are these edges the same?"""

    control: str | None = None
    """Condition beside the pair whose edges are no finding (none: that of the run's null pair)."""
    top: int = Field(default=100, ge=1)
    """Strongest edges of each condition that are compared with the other's."""
    exact: int = Field(default=20, ge=0)
    """Strongest edges of each move that are also patched exactly (0: none)."""
    limit: int | None = Field(default=None, ge=2)
    """Use only the first matched queries."""
    permutations: int = Field(default=999, ge=0)
    """Permutations of edges behind every p-value."""
    memory: float = Field(default=0.25, gt=0)
    """Memory in GB for one forward pass; it sets the number of rows."""
