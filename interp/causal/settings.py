"""Settings of `interp patch`. Torch-free, so that its `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Patching(BaseModel):
    """Put one condition's internal states into the other's run: from where on are they as good?"""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    run: Path
    """Folder of a finished run; its model and inputs are read again and must not have changed."""
    condition: str | None = None
    """The first of the two conditions (none: that of the run's headline)."""
    reference: str | None = None
    """The second (none: the reference of the run's headline)."""
    sites: tuple[Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"], ...] = (
        "resid_post",
        "attn_out",
        "mlp_out",
    )
    """Sites replaced as a whole, layer by layer; `resid_post` always is."""
    head_sites: tuple[Literal["z", "pattern", "q", "k", "v"], ...] = ("z", "pattern")
    """Sites replaced head by head, `z` always among them (none: write the flag alone; heads then
    have their attribution and nothing else)."""
    pattern: Literal["content", "row"] = "content"
    """What of a pattern moves: how it divides its attention within the query, the mass before the
    query staying the target's own; or whole rows (both need as many tokens before the query)."""
    segments: tuple[Literal["query", "template", "answer"], ...] = ("query", "template", "answer")
    """Segments at which the whole sites are replaced too, those that the run has: the query's text,
    the chat template's tokens after it, the tokens that predict the answer (none: write the flag
    alone)."""
    head_segments: tuple[Literal["query", "template", "answer"], ...] = ()
    """Segments at which each head's `z` is replaced too, which costs as much as at all tokens."""
    positions: int = Field(default=8, ge=0)
    """How many query positions are replaced one by one (0: only all at once)."""
    contexts: bool = True
    """Exchange the keys and values of what precedes the query, where the two conditions have as
    many of them and not the same."""
    attribution: bool = True
    """Estimate every change of the answer to first order too, and that of every head at every
    position: the price of one backward pass per condition."""
    every: int = Field(default=1, ge=1)
    """Patch only every so many layers, the last always among them: a deep model at less cost."""
    greedy: int = Field(default=16, ge=0)
    """Most heads that are patched together in search of 90 % recovery (0: no search)."""
    ablate: tuple[Literal["layers", "modules", "directions"], ...] = (
        "layers",
        "modules",
        "directions",
    )
    """Parts of the LoRA that are switched off one by one (none: write the flag alone)."""
    limit: int | None = Field(default=None, ge=2)
    """Use only the first matched queries."""
    tolerance: float = Field(default=0.02, ge=0)
    """Largest mean damage (nats per answer) of a state that counts as interchangeable."""
    bootstrap: int = Field(default=200, ge=0)
    """Bootstrap replicates behind every interval."""
    permutations: int = Field(default=999, ge=0)
    """Rearrangements behind every p-value."""
    memory: float = Field(default=0.25, gt=0)
    """Budget in GB for one forward pass, from which its number of rows follows."""
    device: str | None = None
    """cpu, cuda, ... (none: the run's)."""
    resume: bool = False
    """Go on with an unfinished `interp patch` of this run."""
