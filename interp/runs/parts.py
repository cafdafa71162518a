"""What a run says of a LoRA without some of its parts, as the figure of ablations draws it.

    for condition in conditions(run):
        parts = Parts.of(run, condition)
        parts.modules[["name", "ablation_damage", "ablation_change"]]

Torch-free; nothing here draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.runs.modules import labelled
from interp.runs.view import Run

if TYPE_CHECKING:
    import pandas as pd

DAMAGE, KEPT, CHANGE = EFFECTS = ("ablation_damage", "ablation_kept", "ablation_change")
NEEDED = 0.05
"""Share of the LoRA's whole effect (its own KL from the condition without it) that a needed part's
absence costs: more than this. Elsewhere too 0.95 of an effect is all of it (the scorecard's
threshold for an emulation); a bound in nats would call all parts of a weak LoRA spare."""

TELLING = 0.1
"""A by-product's least share of the LoRA's internal change; the output does not need it."""

_BLOCK, EVERY = "block", "every"
NUMBERS = tuple(f"{m}{end}" for m in EFFECTS for end in ("", "_low", "_high"))


def needed(kept: Any) -> Any:
    """Whether a part is needed, from the effect kept without it. NaN is neither that nor spare."""
    return kept < 1 - NEEDED


def by_product(kept: Any, change: Any) -> Any:
    """Whether much internal change hangs on a part and little of the output: no needed part."""
    return (kept >= 1 - NEEDED) & (change >= TELLING)


def ablated_conditions(run: Run) -> list[str]:
    """The ablated conditions: those of the headline first."""
    rows = run.table[run.table["measure"] == DAMAGE]
    found = [str(name) for name in rows["condition"].unique()]
    first = [name for name in run.headline or () if name in found]
    return [*first, *(name for name in found if name not in first)]


@dataclass(frozen=True)
class Parts:
    """The ablations of one condition.

    `blocks`: rows of `ablation_kept` for `off` and `alone`, in layer order. `first`: the same for
    the largest directions of every module, with their number in the column `directions`.
    `modules`, `directions`: one row per module off or direction off, with columns `NUMBERS`, `n`,
    `layer`, `name` (`L3 up`), `kind` (`up`), and `group` (`mlp`, its place in the block).
    """

    condition: str
    blocks: dict[str, pd.DataFrame]
    first: pd.DataFrame
    modules: pd.DataFrame
    directions: pd.DataFrame

    @classmethod
    def of(cls, run: Run, condition: str, queries: str = "matched") -> Parts:
        """A part that was not measured is an empty frame."""
        table = run.table[run.table["measure"].isin(EFFECTS) & (run.table["queries"] == queries)]
        table = table[table["condition"] == condition]
        kept = table[table["measure"] == KEPT]
        block = kept[kept["site"] == _BLOCK].sort_values("layer")
        blocks = {p: block[block["position"] == p] for p in ("off", "alone")}
        first = kept[kept["site"] == EVERY]
        k = first["position"].str.extract(r"first (\d+)")[0].astype(int)
        first = first.assign(directions=k, position="first").sort_values("directions")
        single = labelled(_wide(table[~table["site"].isin((_BLOCK, EVERY))]))
        off = single["position"] == "off"
        return cls(
            condition,
            {p: frame for p, frame in blocks.items() if frame["value"].notna().any()},
            first,
            single[off],
            single[~off],
        )

    @property
    def effect(self) -> float:
        """KL of the whole LoRA from the condition without it, nats, from what is kept without its
        most damaging module; NaN where no module's absence does any damage."""
        known = self.modules[self.modules[KEPT] < 1]
        if known.empty:
            return float("nan")
        worst = known.loc[known[DAMAGE].idxmax()]
        return float(worst[DAMAGE] / (1 - worst[KEPT]))

    @property
    def kinds(self) -> list[str]:
        """The kinds of modules, in the order of the computation."""
        return list(dict.fromkeys(self.modules.sort_values("order", kind="stable")["kind"]))


def _wide(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per part, a column per measure and end of its interval."""
    keyed = frame.set_index(["site", "position"])
    found = keyed.loc[keyed["measure"] == DAMAGE, ["layer", "n"]]
    for measure in EFFECTS:
        part = keyed.loc[keyed["measure"] == measure, ["value", "ci_low", "ci_high"]]
        names = (measure, f"{measure}_low", f"{measure}_high")
        found = found.join(part.set_axis(names, axis=1).astype(float))
    return found.reset_index()
