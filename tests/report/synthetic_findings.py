"""Made-up findings of all eight experiments, and the folders they would leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from interp.finding import DecidingEstimate, Finding
from interp.plots import Curves, curves, export
from interp.report.experiments import FINDINGS_TABLE

HOSTILE = "</script><script>window.x=1</script> %{z} <b>$x$</b>"


def finding(point: int, name: str, value: float, low: float, high: float) -> Finding:
    contrast = DecidingEstimate(f"what {name} measures", value, low, high, 0.1)
    settings = {"model": "m", "adapter": "/a/lora_0", "seed": 0}
    words = (f"{name} is so.", f"It was seen of {name}.")
    return Finding(point, name, *words, contrast, 20 + point, name, "tiny", settings)


FINDINGS = [
    finding(6, "prompt_library", 0.05, 0.04, 0.06),
    finding(0, "golden_zone", 0.99, 0.98, 0.995),
    finding(1, "generalisation", 0.68, 0.61, 0.74),
    finding(3, "context_distortion", -0.04, -0.06, -0.02),
    finding(5, "internal_state", 0.11, 0.08, 0.14),
    replace(
        finding(2, "beyond_tokens", math.nan, math.nan, math.nan),
        claim=HOSTILE,
        sentence=HOSTILE,
        model=HOSTILE,
    ),
]


def table(hostile: str = "soft prompt") -> pd.DataFrame:
    """Two panels, two series, one undefined value."""
    rows = [
        (panel, series, x, x / 10, x / 10 - 0.05, x / 10 + 0.1, 26)
        for panel in ("matched", "held out")
        for series in (hostile, "random")
        for x in (1, 2, 4, 8)
    ]
    columns = ["panel", "series", "x", "value", "ci_low", "ci_high", "n"]
    frame = pd.DataFrame(rows, columns=columns).astype({"x": int})
    frame.loc[3, ["value", "ci_low", "ci_high"]] = math.nan
    return frame


def write(out: Path, findings: Sequence[Finding] = FINDINGS) -> list[str]:
    """Leave in OUT/NAME what `conclude` leaves, without pictures; returns the names."""
    for found in findings:
        look = Curves(title=f"Curve of {found.name}", x="tokens", y="strength", log_x=True)
        figures = {name: curves(table(HOSTILE), look, "caption") for name in ("a", found.figure)}
        export(figures, out / found.name / "figures", pictures=())
        table(HOSTILE).to_csv(out / found.name / FINDINGS_TABLE, index=False)
        found.write(out / found.name)
    return [found.name for found in findings]
