"""The terms of the equation of influence, as a waterfall draws them.

    for term in terms(run, ("prompt", "base")):
        print(term.name, term.value)          # embedding, attention 0, MLP 0, ..., total

Heads and the attention's bias of a layer are one term; terms after the layers are left out where 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from interp.names import OUTPUT, Pair
from interp.runs.view import Run

if TYPE_CHECKING:
    import pandas as pd

_WHOLE = {
    "mixer_out": ("mixer", "attention"),
    "mlp_out": ("MLP", "MLP"),
    "per_layer_out": ("per-layer input", "MLP"),
}
"""Sites that a block writes as a whole -> the bar's name, and the kind that it is drawn as."""

LATE = ("steering", "norm", "softcap", "logit_bias")
OTHER, TOTAL = "embedding, norm and the like", "total"


class Term(NamedTuple):
    """One bar: a part of the change of the logit."""

    name: str
    kind: str
    layer: int | None
    value: float


def influence_pairs(run: Run) -> list[Pair]:
    """Both sides of the headline against base, then the headline itself; else the main pairs."""
    pair, main = run.headline, run.main_pairs
    base = run.base
    sides = [p for p in main if pair and p[0] in pair and p[1] == base]
    return list(dict.fromkeys([*sides, pair])) if pair else main[:3]


def terms(run: Run, pair: Pair, queries: str = "matched") -> list[Term]:
    """The terms of a pair by layer, heads summed with the attention's bias; the total last."""
    frame = run.table
    frame = frame[(frame["measure"] == "influence") & (frame["queries"] == queries)]
    frame = frame[(frame["condition"] == pair[0]) & (frame["reference"] == pair[1])]
    frame = frame[frame["position"] == "last"]
    found = [Term("embedding", OTHER, None, v) for v in _values(frame, "embed")]
    for layer in sorted({int(x) for x in frame["layer"].dropna()}):
        here = frame[frame["layer"] == layer]
        heads = here[here["site"].isin(["z", "attn_bias"])]["value"]
        if len(heads):
            found.append(Term(f"attention {layer}", "attention", layer, float(heads.sum())))
        for site, (name, kind) in _WHOLE.items():
            found += [Term(f"{name} {layer}", kind, layer, v) for v in _values(here, site)]
    for site in LATE:
        found += [
            Term(site.replace("_", " "), OTHER, None, v) for v in _values(frame, site) if v != 0
        ]
    return [*found, *(Term(TOTAL, TOTAL, None, v) for v in _values(frame, OUTPUT))]


def _values(frame: pd.DataFrame, site: str) -> list[float]:
    return [float(v) for v in frame.loc[frame["site"] == site, "value"]]


def in_order(groups: Iterable[Sequence[Term]]) -> list[Term]:
    """All terms, so that a term that only one pair has keeps its place."""
    late = [*(site.replace("_", " ") for site in LATE), TOTAL]

    def place(term: Term) -> tuple[int, int, bool]:
        if term.name in late:
            return 1, late.index(term.name), False
        return 0, -1 if term.layer is None else term.layer, term.kind == "MLP"

    return sorted((term for group in groups for term in group), key=place)


def total(run: Run, pair: Pair, queries: str) -> list[float] | None:
    """The total change and its interval, where it has one."""
    rows = run.rows("influence", OUTPUT, pair, "last", queries)
    rows = rows[rows["ci_low"].notna() & rows["ci_high"].notna()]
    return None if rows.empty else [float(rows.iloc[0][c]) for c in ("value", "ci_low", "ci_high")]
