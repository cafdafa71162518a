"""Settings of `interp validate`. Torch-free, so that its `--help` answers at once."""

from __future__ import annotations

from typing import Literal

from interp.config import Loading


class Validating(Loading):
    """Is the instrument right on this machine, or with your model? Exits 1 if a check fails."""

    model: str | None = None
    """Check this model (folder or hub id) instead of the bundled one and nine tiny ones."""
    adapter: str | None = None
    """Also mount this LoRA on --model."""
    architectures: bool = False
    """Show instead what can be measured on a tiny model of every architecture that is tested."""
    only: tuple[str, ...] = ()
    """Only checks (with --architectures: architectures) whose name contains one of these."""
    device: str = "auto"
    """Device of --model, cpu or cuda; everything else runs on the CPU."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of --model; bounds are wider in half precision."""
