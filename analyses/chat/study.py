"""A system prompt against a LoRA in a chat model: where do they differ when they answer the same?

Three system prompts (a language, a persona, a format), each in three wordings; each first wording
is distilled into LoRAs of several seeds on the model's own answers. Every run certifies the match
over whole answers, and asks for the user's text, the template after it and the answer apart: how
far are the residual streams, do kinds differ more than wordings and seeds, and does a state that is
moved at one segment carry the behaviour? A prompt that is read anew at every answer token would be
carried by the answer's rows alone; one that was written into the user's tokens by theirs.

    make chat-study                                       # SmolLM2, everything
    python analyses/chat/study.py --prompts persona --seeds 1 --limit 8 --patched 2      # a taste

What is finished is not done again: the same command goes on.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from interp import Experiment, Patching, diverge, load_run, patch
from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.cli.progress import counting
from interp.config import Distillation
from interp.matching.distil import LOG, distil
from interp.report import text_table, write
from interp.runs.files import MANIFEST
from interp.runs.view import Run

HERE = Path(__file__).resolve().parent
SEGMENTS = ("query", "template", "answer", "all")
TRAINING = {"model", "queries", "heldout", "limit", "rank", "targets", "learning_rate"}
TRAINING |= {"epochs", "batch_size"}
TESTING = {"bootstrap", "permutations", "memory"}
"""Settings of the study that its training, and its run and exchange, take as they are."""


class Study(BaseModel):
    """Compare system prompts with LoRAs distilled from them, over whole answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str = str(HERE.parents[1] / ".cache" / "smollm2")
    """Model folder or hub id, with a chat template."""
    out: Path = Path("runs/chat")
    """Folder of the adapters and runs."""
    prompts: tuple[str, ...] = ("language", "persona", "format")
    """System prompts: `NAME_0.txt` is distilled, `NAME_1.txt`, ... are other wordings of it."""
    texts: Path = HERE / "prompts"
    """Folder of the prompts."""
    queries: Path = HERE / "fit.jsonl"
    """JSONL file of messages that the LoRAs are trained on."""
    heldout: Path = HERE / "heldout.jsonl"
    """JSONL file of held-out messages."""
    seeds: int = Field(default=3, ge=1)
    """Number of LoRAs per prompt, one per seed."""
    tokens: int = Field(default=24, ge=1)
    """Length of the answers in tokens."""
    rank: int = Field(default=8, ge=1)
    """Rank of the LoRAs."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Module names that get a LoRA."""
    learning_rate: float = Field(default=3e-3, gt=0)
    """Peak learning rate."""
    epochs: int = Field(default=10, ge=1)
    """Largest number of passes over the messages."""
    batch_size: int = Field(default=4, ge=1)
    """Messages per training step."""
    limit: int | None = Field(default=None, ge=2)
    """Use only the first messages of each file."""
    patched: int = Field(default=8, ge=2)
    """Number of messages whose states are exchanged."""
    every: int = Field(default=3, ge=1)
    """Exchange states at every n-th layer and the last one."""
    bootstrap: int = Field(default=200, ge=0)
    """Bootstrap replicates behind every interval."""
    permutations: int = Field(default=999, ge=0)
    """Permutations behind every p-value."""
    memory: float = Field(default=3.0, gt=0)
    """Budget in GB for one forward pass."""


def main(study: Study) -> None:
    """Distil, compare and patch prompt by prompt; print every run, and one table of them all."""
    import rich

    found = []
    for name in study.prompts:
        folder = study.out / name
        adapters = [distilled(study, name, seed) for seed in range(study.seeds)]
        if not (folder / "run" / MANIFEST).exists():
            with counting("queries") as counter:
                diverge(experiment(study, name, adapters), counter.add)
        if "interchange" not in load_run(folder / "run").manifest:
            with counting("steps") as counter:
                patch(exchange(study, folder / "run"), counter.add)
        run = load_run(folder / "run")
        rich.print(text_table(run))
        print(f"report: {write(folder / 'run')}")
        plotted(run).to_csv(folder / "plotted.csv", index=False, float_format="%.6g")
        certified(run).to_csv(folder / "certificates.csv", index=False, float_format="%.6g")
        found.append(by_segment(run).assign(prompt=name))
    table = pd.concat(found, ignore_index=True)
    table.to_csv(study.out / "segments.csv", index=False, float_format="%.6g")
    print(table.to_string(float_format="{:.3g}".format))


