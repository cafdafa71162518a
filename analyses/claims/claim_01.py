"""Not measured yet: see `CLAIM.missing`."""

from __future__ import annotations

from interp.experiments.claims import PaperClaim

CLAIM = PaperClaim(
    number=1,
    says="A LoRA is close to one constant steering vector.",
    source="2507.08218 (abstract and introduction)",
    measured="",
    threshold=float("nan"),
    reason="",
    missing="needs the equivalence ladder",
)
