"""Do rank-1 LoRAs on values and outputs shift states along one direction, on queries and keys not?

Two rank-1 LoRAs are distilled from the prompt, on v and o, and on q and k. Behind the first block's
attention, whose inputs no LoRA has changed yet, the share of the squared shift along its first
direction is compared. The random LoRAs of the same shape say what the algebra alone gives.

    python analyses/claims/claim_02.py
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from interp.cli import guarded
from interp.cli.flags import read_flags
from interp.conditions import Lora, RandomLora
from interp.config import Distillation
from interp.experiments import Claims
from interp.experiments.claim_models import ClaimModel
from interp.experiments.claims import ClaimOutcome, PaperClaim, conduct_claim
from interp.matching.distil import LOG, distil

CLAIM = PaperClaim(
    number=2,
    says="Rank-1 updates of V and O shift states along one direction, those of Q and K only by "
    "coincidence.",
    source="openreview zFj9T9kZbm (abstract only)",
    measured="share of the squared shift along its first direction at the first block's attention "
    "output, LoRA on v and o minus LoRA on q and k",
    threshold=0.1,
    reason="a tenth of the squared shift",
)
KINDS = {"vo": ("v_proj", "o_proj"), "qk": ("q_proj", "k_proj")}


def measure(model: ClaimModel) -> ClaimOutcome:
    """The difference of shares, trained; the shares of both, and of random LoRAs."""
    adapters = {kind: Lora(str(trained(model, kind))) for kind in KINDS}
    random = {f"random_{kind}": RandomLora(like=lora) for kind, lora in adapters.items()}
    own = replace(
        model, conditions={"prompt": model.conditions["prompt"], **adapters, **random}, known={}
    )
    at_first = {
        name: own.read(name, own.queries, "attn_out")[0] for name in ("base", *adapters, *random)
    }

    def share(name: str, tokens: object = slice(None)) -> float:
        shift = (at_first[name] - at_first["base"])[tokens]
        squares = np.linalg.svd(shift, compute_uv=False) ** 2
        return float(squares[0] / squares.sum())

    found = own.resampled(lambda tokens: share("vo", tokens) - share("qk", tokens))
    nulls = {f"share, {name.replace('_', ' ')}": share(name) for name in (*adapters, *random)}
    size = {
        n: float(np.linalg.norm(at_first[n] - at_first["base"], axis=-1).mean()) for n in adapters
    }
    note = f"Mean length of the shift: {size['vo']:.2g} by v and o, {size['qk']:.2g} by q and k."
    return ClaimOutcome(*found, len(own.queries), nulls, note)


def trained(model: ClaimModel, kind: str) -> Path:
    """The folder of a rank-1 LoRA distilled from the prompt on these modules; trained once."""
    out = model.made / f"rank1_{kind}"
    if not (out / LOG).exists():
        distil(
            Distillation(
                model=str(model.folder), queries=model.asked, limit=model.limit, out=out,
                rank=1, alpha=2, targets=KINDS[kind], learning_rate=5e-3, overwrite=True,
                device="cpu", **model.training,
            )
        )  # fmt: skip
    return out


if __name__ == "__main__":
    sys.exit(
        guarded(
            lambda: conduct_claim(CLAIM, measure, read_flags(Claims, sys.argv[1:], "claim_02.py"))
        )
    )
