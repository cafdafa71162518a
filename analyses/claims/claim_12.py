"""Not measured yet: see `CLAIM.missing`."""

from __future__ import annotations

from interp.experiments.claims import PaperClaim

CLAIM = PaperClaim(
    number=12,
    says="The top singular vectors of a LoRA's update detect its behaviour.",
    source="2508.00161 (abstract only)",
    measured="",
    threshold=float("nan"),
    reason="",
    missing="needs the LoRA's own variables",
)
