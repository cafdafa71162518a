"""Can one condition's internal state stand in for the other's, although the two lie far apart?

A distance between states does not say whether the rest of the network cares. Here the prompt's
residual stream is put into the LoRA's run on the same query tokens, and the LoRA's into the
prompt's, layer by layer. If the swap does no damage to what is said, the two states are equivalent
to everything above them, however far apart they lie; if it does, the distance matters. Base's state
at the same place is the positive control: what a swap costs that does not carry the behaviour. A
difference of the same length that an unrelated query shows is the null.

    python analyses/interchange.py                              # the bundled model
    python analyses/interchange.py --tolerance 0.01             # stricter, in nats
    python analyses/interchange.py --model M --adapter A --prompt-file P --queries Q.jsonl
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pandas as pd

from interp import Experiment, Patching, diverge, load_run, patch
from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.config import bundled
from interp.plots import export, interchange
from interp.runs.view import Run

OUT = Path("runs/interchange")


class Config(Experiment):
    """Compare a prompt and an adapter, and exchange their internal states."""

    tolerance: float = Patching.model_fields["tolerance"].default
    """Largest mean damage (nats) of a state that counts as interchangeable."""


def main(config: Config) -> None:
    """Run, exchange, print the table and the verdict, draw the figure."""
    experiment = Experiment(**config.model_dump(exclude={"tolerance"}))
    out = diverge(experiment)
    patch(Patching(run=out, tolerance=config.tolerance, ablate=(), greedy=0))
    run = load_run(out)
    print(by_layer(run).to_string(float_format="{:.3g}".format))
    print(verdict(run))
    files = export({"interchange": interchange(run)}, out / "figures")
    print("\n".join(f"figure: {out / 'figures' / file}" for file in files))


def by_layer(run: Run) -> pd.DataFrame:
    """How far apart the states lie, and what their exchange does, by layer."""
    found = run.manifest["interchange"]
    a, b = found["condition"], found["reference"]
    stream = run.table.query("site == 'resid_post' and queries == 'matched' and head.isna()")

    def column(measure: str, source: str, target: str, position: str = "all") -> pd.Series:
        rows = stream.query(
            "measure == @measure and condition == @source and reference == @target "
            "and position == @position"
        )
        return rows.set_index("layer")["value"]

    return pd.DataFrame(
        {
            "relative_l2": column("relative_l2", a, b, "last"),
            f"damage {a} -> {b}": column("damage", a, b),
            f"damage {b} -> {a}": column("damage", b, a),
            f"damage base -> {b}": column("damage", "base", b),
            f"unrelated -> {b}": column("damage_random_difference", a, b),
            f"recovery {a} -> base": column("recovery", a, "base"),
            f"recovery {b} -> base": column("recovery", b, "base"),
        }
    )


def verdict(run: Run) -> str:
    """The answer in words, from the numbers."""
    found = run.manifest["interchange"]
    pair = {"condition": found["condition"], "reference": found["reference"]}
    certified = [c["passed"] for c in run.manifest["certificates"] if pair.items() <= c.items()]
    outputs = "matched" if certified and all(certified) else "NOT matched on all queries"
    depth = run.table.query("measure == 'state_equivalence_depth'").iloc[0]
    distance = by_layer(run)["relative_l2"]
    if pd.isna(depth["value"]):
        return f"Outputs are {outputs}; the states are interchangeable at no layer."
    above = distance[distance.index >= depth["value"]]
    low, high = (
        "none" if pd.isna(end) else f"{end:.0f}" for end in (depth["ci_low"], depth["ci_high"])
    )
    return (
        f"Outputs are {outputs}; from layer {depth['value']:.0f} [{low}, {high}] on either "
        f"condition's state does at most {found['tolerance']:g} nats of damage in the other's run, "
        f"while the two lie {above.min():.2f} to {above.max():.2f} of their norm apart. "
        f"{found['verdict'][0].upper()}{found['verdict'][1:]}"
    )


if __name__ == "__main__":
    read = partial(read_flags, Config, sys.argv[1:], "interchange.py", bundled(OUT), __doc__)
    sys.exit(guarded(lambda: main(read())))
