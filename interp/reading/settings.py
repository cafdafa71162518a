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
    jacobian: str | None = None
    """Also read through TransformerLens's Jacobian lens, fitted on the unrelated texts under this
    condition's weights: base, or one that changes weights alone (none: leave it out; it takes a
    backward pass per text and 64 dimensions)."""
    variables: bool = True
    """Also follow the LoRA's own variables: what drives its singular directions, what they write,
    and whether the prompt moves along them."""
    strongest: int = Field(default=8, ge=1)
    """Directions of the LoRA whose drivers and writes are listed."""
    patchscope: bool = True
    """Also write mean differences into a neutral prompt and see what the model says."""
    carrier: str = "river -> river ; stone -> stone ; ?"
    """The neutral prompt; a vector takes the place of its last token's state."""
    steer: tuple[float, ...] = (1.0, 4.0)
    """Strengths at which mean differences are added to base while it writes on (none: write the
    flag alone)."""
    steer_layer: int | None = Field(default=None, ge=0)
    """Layer at which they are added (none: the middle one)."""
    steer_texts: int = Field(default=8, ge=1)
    """Unrelated texts that are written on."""
    steer_tokens: int = Field(default=12, ge=1)
    """Tokens written behind every text."""
    batch_size: int = Field(default=8, ge=1)
    """Queries per forward pass."""
