"""What a run says of the states of its first prompt and its first LoRA, in words.

by_layer(run)                       # distance, null and alignment of the residual streams
print(verdict(run), *families(run), exchanged(run))
"""

from __future__ import annotations

import pandas as pd

from interp.results import Run


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
    worst = table["relative_l2"].idxmax()
    value, low, high, null, _ = table.loc[worst]
    aligned = table["delta_alignment"]
    return (
        f"Outputs are matched ({outputs}), and yet the residual streams differ most at layer "
        f"{worst}, by {value:.2f} [{low:.2f}, {high:.2f}] of their norm (null, neutral prompt: "
        f"{null:.2f}); the cosine of their changes from base is {aligned.min():.2f} to "
        f"{aligned.max():.2f}."
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
    """Whether the first prompt's state and the first LoRA's can stand in for each other."""
    depth = run.table.query("measure == 'state_equivalence_depth'")["value"].iloc[0]
    where = "at no layer" if pd.isna(depth) else f"from layer {depth:.0f} on"
    bound = run.manifest["interchange"]["tolerance"]
    return (
        f"Prompt and LoRA can exchange their states {where} at a damage of {bound:g} nats or less."
    )
