"""What `interp edges` found of a run: which node's output into which input carries a condition.

    of = run.edges                      # NotMeasured where `interp edges` was not run
    of.strongest(("prompt", "base"))[["edge", "estimate", "exact"]]

Torch-free; nothing here draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.runs.view import NotMeasured, Run, of_pair

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ESTIMATED, PATCHED, FLOW = "edge_attribution", "edge_effect", "edge_flow"
"""Measures: an edge to first order; the same, patched exactly; the sizes of all edges from one
layer into another."""

_NUMBERS = ("value", "ci_low", "ci_high")


@dataclass(frozen=True)
class FoundEdges:
    """A run that `interp edges` has been over: its conditions, and its findings."""

    run: Run
    table: pd.DataFrame
    found: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> FoundEdges:
        """The run's edges; `NotMeasured` where it has none."""
        found = run.manifest.get("edges")
        if not found:
            raise NotMeasured("this run has no edges: make them with `interp edges`")
        table = run.table
        return cls(run, table[table["measure"].isin([ESTIMATED, PATCHED, FLOW])], found)

    @property
    def pair(self) -> tuple[str, str]:
        """The two conditions."""
        return str(self.found["condition"]), str(self.found["reference"])

    @property
    def base(self) -> str:
        """The condition that changes nothing."""
        return self.run.base or "base"

    @property
    def conditions(self) -> list[str]:
        """The pair, then what stands beside it."""
        return [*self.pair, *map(str, self.found["control"])]

    def move(self, condition: str, by: str) -> tuple[str, str]:
        """(source, target): what a condition wins in base's run, or what it loses to base."""
        return (condition, self.base) if by == "won" else (self.base, condition)

    def rows(self, measure: str, move: tuple[str, str]) -> pd.DataFrame:
        """Rows of one measure of one move."""
        return of_pair(self.table[self.table["measure"] == measure], move)

    def strongest(self, move: tuple[str, str]) -> pd.DataFrame:
        """The edges of a move by the size of their estimate: `edge`, `estimate` with its interval,
        and `exact` with its own, where it was patched."""
        named = [dict(zip(_NUMBERS, (n, f"{n}_low", f"{n}_high"), strict=True))
                 for n in ("estimate", "exact")]  # fmt: skip
        first, exact = (
            self.rows(measure, move)[["site", *_NUMBERS]].rename(columns=names | {"site": "edge"})
            for measure, names in zip((ESTIMATED, PATCHED), named, strict=True)
        )
        both = first.merge(exact, on="edge", how="left")
        return both.sort_values("estimate", key=abs, ascending=False, ignore_index=True)

    def flow(self, move: tuple[str, str]) -> np.ndarray:
        """`[receiver's layer, sender's layer]`: sums of the sizes of all edges, NaN where there is
        none; the last row is of the logits, the first column of what enters the first block."""
        import numpy as np

        depth, rows = self.run.n_layers, self.rows(FLOW, move)
        into = rows["layer"].fillna(depth).to_numpy(int)
        out = rows["position"].replace("embed", "-1").to_numpy(int) + 1
        found = np.full((depth + 1, depth + 1), np.nan)
        found[into, out] = rows["value"].to_numpy(float)
        return found
