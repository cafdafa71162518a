"""Not measured yet: see `CLAIM.missing`."""

from __future__ import annotations

from interp.experiments.claims import PaperClaim

CLAIM = PaperClaim(
    number=4,
    says="Between states under two prompts an affine map is the first that restores geometry and "
    "behaviour.",
    source="2606.03093 (abstract only)",
    measured="",
    threshold=float("nan"),
    reason="",
    missing="needs the equivalence ladder",
)
