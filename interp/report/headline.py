"""What a run says of the states of its first prompt and its first LoRA, in words.

by_layer(run)                       # distance, null and alignment of the residual streams
print(verdict(run), *families(run), exchanged(run))
"""

from __future__ import annotations

import pandas as pd

from interp.plots.named import Largest, largest
from interp.plots.reading import rows
from interp.results import Run

NAMES = ["condition", "reference"]


def by_layer(run: Run) -> pd.DataFrame:
    """The headline's residual streams: distance (with interval), its null and alignment."""
    a, b = (run.manifest["headline"][side] for side in ("condition", "reference"))
    last = "site == 'resid_post' and position == 'last' and queries == 'matched'"
    rows = run.table.query(last)
    rows = rows[rows["reference"] == b].set_index("layer")
    distance, aligned = (
        rows[rows["measure"] == measure] for measure in ("relative_l2", "delta_alignment")
    )
    prompt = distance[distance["condition"] == a]
    return pd.DataFrame(
        {
            "relative_l2": prompt["value"],
            "ci_low": prompt["ci_low"],
            "ci_high": prompt["ci_high"],
            f"neutral vs {b}": distance[distance["condition"] == "neutral"]["value"],
            "delta_alignment": aligned[aligned["condition"] == a]["value"],
        }
    )


def verdict(run: Run) -> str:
    """How far apart the headline's states are, though outputs match."""
    table = by_layer(run)
    pair = run.manifest["headline"].items()
    signed = next(c for c in run.manifest["certificates"] if pair <= c.items())
    outputs = f"mean JS {signed['mean_js']:.4f} nats, top-1 {signed['top1_agreement']:.2f}"
    if not signed["passed"]:
        return f"Outputs are NOT matched ({outputs}): what follows inside is not comparable."
    names = tuple(run.manifest["headline"].values())
    top = largest(rows(run, "relative_l2", "resid_post", names, "last"), run.manifest)
    if top.row is None:
        return f"Outputs are matched ({outputs}), and of the residual streams {top.none('layer')}."
    value, low, high, null, _ = table.loc[top.row["layer"]]
    aligned = table["delta_alignment"]
    return (
        f"Outputs are matched ({outputs}), and yet the residual streams differ most at layer "
        f"{top.row['layer']}, by {value:.2f} [{low:.2f}, {high:.2f}] of their norm (null, neutral "
        f"prompt: {null:.2f}; {top.p}); the cosine of their changes from base "
        f"is {aligned.min():.2f} to {aligned.max():.2f}."
    )


def families(run: Run) -> list[str]:
    """Whether kinds differ: the index of every two families where it is largest, or that none is
    beyond what relabelling gives."""
    index = run.table.query(
        "measure == 'divergence_index' and site == 'resid_post' and position == 'last' and "
        "queries == 'matched'"
    )
    return [_apart(a, b, largest(own, run.manifest)) for (a, b), own in index.groupby(NAMES)]


def _apart(a: str, b: str, top: Largest) -> str:
    if top.row is None:
        return f"Of {a}s and {b}s {top.none('layer', 'what relabelling gives')}."
    row = top.row
    return (
        f"{a}s and {b}s are {row['value']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] times "
        f"as far from each other as from their own kind at layer {row['layer']} ({top.p})."
    )


def exchanged(run: Run) -> str:
    """Whether the first prompt's state and the first LoRA's can stand in for each other."""
    depth = run.table.query("measure == 'state_equivalence_depth'")["value"].iloc[0]
    where = "at no layer" if pd.isna(depth) else f"from layer {depth:.0f} on"
    bound = run.manifest["interchange"]["tolerance"]
    return (
        f"Prompt and LoRA can exchange their states {where} at a damage of {bound:g} nats or less."
    )
