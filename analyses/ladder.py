"""Is a LoRA one vector, and is there one map from a prompt's states to its LoRA's?

Where outputs match, states may still differ in any way. Maps of growing freedom are fitted from
base's states to either side's and from either side's to the other's, and put in the place of a
run's own state. If a constant suffices from base to the LoRA, the LoRA is a steering vector to the
layers above; if only low ranks do, it is a few directions that the token's state switches on; if
nothing below affine does, it is a change of the whole space. If no map is needed from the prompt to
the LoRA, the layers above take one's state for the other's as it is; if affine is the first, the
two say the same in another basis; if no rung suffices, what one does at a token is no function of
the other's state there. The same with neutral text and a random LoRA says what any text or any
update needs, and another seed or wording what two of a kind do.

    python analyses/ladder.py                                 # the bundled model
    python analyses/ladder.py --ranks 1 2 4 --margin 0.05     # stricter
    python analyses/ladder.py --model M --adapter A --prompt-file P --queries Q.jsonl --out RUN
    python analyses/ladder.py --model .cache/smollm2 --out runs/ladder/persona --chat \\
        --system-file analyses/chat/prompts/persona_0.txt analyses/chat/prompts/persona_1.txt \\
        --adapter analyses/chat/adapters/persona --queries analyses/chat/fit.jsonl \\
        --prompt-file --limit 32 --said 24 --every 10 --scored 8 --ranks 1 8
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from interp import Experiment, Ladder, diverge, ladder, load, load_run, read_queries
from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.cli.progress import counting
from interp.config import bundled, read_prompt
from interp.generating import generate
from interp.plots import equivalence_ladder, export

OUT = Path("runs/ladder")
MEASURED = ("js_divergence", "kl_divergence", "top1_agreement", "relative_l2")
OWN = ("ranks", "margin", "every", "scored", "ladder_segments", "said")


class Config(Experiment):
    """Compare a prompt and an adapter, and fit maps between their states."""

    ranks: tuple[int, ...] = Ladder.model_fields["ranks"].default
    """Ranks of the low-rank rungs."""
    margin: float = Ladder.model_fields["margin"].default
    """A rung suffices where the interval of its recovery stays within this of full interchange."""
    every: int = Ladder.model_fields["every"].default
    """Fit maps at every n-th layer and the last one."""
    scored: int | None = None
    """Score only the first queries of each group that no map was fitted on."""
    ladder_segments: tuple[str, ...] = ()
    """Segments that get maps of their own too: query, template, answer."""
    said: int = 0
    """Have the first system prompt answer every query in so many tokens, and force these answers
    (0: the answers of the query file; --answers-from lets all conditions write their own, too)."""


def main(config: Config) -> None:
    """Run, fit and score the maps, print what suffices, draw the figure."""
    experiment = Experiment(**config.model_dump(exclude=set(OWN)))
    if config.said:
        experiment = experiment.model_copy(update={"queries": answered(config)})
    with counting("queries") as counter:
        out = diverge(experiment, counter.add)
    fields = config.model_dump(include={*OWN[:4], "bootstrap", "memory"})
    asked = Ladder.model_validate({"run": out, "segments": config.ladder_segments, **fields})
    with counting("steps") as counter:
        ladder(asked, counter.add)
    run = load_run(out)
    print(run.verdict().text)
    print("\n".join(run.ladder.words))
    files = export({"ladder": equivalence_ladder(run)}, out / "figures")
    print("\n".join(f"figure: {out / 'figures' / file}" for file in files))


def answered(config: Config) -> Path:
    """The queries with the first system prompt's answers to them, beside the run; kept."""
    file = config.out.with_suffix(".answered.jsonl")
    if not file.exists():
        queries = read_queries(config.queries, config.limit)
        lab = load(config.model, system=read_prompt(config.system_file[0]), chat=True)
        setting = lab.subject.settings["prompt"]
        answers = generate(lab.subject, setting, lab.encode(queries), config.said)
        read = partial(lab.subject.tokenizer.decode, skip_special_tokens=True)
        pairs = zip(queries, map(read, answers), strict=True)
        lines = [json.dumps({"text": query.text, "answer": answer}) for query, answer in pairs]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines))
    return file


if __name__ == "__main__":
    fields = bundled(OUT) | {"controls": ("neutral", "random_lora"), "measures": MEASURED}
    read = partial(read_flags, Config, sys.argv[1:], "ladder.py", fields, __doc__)
    sys.exit(guarded(lambda: main(read())))
