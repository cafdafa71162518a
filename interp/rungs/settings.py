"""Settings of `interp ladder`. Torch-free, so that its `--help` answers at once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from interp.config import Bootstrapped, Computing, OfPair


class Ladder(OfPair, Bootstrapped, Computing):
    """Is the difference of two conditions' states one vector, one map, or more? Which is enough?"""

    maps: tuple[Literal["base", "pair", "within", "nulls"], ...] = (
        "base",
        "pair",
        "within",
        "nulls",
    )
    """Maps that are fitted. `base`: from base to either condition; `pair`: from either to the
    other; `within`: to the next member of its own family (seeds, wordings); `nulls`: the same with
    neutral text or a random LoRA in a condition's place."""
    ranks: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4, 8, 16)
    """Ranks of the low-rank rungs; those not below the model's width are left out."""
    segments: tuple[Literal["query", "template", "answer"], ...] = ("query", "template", "answer")
    """Segments that get maps of their own too, where the run has them; each costs as much as all
    tokens (none: write the flag alone)."""
    steer: bool = True
    """Also let base's mapped states go on in base's own run: does the map steer base to what the
    condition says?"""
    every: int = Field(default=1, ge=1)
    """Fit maps at every n-th layer and the last one, which makes a deep model cheaper."""
    margin: float = Field(default=0.1, gt=0)
    """A rung suffices where the interval of its recovery stays within this of full interchange."""
    tolerance: float = Field(default=0.02, ge=0)
    """Largest mean KL (nats per answer) of an unmapped state that leaves nothing to recover."""
    limit: int | None = Field(default=None, ge=4)
    """Use only the first queries of either group."""
    scored: int | None = Field(default=None, ge=2)
    """Score only the first queries of each group that no map was fitted on: scoring is what takes
    time, and fitting what takes queries."""
    memory: float = Field(default=0.25, gt=0)
    """Memory in GB for one forward pass; it sets the number of rows."""
    sums: float = Field(default=1.0, gt=0)
    """Memory in GB for the sums that maps are fitted from; it sets how many layers are fitted in
    one pass."""
