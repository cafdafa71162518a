"""Which parts of the network change the answer under a prompt, and which under a LoRA?

The residual stream is a sum, so the change of the answer's logit from base is one too: of what
every head, every MLP, the embedding and the norm wrote into it. If a LoRA is a prompt by other
means, the same heads and MLPs carry the change on both sides; if not, the same answer is made by
other parts. The terms close on the measured change of the logit to float precision.

    python analyses/equation_of_influence.py                    # the bundled model
    python analyses/equation_of_influence.py --against cold     # the answer's lead over a token
    python analyses/equation_of_influence.py --model M --adapter A --prompt-file P --queries Q.jsonl
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from interp import Experiment, Head, diverge, load_run
from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.config import bundled
from interp.plots import export, influence_heads, information_by_layer, waterfall
from interp.runs.largest import UNTESTED
from interp.runs.view import Run
from interp.significance import ALPHA

OUT = Path("runs/equation_of_influence")
TOP = 5


def main(experiment: Experiment) -> None:
    """Run, print the equation of both sides and the verdict, draw the figures."""
    run = load_run(diverge(experiment))
    print(equation(run).to_string(float_format="{:+.3f}".format))
    print(verdict(run))
    figures = {
        "waterfall": waterfall,
        "heads": influence_heads,
        "information": information_by_layer,
    }
    drawn = {name: figure(run) for name, figure in figures.items()}
    folder = experiment.out / "figures"
    print("\n".join(f"figure: {folder / file}" for file in export(drawn, folder)))


def change(run: Run, condition: str) -> pd.DataFrame:
    """The terms of a condition's change from base, in logits."""
    return run.table.query(
        "measure == 'influence' and queries == 'matched' and reference == 'base' "
        "and condition == @condition"
    )


def equation(run: Run) -> pd.DataFrame:
    """One row per layer and term, one column per side; heads summed with their bias."""
    columns = {}
    for side in run.manifest["headline"].values():
        terms = change(run, side)
        named = terms["site"].replace({"z": "attention", "attn_bias": "attention"})
        layer = terms["layer"].astype(object).where(terms["layer"].notna(), "")
        columns[f"{side} vs base"] = terms.groupby([layer, named], sort=False)["value"].sum()
    table = pd.DataFrame(columns)
    table.index.names = ["layer", "term"]
    return table.sort_index(key=lambda part: part.map(lambda x: 99 if x == "" else x))


def verdict(run: Run) -> str:
    """The answer in words, from the numbers."""
    sides = list(run.manifest["headline"].values())
    heads = [
        change(run, s).query("site == 'z'").set_index(["layer", "head"])["value"] for s in sides
    ]
    tops = [run.standing(change(run, s).query("site == 'z'")) for s in sides]
    top = [
        [str(Head(*place)) for place in zip(t["layer"], t["head"], strict=True)]
        for t in (t.loc[t["value"].abs().nlargest(TOP).index] for t in tops)
    ]
    known = pd.concat(tops)["p_adjusted"].notna().any()
    tested = f"of heads with p ≤ {ALPHA:g}" if known else UNTESTED
    both = sorted(set(top[0]) & set(top[1]))
    rank = spearmanr(heads[0], heads[1].reindex(heads[0].index)).statistic
    against = run.manifest["config"].get("against")
    what = f"the answer's lead over {against}" if against else "the answer's logit"
    parts = []
    for side, names in zip(sides, top, strict=True):
        total = change(run, side).query("site == 'output'").iloc[0]
        parts.append(
            f"{side} moves {what} by {total['value']:+.2f} "
            f"[{total['ci_low']:+.2f}, {total['ci_high']:+.2f}], most by "
            f"{', '.join(names) or 'no head'} ({tested})"
        )
    shared = f"{len(both)} of the {TOP} are shared ({', '.join(both) or 'none'})"
    return (
        f"{'; '.join(parts)}. Of the heads {shared}; over all heads the rank correlation of both "
        f"sides' contributions is {rank:.2f}. The equation closes to "
        f"{run.manifest['checks']['influence']:.1g} of its largest term."
    )


if __name__ == "__main__":
    name = "equation_of_influence.py"
    read = partial(read_flags, Experiment, sys.argv[1:], name, bundled(OUT), __doc__)
    sys.exit(guarded(lambda: main(read())))
