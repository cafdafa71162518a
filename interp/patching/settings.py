"""Settings of `interp patch`. Torch-free, so that its `--help` answers at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from interp.config import Bootstrapped, Computing, OfPair


class Patching(OfPair, Bootstrapped, Computing):
    """Patch one condition's internal states into the other's run: where are they as good?"""

    sites: tuple[Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"], ...] = (
        "resid_post",
        "attn_out",
        "mlp_out",
    )
    """Sites patched as a whole, layer by layer; `resid_post` is always among them."""
    head_sites: tuple[Literal["z", "pattern", "q", "k", "v"], ...] = ("z", "pattern")
    """Sites patched head by head, `z` always among them (none: write the flag alone; heads then
    get attribution only)."""
    pattern: Literal["content", "row"] = "content"
    """How a pattern is patched. `content`: only the distribution over query tokens; the target
    keeps its attention on the context. `row`: whole rows; needs equal context lengths."""
    segments: tuple[Literal["query", "template", "answer"], ...] = ("query", "template", "answer")
    """Segments at which whole sites are patched too: the query's text, the chat template's tokens
    after it, the tokens that predict the answer (none: write the flag alone)."""
    head_segments: tuple[Literal["query", "template", "answer"], ...] = ()
    """Segments at which each head's `z` is patched too; each costs as much as all tokens."""
    positions: int = Field(default=8, ge=0)
    """Query positions that are patched one by one (0: only all at once)."""
    contexts: bool = True
    """Exchange the keys and values of the context, where both conditions have equally many and they
    differ."""
    attribution: bool = True
    """Also estimate every patch to first order, and every head at every position; costs one
    backward pass per condition."""
    every: int = Field(default=1, ge=1)
    """Patch every n-th layer and the last one, which makes a deep model cheaper."""
    greedy: int = Field(default=16, ge=0)
    """Largest number of heads patched together in search of 90 % recovery (0: no search)."""
    ablate: tuple[Literal["layers", "modules", "directions"], ...] = (
        "layers",
        "modules",
        "directions",
    )
    """Parts of the LoRA that are ablated one by one (none: write the flag alone)."""
    limit: int | None = Field(default=None, ge=2)
    """Use only the first matched queries."""
    tolerance: float = Field(default=0.02, ge=0)
    """Largest mean damage (nats per answer) of a state that counts as interchangeable."""
    permutations: int = Field(default=999, ge=0)
    """Permutations behind every p-value."""
    memory: float = Field(default=0.25, gt=0)
    """Memory in GB for one forward pass; it sets the number of rows."""
