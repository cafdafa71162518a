"""What a run says of the states of the two conditions of its headline, in words.

by_layer(run)                       # distance, null and alignment of the residual streams
print(verdict(run), *families(run), exchanged(run))
"""

from __future__ import annotations

import pandas as pd

from interp.plots import reading
from interp.plots.text import Pair, pair_name
from interp.results import Run


def by_layer(run: Run) -> pd.DataFrame:
    """The headline's residual streams: distance (with interval), alignment, and its null where the
    run has one."""
    pair, null = reading.headline(run.manifest), reading.null_pair(run.manifest)

    def of(two: Pair | None, measure: str = "relative_l2") -> pd.DataFrame:
        return reading.rows(run, measure, "resid_post", two, "last").set_index("layer")

    found = of(pair)[["value", "ci_low", "ci_high"]].rename(columns={"value": "relative_l2"})
    if null:
        found[pair_name(null)] = of(null)["value"]
    return found.assign(delta_alignment=of(pair, "delta_alignment")["value"])


def verdict(run: Run) -> str:
    """How far apart the headline's states are, though outputs match."""
    table = by_layer(run)
    pair = run.manifest["headline"].items()
    signed = next(c for c in run.manifest["certificates"] if pair <= c.items())
    outputs = f"mean JS {signed['mean_js']:.4f} nats, top-1 {signed['top1_agreement']:.2f}"
    if not signed["passed"]:
        return f"Outputs are NOT matched ({outputs}): what follows inside is not comparable."
    worst = table["relative_l2"].idxmax()
    value, low, high, *null, _ = table.loc[worst]
    beside = f" (null, {table.columns[3]}: {null[0]:.2f})" if null else ""
    aligned = table["delta_alignment"]
    return (
        f"Outputs are matched ({outputs}), and yet the residual streams differ most at layer "
        f"{worst}, by {value:.2f} [{low:.2f}, {high:.2f}] of their norm{beside}; the cosine of "
        f"their changes from base is {aligned.min():.2f} to {aligned.max():.2f}."
    )


def families(run: Run) -> list[str]:
    """Whether kinds differ: the index of every two families where it is largest."""
    index = run.table.query(
        "measure == 'divergence_index' and site == 'resid_post' and position == 'last' and "
        "queries == 'matched'"
    )
    tops = [
        rows.loc[rows["value"].idxmax()] for _, rows in index.groupby(["condition", "reference"])
    ]
    return [
        f"{top['condition']}s and {top['reference']}s are {top['value']:.2f} [{top['ci_low']:.2f}, "
        f"{top['ci_high']:.2f}] times as far from each other as from their own kind at layer "
        f"{top['layer']} (p = {top['p_adjusted']:.2g})."
        for top in tops
    ]


def exchanged(run: Run) -> str:
    """Whether the states of the two that were exchanged can stand in for each other."""
    depth = run.table.query("measure == 'state_equivalence_depth'")["value"].iloc[0]
    where = "at no layer" if pd.isna(depth) else f"from layer {depth:.0f} on"
    found = run.manifest["interchange"]
    return (
        f"{found['condition']} and {found['reference']} can exchange their states {where} at a "
        f"damage of {found['tolerance']:g} nats or less."
    )
