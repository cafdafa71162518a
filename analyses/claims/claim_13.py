"""Not measured yet: see `CLAIM.missing`."""

from __future__ import annotations

from interp.experiments.claims import PaperClaim

CLAIM = PaperClaim(
    number=13,
    says="The mean shift on unrelated text names what was trained.",
    source="2510.13900 (abstract only)",
    measured="",
    threshold=float("nan"),
    reason="",
    missing="needs the readout of differences",
)
