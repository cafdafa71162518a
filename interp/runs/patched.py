"""What `interp patch` found of a run: whose states were exchanged, and what that did.

    of = run.interchange                 # NotMeasured where `interp patch` was not run
    of.whole("damage", of.a, of.b, layer=3)

Torch-free; nothing here draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Patched:
    """A run that `interp patch` has been over: its two conditions, base, and its findings."""

    run: Run
    a: str
    b: str
    base: str
    found: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> Patched:
        """The run's interchange; `NotMeasured` where it has none."""
        found = run.manifest.get("interchange")
        if not found:
            raise NotMeasured("this run has no interchange: make it with `interp patch`")
        return cls(run, found["condition"], found["reference"], run.base or "base", found)

    @property
    def pair(self) -> tuple[str, str]:
        """Whose states were exchanged."""
        return self.a, self.b

    @property
    def moves(self) -> list[tuple[str, str]]:
        """Both directions: (source, target), whose state went into whose run."""
        return [(self.a, self.b), (self.b, self.a)]

    def rows(
        self,
        measure: str,
        source: str,
        target: str | None,
        site: str = "resid_post",
        position: str = "all",
    ) -> pd.DataFrame:
        """Rows of one measure of one move (`target` None: of one condition)."""
        return self.run.rows(measure, site, (source, target), position)

    @property
    def layers(self) -> list[int]:
        """The layers that were patched."""
        rows = self.rows("damage", self.a, self.b)
        return sorted(set(rows.loc[rows["head"].isna(), "layer"].astype(int)))

    def whole(self, measure: str, source: str, target: str, layer: int) -> pd.DataFrame:
        """The row of a whole layer of the residual stream."""
        rows = self.rows(measure, source, target)
        return rows[(rows["layer"] == layer) & rows["head"].isna()]

    @property
    def tolerance(self) -> float:
        """The damage (nats) up to which a state counts as equivalent."""
        return float(self.found["tolerance"])

    @property
    def depth(self) -> pd.Series | None:
        """The row of the state-equivalence depth, where it was measured."""
        frame = self.rows("state_equivalence_depth", *self.pair)
        return None if frame.empty else frame.iloc[0]
