"""Where inside the network do a prompt and a LoRA that say the same thing diverge?

If the hypothesis holds all the way down (a prompt is a LoRA by other means), the residual streams
of the two runs lie as close as their outputs do, at every layer. If internal state differs although
outputs agree, the distance stays well above zero in some layers; `delta_alignment` then says
whether both at least push the same way from base (1), or reach the same output by unrelated changes
(0). The distance of a neutral prompt's run to the LoRA's is the null: no relation but the model.

    python analyses/internal_state.py                           # the bundled model
    python analyses/internal_state.py --model M --adapter A --prompt-file P --queries Q.jsonl
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pandas as pd

from interp import Experiment, diverge, load_run
from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.config import bundled
from interp.plots import export, layers
from interp.results import Run

OUT = Path("runs/internal_state")


def main(experiment: Experiment) -> None:
    """Run, print the table and the verdict, draw the figure."""
    run = load_run(diverge(experiment))
    table = by_layer(run)
    print(table.to_string(float_format="{:.3f}".format))
    print(verdict(run, table))
    files = export({"layers": layers(run)}, experiment.out / "figures")
    print("\n".join(f"figure: {experiment.out / 'figures' / file}" for file in files))


def by_layer(run: Run) -> pd.DataFrame:
    """Residual-stream distance (with interval), its null and the alignment, by layer."""
    at_last = run.table.query("site == 'resid_post' and position == 'last' and reference == 'lora'")
    distance = at_last.query("measure == 'relative_l2'").set_index("layer")
    aligned = at_last.query("measure == 'delta_alignment'").set_index("layer")
    prompt = distance.query("condition == 'prompt'")
    return pd.DataFrame(
        {
            "relative_l2": prompt["value"],
            "ci_low": prompt["ci_low"],
            "ci_high": prompt["ci_high"],
            "neutral vs lora": distance.query("condition == 'neutral'")["value"],
            "delta_alignment": aligned.query("condition == 'prompt'")["value"],
        }
    )


def verdict(run: Run, table: pd.DataFrame) -> str:
    """The answer in words, from the numbers."""
    pair = {"condition": "prompt", "reference": "lora"}
    signed = next(c for c in run.manifest["certificates"] if pair.items() <= c.items())
    outputs = f"mean JS {signed['mean_js']:.4f} nats, top-1 {signed['top1_agreement']:.2f}"
    if not signed["passed"]:
        return f"Outputs are NOT matched ({outputs}): what follows inside is not comparable."
    worst = table["relative_l2"].idxmax()
    row = table.loc[worst]
    return (
        f"Outputs are matched ({outputs}), and yet the residual streams differ most at layer "
        f"{worst}, by {row['relative_l2']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}] of "
        f"their norm (null, neutral prompt: {row['neutral vs lora']:.2f}); the cosine of their "
        f"changes from base is {table['delta_alignment'].min():.2f} to "
        f"{table['delta_alignment'].max():.2f}."
    )


if __name__ == "__main__":
    read = partial(read_flags, Experiment, sys.argv[1:], "internal_state.py", bundled(OUT), __doc__)
    sys.exit(guarded(lambda: main(read())))
