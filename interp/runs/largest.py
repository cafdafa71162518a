"""Which cell a sentence may call the largest: one that differs from its null, with its p.

    found = run.largest(run.rows("content_js", "pattern", pair, "last"))
    found.row, found.p              # of head L1H7; "p = 0.001"
    found.none("head")              # "no head differs from its null (p ≥ 0.11)", where none does

Where nothing was tested (no control in the run) the largest is named and called not tested; a value
that is rounding is no largest. Whoever names a head or a layer asks here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor as down
from math import log10
from typing import TYPE_CHECKING

import numpy as np

from interp.noise import NOISE, floor
from interp.significance import differs_from_null

if TYPE_CHECKING:
    import pandas as pd

UNTESTED = "not tested"


@dataclass(frozen=True)
class Largest:
    """The largest of the cells that may be named. `row` is None where none may; `tested`: whether
    the cells were tested against a null; `least`: the smallest p (NaN: none)."""

    row: pd.Series | None
    tested: bool
    least: float

    @property
    def p(self) -> str:
        """`p = 0.001`, or that it was not tested."""
        if not self.tested or self.row is None:
            return UNTESTED
        return f"p = {self.row['p_adjusted']:.2g}"

    def none(self, what: str, null: str = "its null") -> str:
        """Why no cell is named; `what` a cell is: `head`, `layer`."""
        if not self.tested:
            return f"no {what} has a value above rounding"
        return f"no {what} differs from {null} ({at_least(self.least)})"


def at_least(p: float) -> str:
    """`p ≥ 0.11` for a smallest p of 0.118: never rounded up; `p = 1` where all are."""
    if p >= 1:
        return "p = 1"
    step = 10.0 ** (down(log10(p)) - 1)
    return f"p ≥ {down(p / step * (1 + 1e-12)) * step:.2g}"


def standing(rows: pd.DataFrame, dtype: str) -> pd.DataFrame:
    """The rows of one measure that may be called large, in their order; `dtype`: the model's."""
    if rows.empty:
        return rows
    values, p = (rows[name].to_numpy(float, na_value=np.nan) for name in ("value", "p_adjusted"))
    least = floor(str(rows["measure"].iloc[0]), NOISE[dtype], values)
    return rows[differs_from_null(values, p, least) & (values == values)]


def largest(rows: pd.DataFrame, dtype: str) -> Largest:
    """Of rows of one measure of one pair."""
    kept = standing(rows, dtype)
    row = kept.loc[kept["value"].astype(float).idxmax()] if len(kept) else None
    p = rows["p_adjusted"].dropna()
    return Largest(row, bool(len(p)), float(p.min()) if len(p) else float("nan"))
