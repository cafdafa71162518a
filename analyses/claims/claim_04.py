"""Is an affine map the first that turns the states under one prompt into those under another?

Maps from the prompt's to the rival prompt's states at answer tokens are fitted on one half of the
queries, and their images put into the prompt's run on the other half, block by block: how much of
the rival's output comes back? What an affine map recovers above a constant or rigid one decides.
The same towards neutral text, which has no task, is the control.

    python analyses/claims/claim_04.py
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.experiments import Claims
from interp.experiments.claim_models import ClaimModel
from interp.experiments.claims import ClaimOutcome, PaperClaim, conduct_claim
from interp.moments import ShiftMoments
from interp.rungs.maps import fit_maps
from interp.statistics import generator_of, percentile_interval

CLAIM = PaperClaim(
    number=4,
    says="Between states under two prompts an affine map is the first that restores behaviour.",
    source="2606.03093 (abstract only)",
    measured="recovery of the rival prompt's answers by an affine map of the prompt's states, "
    "minus the better of a constant and a rigid map, mean over blocks",
    threshold=0.1,
    reason="a tenth of the difference between both prompts",
    placebos=("advantage towards neutral text",),
)
RUNGS, FOLDS, REPLICATES = ("constant", "rigid", "affine"), 3, 200


def measure(model: ClaimModel) -> ClaimOutcome:
    """The advantage of the affine map, towards the rival prompt and towards neutral text."""
    left, none = recovered(model, "rival")
    value = advantage(left, none)
    n, generator = len(none), generator_of("claim 4")
    drawn = [generator.integers(0, n, n) for _ in range(REPLICATES)]
    low, high = percentile_interval(np.array([advantage(left, none, some) for some in drawn]))
    shares = {f"recovery, {name}": share(kl, none) for name, kl in left.items()}
    null = advantage(*recovered(model, "neutral"))
    note = "Recoveries are means over blocks; interchange puts in the rival's own states."
    nulls = {"advantage towards neutral text": null, **shares}
    return ClaimOutcome(value, float(low), float(high), n, nulls, note)


def share(left: np.ndarray, none: np.ndarray) -> float:
    """`1 - KL left / KL without`, mean over blocks."""
    return float((1 - left.sum(-1) / none.sum()).mean())


def advantage(
    left: dict[str, np.ndarray], none: np.ndarray, some: np.ndarray | slice = slice(None)
) -> float:
    """What the affine map recovers above the better of the two others, mean over blocks."""
    kl = {name: left[name][:, some].sum(-1) / none[some].sum() for name in RUNGS}
    return float((np.minimum(kl["constant"], kl["rigid"]) - kl["affine"]).mean())


def recovered(model: ClaimModel, target: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Rung -> KL from the target's answers, `[block, query]`; and without any map."""
    every = list(range(len(model.queries)))
    fit, scored = every[::2], every[1::2]
    folds = [np.isin(model.owner, fit[fold::FOLDS]) for fold in range(FOLDS)]
    left: dict[str, list[np.ndarray]] = {name: [] for name in (*RUNGS, "interchange")}
    for layer in range(0, model.subject.n_layers, model.every):
        x, y = model.states("prompt")[layer], model.states(target)[layer]
        maps = fit_maps([ShiftMoments.of(x[fold], (y - x)[fold]) for fold in folds], ranks=())
        images = {name: np.asarray(maps[name](torch.from_numpy(x))) for name in RUNGS}
        for name, states in {**images, "interchange": y}.items():
            edit = model.put_in(layer, states, scored)
            left[name].append(model.kl(target, "prompt", scored, [edit]))
    none = model.kl(target, "prompt", scored)
    return {name: np.array(kl) for name, kl in left.items()}, none


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_04.py"))
        )
    )
