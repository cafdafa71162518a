"""What is measured: pure functions of tensors, one file per section of the definitions.

`output`: distributions of the next token. `state`: residual stream and what is written to it,
through the condition Gram. `attention`: patterns and scores of the query's own keys. Functions
give one value per query token (NaN where it is undefined); `interp.statistics` averages.
"""

from __future__ import annotations

import torch

from interp import noise

DTYPE_NOISE = {getattr(torch, name): size for name, size in noise.NOISE.items()}
"""`interp.noise.NOISE` by dtype; what it means for a measure is `interp.noise.floor`."""


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The dtype sums are made in: float64 (float32 where the device has none)."""
    return tensor.to(torch.float32 if tensor.device.type == "mps" else torch.float64)
