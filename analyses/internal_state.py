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

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

from interp import Experiment, diverge, load_run, organism
from interp.plots import export, layers
from interp.results import Run


@dataclass(frozen=True)
class Config:
    """Which model, prompt and adapter."""

    model: str = str(organism.MODEL)
    """Model folder or hub id."""
    adapter: str = str(organism.ADAPTERS / "lora_0")
    """peft LoRA folder."""
    prompt_file: Path = organism.PROMPTS / "instruction_0.txt"
    """Text put before every query."""
    queries: Path = organism.QUERIES / "matched.jsonl"
    """JSONL of queries."""
    separator: str = "\n"
    """Written between prompt and query."""
    out: Path = Path("runs/internal_state")
    """Folder of the run; replaced."""
    seed: int = 0
    """Seed of bootstrap and controls."""


def main(config: Config) -> None:
    experiment = Experiment(
        model=config.model,
        adapter=(config.adapter,),
        prompt_file=(config.prompt_file,),
        queries=config.queries,
        separator=config.separator,
        out=config.out,
        seed=config.seed,
        overwrite=True,
    )
    run = load_run(diverge(experiment))
    table = by_layer(run)
    print(table.to_string(float_format="{:.3f}".format))
    print(verdict(run, table))
    files = export({"layers": layers(run)}, config.out / "figures")
    print("\n".join(f"figure: {config.out / 'figures' / file}" for file in files))


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
    main(tyro.cli(Config, description=__doc__))
