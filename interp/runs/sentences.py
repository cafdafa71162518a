"""What a run says of the states of the two conditions of its headline, in words.

distances_by_layer(run)             # distance, null and alignment of the residual streams
print(verdict_words(run), *family_words(run))
"""

from __future__ import annotations

import pandas as pd

from interp.names import Pair, pair_name
from interp.runs.largest import Largest
from interp.runs.view import Run

NAMES = ["condition", "reference"]


def distances_by_layer(run: Run) -> pd.DataFrame:
    """The headline's residual streams: distance (with interval), alignment, and its null where the
    run has one."""
    pair, null = run.headline, run.null_pair

    def of(two: Pair | None, measure: str = "relative_l2") -> pd.DataFrame:
        return run.rows(measure, "resid_post", two, "last").set_index("layer")

    found = of(pair)[["value", "ci_low", "ci_high"]].rename(columns={"value": "relative_l2"})
    if null and len(beside := of(null)["value"].dropna()):
        found[pair_name(null)] = beside
    return found.assign(delta_alignment=of(pair, "delta_alignment")["value"])


def verdict_words(run: Run) -> str:
    """How far apart the headline's states are, though outputs match."""
    table = distances_by_layer(run)
    pair = run.manifest["headline"].items()
    signed = next(c for c in run.manifest["certificates"] if pair <= c.items())
    outputs = f"mean JS {signed['mean_js']:.4f} nats, top-1 {signed['top1_agreement']:.2f}"
    if not signed["passed"]:
        return f"Outputs are NOT matched ({outputs}): what follows inside is not comparable."
    two = run.headline
    top = run.largest(run.rows("relative_l2", "resid_post", two, "last"))
    if top.row is None:
        return f"Outputs are matched ({outputs}), and of the residual streams {top.none('layer')}."
    value, low, high, *null, _ = table.loc[top.row["layer"]]
    beside = "" if not null or pd.isna(null[0]) else f"null, {table.columns[3]}: {null[0]:.2f}; "
    aligned = table["delta_alignment"]
    return (
        f"Outputs are matched ({outputs}), and yet the residual streams differ most at layer "
        f"{top.row['layer']}, by {value:.2f} [{low:.2f}, {high:.2f}] of their norm ({beside}"
        f"{top.p}); the cosine of their changes from base is {aligned.min():.2f} to "
        f"{aligned.max():.2f}."
    )


def family_words(run: Run) -> list[str]:
    """Whether kinds differ: the index of every two families where it is largest, or that none is
    beyond what relabelling gives."""
    index = run.table.query(
        "measure == 'divergence_index' and site == 'resid_post' and position == 'last' and "
        "queries == 'matched'"
    )
    return [_apart(a, b, run.largest(own)) for (a, b), own in index.groupby(NAMES)]


def _apart(a: str, b: str, top: Largest) -> str:
    if top.row is None:
        return f"Of {a}s and {b}s {top.none('layer', 'what relabelling gives')}."
    row = top.row
    return (
        f"{a}s and {b}s are {row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] times "
        f"as far from each other as from their own kind at layer {row['layer']} ({top.p})."
    )
