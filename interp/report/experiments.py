"""What an experiment leaves: its finding, its table, its figures; and what it prints.

if finished(config):
    return
...
conclude(config, finding, table, {"generalisation": figure})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import plotly.graph_objects as go

from interp.errors import RunError
from interp.finding import Finding, read_finding
from interp.plots import export
from interp.runs.files import write_atomic

if TYPE_CHECKING:
    import pandas as pd

FINDINGS_TABLE = "table.csv"
ROWS = 60
"""Most rows of it that are printed: of a longer one the first and the last."""
NOT_SETTINGS = {"out", "resume", "overwrite", "device", "batch_size"}
"""Fields of an experiment's configuration that leave its finding as it is."""


class Configuration(Protocol):
    """Of an experiment's configuration (a pydantic model), what is needed here."""

    @property
    def out(self) -> Path: ...
    @property
    def resume(self) -> bool: ...
    def model_dump(self, *, mode: str, exclude: Any) -> dict[str, Any]: ...


def finished(config: Configuration) -> bool:
    """Whether `out` holds the finding of these very settings and work is to be resumed.

    Prints its verdict then.
    """
    if not config.resume:
        return False
    try:
        finding = read_finding(config.out)
    except RunError:  # none yet, or damaged: it is made anew
        return False
    if finding.settings != _settings(config):
        return False
    print(f"{config.out} is finished. {finding.verdict.upper()} here: {finding.number}.")
    return True


def conclude(
    config: Configuration, finding: Finding, table: pd.DataFrame, figures: Mapping[str, go.Figure]
) -> None:
    """Write `table.csv`, `figures/` and last `finding.json` into `config.out`; print table, verdict
    and sentence."""
    out = config.out
    write_atomic(out / FINDINGS_TABLE, table.to_csv(index=False, float_format="%.7g").encode())
    files = export(figures, out / "figures", pictures=("png",))
    replace(finding, settings=_settings(config)).write(out)
    print(table.to_string(index=False, float_format="{:.3g}".format, max_rows=ROWS))
    print(f"\n{finding.claim}\n{finding.verdict.upper()} here: {finding.number}.")
    print(finding.sentence)
    print("\n".join(f"figure: {out / 'figures' / file}" for file in files if file.endswith("png")))


def _settings(config: Configuration) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude=NOT_SETTINGS)
