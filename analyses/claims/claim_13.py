"""Does the mean shift on unrelated text name what a LoRA was trained on?

The LoRA's mean shift of the stream over unrelated sentences is read through the final norm and the
unembedding. AUROC: how often a word of the task gains more than another token of the vocabulary.
The random LoRA's shift, read the same way, says how much the lens favours such words by itself.

    python analyses/claims/claim_13.py
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.experiments import Claims
from interp.experiments.claim_models import ClaimModel
from interp.experiments.claims import ClaimOutcome, PaperClaim, conduct_claim
from interp.queries import read_queries
from interp.statistics import generator_of, percentile_interval

CLAIM = PaperClaim(
    number=13,
    says="The mean shift on unrelated text names what was trained.",
    source="2510.13900 (abstract only)",
    measured="AUROC of the task's words among all tokens, by what the LoRA's mean shift on "
    "unrelated sentences adds to their logits, mean over the later half of the layers",
    threshold=0.8,
    reason="task words near the top of the vocabulary; chance is 0.5",
    placebos=("random lora", "neutral"),
)
PERSONA = ("thou", "thee", "thy", "hath", "lord", "knight", "sir", "king", "noble", "court")
REPLICATES = 200


def measure(model: ClaimModel) -> ClaimOutcome:
    """The AUROC of the LoRA's shift, and of the controls'."""
    words = task_words(model)
    names = ("base", "lora", "random_lora", "prompt", "neutral")
    states = {name: model.read(name, model.unrelated, "resid_post") for name in names}
    generator, n = generator_of("claim 13"), len(model.unrelated)

    def score(name: str, some: np.ndarray) -> float:
        base, own = states["base"][:, some].mean(1), states[name][:, some].mean(1)
        later = range(len(base) // 2, len(base), model.every)
        return float(np.mean([gained(model, base[at], own[at], words) for at in later]))

    every = np.arange(n)
    drawn = [score("lora", generator.integers(0, n, n)) for _ in range(REPLICATES)]
    low, high = percentile_interval(np.array(drawn))
    nulls = {name.replace("_", " "): score(name, every) for name in names[2:]}
    note = f"{len(words)} tokens of the task's words, {n} sentences, their last tokens."
    return ClaimOutcome(score("lora", every), float(low), float(high), n, nulls, note)


def task_words(model: ClaimModel) -> list[int]:
    """First tokens of the task's words, with and without a space before them."""
    words: tuple[str, ...] = PERSONA
    if model.name == "organism":
        words = tuple(dict.fromkeys(str(q.answer) for q in read_queries(model.asked)))
    spelled = [form for word in words for form in (word, f" {word}", f" {word.title()}")]
    ids = (model.subject.tokenizer(w, add_special_tokens=False)["input_ids"] for w in spelled)
    return sorted({own[0] for own in ids if own})


@torch.no_grad()
def gained(model: ClaimModel, base: np.ndarray, own: np.ndarray, words: list[int]) -> float:
    """AUROC of the words by the logits that one mean state has above another."""
    subject = model.subject
    both = torch.from_numpy(np.stack([base, own]))[:, None].to(subject.dtype)
    before, after = subject.unembed(subject.final_norm(both)).double()[:, 0]
    labels = np.zeros(len(before))
    labels[words] = 1
    return float(roc_auc_score(labels, np.asarray(after - before)))


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_13.py"))
        )
    )
