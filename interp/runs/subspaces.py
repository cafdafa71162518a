"""What `interp subspace` found of a run: how many dimensions of a state do its work.

    of = run.subspaces                  # NotMeasured where `interp subspace` was not run
    of.curve("learned", ("prompt", "base"), layer=3)[["dimension", "value"]]

Torch-free; nothing here draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

SUBSPACE_KINDS = LEARNED, PRINCIPAL, ROTATION, SHUFFLED, DIFFERENCE, CROSSED = (
    "learned",
    "principal",
    "random_rotation",
    "shuffled",
    "random_difference",
    "crossed",
)
"""What is put in: the source's state along the learned subspace; along the leading directions of
the difference; along a random subspace; another query's source state, along a subspace that was
learned on such; within the learned subspace, a step as long along another query's difference; the
source's state along the subspace that was learned for the other condition."""

FULL, APART = "full", "apart"
"""The whole state of the source; and nothing of it."""

SIZE = "subspace_dimension"
"""The measure of the smallest dimension that is enough."""


def measure_of_kind(kind: str) -> str:
    """The name in a run's table of the recovery by one kind of subspace."""
    return "subspace_recovery" if kind == LEARNED else f"subspace_recovery_{kind}"


@dataclass(frozen=True)
class FoundSubspaces:
    """A run that `interp subspace` has been over: its two conditions, and its findings."""

    run: Run
    found: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> FoundSubspaces:
        """The run's subspaces; `NotMeasured` where it has none."""
        found = run.manifest.get("subspaces")
        if not found or not found["moves"]:
            raise NotMeasured("this run has no subspaces: make them with `interp subspace`")
        return cls(run, found)

    @property
    def pair(self) -> tuple[str, str]:
        """Whose states were exchanged."""
        return str(self.found["condition"]), str(self.found["reference"])

    @property
    def moves(self) -> list[tuple[str, str]]:
        """(source, target): whose state went into whose run."""
        return [(str(source), str(target)) for source, target in self.found["moves"]]

    @property
    def layers(self) -> list[int]:
        """The layers at which states were exchanged."""
        return [int(layer) for layer in self.found["layers"]]

    @property
    def dimensions(self) -> list[int]:
        """Dimensions that were compared, ascending."""
        return [int(k) for k in self.found["dimensions"]]

    def rows(
        self, measure: str, move: tuple[str, str], layer: int, queries: str = "matched"
    ) -> pd.DataFrame:
        """Rows of one measure of one move at one layer."""
        rows = self.run.rows(measure, "resid_post", move, None, queries)
        return rows[rows["layer"] == layer]

    def curve(
        self, kind: str, move: tuple[str, str], layer: int, queries: str = "matched"
    ) -> pd.DataFrame:
        """Recovery by `dimension`, ascending; empty where the kind was not measured."""
        rows = self.rows(measure_of_kind(kind), move, layer, queries)
        rows = rows[rows["position"] != "all"]
        return rows.assign(dimension=rows["position"].astype(int)).sort_values("dimension")

    def whole(self, move: tuple[str, str], layer: int, queries: str = "matched") -> pd.DataFrame:
        """The row of the whole state."""
        return self.rows(measure_of_kind(FULL), move, layer, queries)

    def size(self, move: tuple[str, str], layer: int, queries: str = "matched") -> pd.DataFrame:
        """The row of the smallest dimension that is enough."""
        return self.rows(SIZE, move, layer, queries)
