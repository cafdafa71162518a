"""Settings of `interp subspace`. Torch-free, so that its `--help` answers at once."""

from __future__ import annotations

from pydantic import Field

from interp.config import Bootstrapped, OfPair


class Subspaces(OfPair, Bootstrapped):
    """In how few dimensions does one condition's state act as the whole of it in another's run?"""

    layers: tuple[int, ...] = ()
    """Layers whose residual stream is exchanged (none: those at a quarter, half and three quarters
    of the depth)."""
    dimensions: tuple[int, ...] = (1, 2, 4, 8)
    """Dimensions of the subspaces, ascending; 0 and all of them are always compared."""
    steps: int = Field(default=100, ge=1)
    """Largest number of gradient steps behind a learned subspace."""
    patience: int = Field(default=20, ge=1)
    """Steps without a new least divergence, on a quarter of the queries that learning sees, after
    which it stops."""
    rate: float = Field(default=1.0, gt=0)
    """Size of a gradient step (Adam's, times one over the root of the width)."""
    draws: int = Field(default=4, ge=1)
    """Random subspaces of each dimension."""
    margin: float = Field(default=0.1, ge=0)
    """Largest recovery that a subspace may miss of the whole state's and still count as enough."""
    limit: int | None = Field(default=None, ge=4)
    """Use only the first queries of each group."""
    tolerance: float = Field(default=0.02, ge=0)
    """Mean divergence (nats per answer) up to which two conditions say the same, so that there is
    nothing to recover."""
    memory: float = Field(default=0.25, gt=0)
    """Memory in GB for one forward pass; it sets the number of rows."""
