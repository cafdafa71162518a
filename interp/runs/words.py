"""What sites and measures are called on axes and in titles.

title("content_js", rows)      # "content JS divergence [nats]"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.registry import MEASURES

if TYPE_CHECKING:
    import pandas as pd

SITES = {
    "resid_post": "residual stream",
    "attn_out": "attention output",
    "mixer_out": "mixer output",
    "mlp_out": "MLP output",
    "router": "mixture of experts",
    "z": "head outputs",
    "pattern": "attention patterns",
}


def units(frame: pd.DataFrame) -> str:
    """` [nats]`, or nothing for a plain number and where the name already says it."""
    plain = ("", "1", "cosine", "distance")
    found = [u for u in frame["units"].dropna().unique() if u not in plain]
    return f" [{found[0]}]" if found else ""


def title(measure: str, frame: pd.DataFrame) -> str:
    """The measure as an axis names it."""
    return MEASURES[measure].title + units(frame)
