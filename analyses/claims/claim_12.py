"""Do the top singular vectors of a LoRA's update detect its behaviour?

Every output projection's update has a leading direction in the stream. A text's score is the
largest |cosine| between it and the LoRA's own stream behind that block, over tokens and blocks. Its
AUROC for the task's queries against unrelated sentences is set beside that of the random LoRA on
its own stream, and of base's stream along the LoRA's directions: texts of two kinds differ anyway.

    python analyses/claims/claim_12.py
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from interp.batch import Batch
from interp.capture import capture, keep
from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.experiments import Claims
from interp.experiments.claim_models import ClaimModel
from interp.experiments.claims import ClaimOutcome, PaperClaim, conduct_claim
from interp.names import Site
from interp.patching.ablation import layer_of
from interp.queries import Encoded
from interp.statistics import generator_of, percentile_interval
from interp.subject.directions import decomposed, ranks

CLAIM = PaperClaim(
    number=12,
    says="The top singular vectors of a weight update detect the behaviour that it brings.",
    source="2508.00161 (abstract only)",
    measured="AUROC of the largest |cosine| with a leading output direction of the LoRA's update, "
    "the task's queries against unrelated sentences",
    threshold=0.8,
    reason="a fair detector; the paper's find nearly all",
    placebos=("random LoRA", "base's stream, LoRA's directions"),
)
QUERIES, REPLICATES = 24, 200


def measure(model: ClaimModel) -> ClaimOutcome:
    """The AUROC under the LoRA, and of the controls."""
    texts = (model.unanswered[:QUERIES], model.unrelated)
    scores = {
        name: [highest(model, condition, of, some) for some in texts]
        for name, condition, of in (
            ("LoRA", "lora", "lora"),
            ("random LoRA", "random_lora", "random_lora"),
            ("base's stream, LoRA's directions", "base", "lora"),
            ("prompt's stream, LoRA's directions", "prompt", "lora"),
        )
    }
    generator, drawn = generator_of("claim 12"), []
    for _ in range(REPLICATES):
        drawn.append(auroc(*(s[generator.integers(0, len(s), len(s))] for s in scores["LoRA"])))
    low, high = percentile_interval(np.array(drawn))
    found = {name: auroc(*pair) for name, pair in scores.items()}
    value = found.pop("LoRA")
    note = f"{len(texts[0])} queries against {len(texts[1])} sentences."
    return ClaimOutcome(value, float(low), float(high), len(texts[0]), found, note)


def auroc(task: np.ndarray, other: np.ndarray) -> float:
    """How often a task's text scores above another one."""
    labels = np.repeat([1, 0], [len(task), len(other)])
    return float(roc_auc_score(labels, np.concatenate([task, other])))


def highest(
    model: ClaimModel, condition: str, adapter: str, texts: Sequence[Encoded]
) -> np.ndarray:
    """The largest |cosine| of every text's states with an adapter's leading output directions."""
    subject, setting = model.subject, model.subject.settings[condition]
    name = subject.weights.only_adapter(subject.settings[adapter])
    writing = [m for m in ranks(subject.weights, name) if m.endswith(("o_proj", "down_proj"))]
    leading = {m: np.asarray(decomposed(subject.weights, m, name).u[:, 0]) for m in writing}
    where = {module: Site("resid_post", int(str(layer_of(module)))) for module in writing}
    cache, found = subject.prefill(setting), []
    for text in texts:
        batch = Batch.of([text], subject.device)
        read = dict.fromkeys(where.values(), keep)
        seen = capture(subject, setting, batch, cache, read, last=True).values
        cosines = []
        for module, direction in leading.items():
            states = np.asarray(seen[where[module]][0].double())
            cosines.append(np.abs(states @ direction) / np.linalg.norm(states, axis=-1))
        found.append(np.max(cosines))
    return np.array(found)


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_12.py"))
        )
    )