def distilled(study: Study, name: str, seed: int) -> Path:
    """The folder of a LoRA that answers as the prompt does; trained unless it is there."""
    out = study.out / name / f"lora_{seed}"
    if not (out / LOG).exists():
        settings = Distillation(
            **study.model_dump(include=TRAINING),
            chat=True,
            system_file=study.texts / f"{name}_0.txt",
            answer_tokens=study.tokens,
            alpha=2 * study.rank,
            adapter_dtype="bfloat16",
            seed=seed,
            out=out,
            overwrite=True,
        )
        with counting() as counter:
            distil(settings, counter.add)
    return out


def experiment(study: Study, name: str, adapters: list[Path]) -> Experiment:
    """The wordings of a prompt against its LoRAs, on the first wording's answers."""
    wordings = sorted(study.texts.glob(f"{name}_*.txt"))
    conditions: dict[str, Any] = {
        f"prompt_{i}": {"prompt": {"system_file": str(path)}} for i, path in enumerate(wordings)
    }
    conditions |= {f"lora_{i}": {"lora": {"adapter": str(a)}} for i, a in enumerate(adapters)}
    return Experiment(
        **study.model_dump(include={"model", "queries", "heldout", "limit", *TESTING}),
        chat=True,
        conditions=conditions,
        compare=("prompt_0", "lora_0"),
        answers_from="prompt_0",
        answer_tokens=study.tokens,
        controls=("neutral", "empty_system", "random_lora"),
        lens=False,
        max_positions=4,
        out=study.out / name / "run",
        resume=True,
    )


def exchange(study: Study, run: Path) -> Patching:
    """The residual stream of prompt and LoRA, exchanged segment by segment."""
    return Patching(
        **study.model_dump(include={"every", *TESTING}),
        run=run,
        sites=(),
        head_sites=(),
        positions=0,
        attribution=False,
        ablate=(),
        limit=study.patched,
        resume=True,
    )


def plotted(run: Run) -> pd.DataFrame:
    """What the figures of the residual stream show: by segment, the headline pair and its null, the
    families, and the exchange."""
    rows = run.table[run.table["site"].eq("resid_post") & run.table["head"].isna()]
    rows = rows[rows["position"].isin([*SEGMENTS, "last"])]
    compared = rows[rows["measure"].isin(["relative_l2", "delta_alignment"])]
    compared = compared[compared["reference"].eq("lora_0")]
    compared = compared[compared["condition"].isin(["prompt_0", "neutral"])]
    others = rows[rows["measure"].isin(["divergence_index", "damage", "recovery"])]
    columns = ["measure", "condition", "reference", "position", "queries", "layer"]
    return pd.concat([compared, others])[
        [*columns, "value", "ci_low", "ci_high", "p_adjusted", "n"]
    ]


def certified(run: Run) -> pd.DataFrame:
    """The certificates of every pair, without the queries outside the tolerance."""
    return pd.DataFrame(run.manifest["certificates"]).drop(columns="outside")


def by_segment(run: Run) -> pd.DataFrame:
    """Per direction and segment, the layer of most recovery into base, and the recovery there."""
    rows = run.table.query(
        "measure == 'recovery' and reference == 'base' and site == 'resid_post' and head.isna()"
    )
    rows = rows[rows["position"].isin(SEGMENTS) & rows["value"].notna()]
    best = rows.loc[rows.groupby(["condition", "position"])["value"].idxmax()]
    return best[["condition", "position", "layer", "value", "ci_low", "ci_high", "n"]]


if __name__ == "__main__":
    read = partial(read_flags, Study, sys.argv[1:], "study.py", {}, __doc__)
    sys.exit(guarded(lambda: main(read())))
