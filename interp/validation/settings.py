"""Settings of `interp validate`. Torch-free, so that its `--help` answers at once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Validating(BaseModel):
    """Is the instrument right on this machine, or with your model? Exits 1 if a check fails."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str | None = None
    """Check this model (folder or hub id) instead of the bundled one and nine tiny ones."""
    adapter: str | None = None
    """Also mount this LoRA on --model."""
    allow_other_base: bool = False
    """Accept an adapter made for a model of another name."""
    only: tuple[str, ...] = ()
    """Only checks whose name contains one of these."""
    device: str = "auto"
    """cpu, cuda, ... of --model; everything else runs on the CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of --model; bounds are wider in half precision."""
    revision: str | None = None
    """Of --model on the hub."""
    trust_remote_code: bool = False
    """Run code that comes with --model."""
