"""What an emulation must be compared with: the target's equals, ordinary text, random words.

scores = neutral_scores(bench, tokens=4, draws=3)          # as `carrying.carried` gives them
"""

from __future__ import annotations

from interp.conditions import Neutral, Prompt, prefix_body
from interp.matching.bench import FLOOR_PREFIX, Bench
from interp.matching.carrying import Scores, carried, everything, scored
from interp.matching.fits import FitPlan, Fitted, spelled
from interp.matching.wording import slot_of
from interp.organism.language import NEUTRAL_PASSAGE
from interp.statistics import generator_of

OTHER_LORA_SEEDS = "other LoRA seeds"
"""The series of the target's equals in tables and figures."""


def equals(bench: Bench) -> Scores:
    """The target's equals (other seeds): how far the target itself is a matter of chance."""
    names = [name for name in bench.subject.settings if name.startswith(FLOOR_PREFIX)]
    settings = [bench.subject.settings[name] for name in names]
    fits = [Fitted(s, bench.subject.prefill(s), 0, 0.0) for s in settings]
    return scored(bench, fits, [everything(bench)] * len(fits))


def neutral_scores(bench: Bench, tokens: int, draws: int) -> Scores:
    """Windows of ordinary text that asks for nothing, so many tokens long."""
    like = Prompt(text=NEUTRAL_PASSAGE)
    passage = prefix_body(Neutral(like), bench.subject.tokenizer)
    tail = slot_of(bench, bench.settings.separator).after
    starts = generator_of(f"neutral:{bench.settings.seed}").integers(0, len(passage), draws)
    windows = [(passage[start:] + passage)[:tokens] for start in starts.tolist()]
    fits = [spelled(bench, (*window, *tail)) for window in windows]
    return scored(bench, fits, [everything(bench)] * draws)


def blind(bench: Bench, tokens: int, draws: int) -> Scores:
    """Random words: the texts that the search starts from."""
    plan = FitPlan("text", tokens, steps=0)
    return carried(bench, plan, len(bench.queries["matched"]), draws)
