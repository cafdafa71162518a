"""What `interp patch` found of a run: whose states were exchanged, and what that did.

    of = run.interchange                 # NotMeasured where `interp patch` was not run
    of.whole("damage", of.a, of.b, layer=3)

Torch-free; nothing here draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from interp.names import Head
from interp.runs.view import NotMeasured, Run
from interp.runs.words import units

if TYPE_CHECKING:
    import pandas as pd

_NUMBERS = ("value", "ci_low", "ci_high")
ESTIMATE, EXACT = "attribution", "answer_change"
"""The first-order change of the answer's log-odds, and that of the patch itself."""
UNDER = [[f"{name}_{side}" for name in _NUMBERS] for side in ("condition", "reference")]
"""Columns of a head's value and interval under both conditions."""
TOGETHER = {"measure": "recovery", "site": "z", "position": "all", "queries": "matched"}
"""What heads put in together are measured by, in words of the table."""
_PLACE = ["condition", "reference", "site", "layer", "head", "position"]


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

    @property
    def depth_words(self) -> str:
        """From which layer on the states do each other's work, in words; "" where not measured."""
        row, within = self.depth, f"within {self.tolerance:g} nats in both directions"
        if row is None:
            return ""
        if row["value"] != row["value"]:
            return f"Damage stays {within} from no layer on."
        high = "none" if row["ci_high"] >= self.run.n_layers else f"{row['ci_high']:.0f}"
        ends = f" [{row['ci_low']:.0f}, {high}]" if row["ci_low"] == row["ci_low"] else ""
        return f"Damage stays {within} from layer {row['value']:.0f}{ends} on."

    # --- first order beside exact ----------------------------------------------------------------

    def attributed(self, queries: str = "matched") -> pd.DataFrame:
        """Places that have both: `value` with its interval is exact, `estimate` first-order."""
        table = self.run.table
        table = table[(table["queries"] == queries) & table["value"].notna()]
        ends = {"value": "estimate", "ci_low": "estimate_low", "ci_high": "estimate_high"}
        first = table.loc[table["measure"] == ESTIMATE, [*_PLACE, *ends]].rename(columns=ends)
        return table[table["measure"] == EXACT].merge(first, on=_PLACE, how="inner")

    def directions(self, frame: pd.DataFrame) -> list[tuple[str, str]]:
        """(source, target) of these rows: between the two, into base, and from base."""
        into = [(side, self.base) for side in self.pair]
        usual = [*self.moves, *into, *((base, side) for side, base in into)]
        pairs = frame[["condition", "reference"]].drop_duplicates().astype(str)
        found = list(pairs.itertuples(index=False, name=None))
        return [*(m for m in usual if m in found), *(m for m in found if m not in usual)]

    # --- single heads ----------------------------------------------------------------------------

    @property
    def searches(self) -> list[tuple[dict[str, Any], pd.DataFrame]]:
        """Greedy searches that put heads in, each with its rows of recovery: by the number of
        `heads`, with the `head` added last."""
        entries = [entry for entry in self.found.get("greedy") or [] if entry["heads"]]
        return [(entry, _rows_of(entry)) for entry in entries]

    def under_both(self, finding: Mapping[str, Any]) -> tuple[pd.DataFrame, str]:
        """Heads of a ranking that have an effect under both conditions (columns `UNDER`; whether
        `head` is among the `strongest` of both, the condition, the reference, neither), and the
        unit of these effects."""
        lost = finding["by"] == "lost"
        moves = [(self.base, c) if lost else (c, self.base) for c in self.pair]
        measure = "damage" if lost else "recovery"
        rows = [self.run.rows(measure, "z", move, "all", heads=True) for move in moves]
        here, there = (
            frame.set_index(["layer", "head"])[list(_NUMBERS)].set_axis(own, axis=1)
            for frame, own in zip(rows, UNDER, strict=True)
        )
        heads = here.join(there, how="inner").dropna(subset=[own[0] for own in UNDER])
        first, second = (finding["under"][condition] for condition in self.pair)
        kinds = {(True, True): "both", (True, False): "condition", (False, True): "reference"}
        names = [str(Head(int(layer), int(head))) for layer, head in heads.index]
        strongest = [kinds.get((name in first, name in second), "neither") for name in names]
        return heads.astype(float).assign(head=names, strongest=strongest), units(rows[0])


def _rows_of(entry: Mapping[str, Any]) -> pd.DataFrame:
    import pandas as pd

    numbers = {"value": "recovery", "ci_low": "ci_low", "ci_high": "ci_high"}
    frame = pd.DataFrame({name: entry[key] for name, key in numbers.items()}, dtype=float)
    return frame.assign(
        heads=np.arange(1, len(frame) + 1),
        head=entry["heads"],
        n=entry["n"],
        p_adjusted=np.nan,
        **TOGETHER,
        condition=entry["source"],
        reference=entry["target"],
    )
