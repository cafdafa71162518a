"""What an experiment leaves: its finding, its table, its figures; and what it prints.

conclude(Path("runs/generalisation"), finding, table, {"generalisation": figure})
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from interp.finding import Finding
from interp.plots import export
from interp.results import write_atomic

if TYPE_CHECKING:
    import pandas as pd

TABLE = "table.csv"


def conclude(
    out: Path, finding: Finding, table: pd.DataFrame, figures: Mapping[str, go.Figure]
) -> None:
    """Write `table.csv`, `figures/` and last `finding.json` into a folder; print table, verdict and
    sentence."""
    write_atomic(out / TABLE, table.to_csv(index=False, float_format="%.7g").encode())
    files = export(figures, out / "figures", pictures=("png",))
    finding.write(out)
    print(table.to_string(index=False, float_format="{:.3g}".format))
    contrast = finding.contrast
    known = contrast.ci_low is not None and contrast.ci_high is not None
    interval = f" [{contrast.ci_low:.3g}, {contrast.ci_high:.3g}]" if known else ""
    print(
        f"\n{finding.claim}\n{finding.verdict.upper()} here: {contrast.what} "
        f"{contrast.value:.3g}{interval} (threshold {contrast.threshold:g}), n = {finding.n}."
    )
    print(finding.sentence)
    print("\n".join(f"figure: {out / 'figures' / file}" for file in files if file.endswith("png")))
