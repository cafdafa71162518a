"""What a run says of its weights, as figures and tables show it.

    of = run.weights                     # NotMeasured where `interp weights` was not run
    of.matrices("lora_0")[["name", "relative_norm", "stable_rank"]]

Torch-free; nothing here draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.names import Pair
from interp.runs.modules import labelled
from interp.runs.view import NotMeasured, Run

if TYPE_CHECKING:
    import pandas as pd

NORM, RANK, INTRUDERS = OF_UPDATES = ("relative_norm", "stable_rank", "intruder_dimensions")
SIDES = {"left": "what is written (output space)", "right": "what is read (input space)"}

PROMPT_NULLS = {
    "implicit_rank": ("chance", "shuffled"),
    "implicit_cosine": ("chance", "shuffled"),
    "implicit_overlap_left": ("chance", "random"),
    "implicit_overlap_right": ("chance",),
}
"""Measure of a prompt as an update of the weights -> what chance gives of it."""


@dataclass(frozen=True)
class Weighed:
    """The rows of weights alone, and their findings."""

    run: Run
    table: pd.DataFrame
    found: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> Weighed:
        """The run's weights; `NotMeasured` without any."""
        found = run.manifest.get("weights")
        if not found or not found.get("conditions"):
            raise NotMeasured("this run's weights were not weighed: use `interp weights`")
        table = run.table
        return cls(run, table[table["queries"].isna() & table["measure"].notna()], found)

    @property
    def conditions(self) -> list[str]:
        """Adapters and other weights, the headline's first, controls last."""
        names = [str(name) for name in self.found["conditions"]]
        first = self.run.headline or ()
        return sorted(names, key=lambda name: (self.is_control(name), name not in first))

    def is_control(self, name: str) -> bool:
        """Whether a condition is one of the null battery."""
        return self.run.manifest.get("conditions", {}).get(name, {}).get("kind") == "control"

    @property
    def shown(self) -> list[str]:
        """The one that figures show, and its control where there is one."""
        names = self.conditions
        return [names[0], *filter(self.is_control, names[1:])][:2]

    def rows(self, measure: str, condition: str | None = None) -> pd.DataFrame:
        """Rows of one measure."""
        own = self.table[self.table["measure"] == measure]
        return own if condition is None else own[own["condition"] == condition]

    def matrices(self, condition: str) -> pd.DataFrame:
        """One row per matrix and part of a fused one: `OF_UPDATES` (NaN where not measured),
        `site`, `layer`, and what `modules.named` adds."""
        keyed = ["site", "layer"]
        found = None
        for measure in OF_UPDATES:
            own = self.rows(measure, condition)
            own = own[own["head"].isna()].set_index(keyed)["value"].rename(measure).to_frame()
            found = own if found is None else found.join(own)
        assert found is not None
        single = found[found[RANK].notna()].reset_index()  # biases and norms have no rank
        return labelled(single)

    def heads(self, condition: str) -> pd.DataFrame:
        """One row per head of q, k, v and o: `relative_norm`, `stable_rank`, and its names."""
        keyed = ["site", "layer", "head"]
        norm, rank = (self.rows(measure, condition) for measure in (NORM, RANK))
        own = norm[norm["head"].notna()].set_index(keyed)["value"].rename(NORM).to_frame()
        other = rank[rank["head"].notna()].set_index(keyed)["value"].rename(RANK)
        return labelled(own.join(other).reset_index())

    def overlaps(self, side: str) -> pd.DataFrame:
        """One row per matrix (no parts) and pair: `value` beside `chance`, and the names."""
        keyed = ["condition", "reference", "site", "layer"]
        own, chance = (
            self.rows(f"subspace_overlap_{side}{end}").set_index(keyed)[["value"]]
            for end in ("", "_chance")
        )
        both = own.join(chance.rename(columns={"value": "chance"})).reset_index()
        return labelled(both[~both["site"].str.contains(":") & both["value"].notna()])

    def of_family(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of the family's pairs."""
        pairs = set(self.family)
        both = zip(frame["condition"], frame["reference"], strict=True)
        return frame.loc[[pair in pairs for pair in both]]

    @property
    def family(self) -> list[Pair]:
        """The compared pairs that are of one family, that of the shown condition; without families,
        those without a control."""
        pairs: list[Pair] = [(e["condition"], e["reference"]) for e in self.found["alike"]]
        families = self.run.families.values()
        home = next((set(own) for own in families if self.shown[0] in own), set())
        plain = [pair for pair in pairs if not any(self.is_control(str(name)) for name in pair)]
        return [pair for pair in pairs if set(pair) <= home] or plain


# --- prompts as updates --------------------------------------------------------------------------


class Prompts(NamedTuple):
    """The prompts that were weighed, that of the headline first, and the adapter they stand
    beside."""

    names: list[str]
    adapter: str | None


def prompts(run: Run) -> Prompts:
    """Whose updates a run has; `NotMeasured` without any."""
    found = run.manifest.get("weights") or {}
    if not found.get("prompts"):
        raise NotMeasured("no prompt was weighed as an update: use `interp weights`")
    first = run.headline or ()
    names = sorted(map(str, found["prompts"]), key=lambda name: name not in first)
    known = run.table.loc[run.table["measure"] == "implicit_overlap_left", "reference"].unique()
    adapters = sorted(map(str, known), key=lambda name: name not in first)
    return Prompts(names, adapters[0] if adapters else None)


def implicit_by_layer(run: Run, measure: str, prompt: str, adapter: str | None) -> pd.DataFrame:
    """`value`, `ci_low`, `ci_high` of a measure, mean over a block's projections."""
    own = run.table[(run.table["measure"] == measure) & (run.table["condition"] == prompt)]
    if "overlap" in measure:
        own = own[own["reference"] == adapter]
    columns = ["value", "ci_low", "ci_high"]
    return own.groupby("layer", as_index=False)[columns].mean().astype(float)
