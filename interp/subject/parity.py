"""The parity self-test: no number leaves the toolkit from a model that was not compared.

For every condition, logits, residual stream and attention patterns of plain Hugging Face + peft
(the whole sequence recomputed, no cache) are recorded before booting; afterwards the hooked,
prefix-cached run must give the same. Differences are relative to the larger of 1 and the
reference's root mean square.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.conditions import Setting
from interp.errors import SubjectError
from interp.names import OUTPUT, Site

if TYPE_CHECKING:
    from interp.subject import Batch, Subject
    from interp.subject.weights import Weights

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference accepted. The half-precision bounds allow for their rounding: both runs
compute the same sums, but a cached prefix may be added in another order."""

Reference = dict[Site | str, Tensor]


def record(hf: Any, setting: Setting, batches: Sequence[Batch]) -> list[Reference]:
    """Logits, residual stream and patterns of the query rows, for batches of one query each."""
    return [_reference(hf, setting, batch) for batch in batches]


def _reference(hf: Any, setting: Setting, batch: Batch) -> Reference:
    prefix = torch.tensor([setting.prefix], dtype=torch.long, device=batch.ids.device)
    length, start = batch.ids.shape[1], len(setting.prefix)
    places = torch.arange(start + length, device=batch.ids.device)
    places = torch.where(places >= start, places + setting.shift, places)
    with torch.no_grad():
        out = hf(
            torch.cat([prefix, batch.ids], dim=1),
            position_ids=places[None],
            attention_mask=torch.ones(1, start + length, device=batch.ids.device),
            output_hidden_states=True,
            output_attentions=True,
            use_cache=False,
        )
    values: Reference = {OUTPUT: batch.biased(out.logits[:, -length:].clone(), setting)}
    for layer, pattern in enumerate(out.attentions):
        values[Site("resid_pre", layer)] = out.hidden_states[layer][:, -length:].clone()
        values[Site("pattern", layer)] = pattern[:, :, -length:].clone()
    return values


def equals_base(
    hf: Any,
    weights: Weights,
    setting: Setting,
    recorded: Sequence[Reference],
    batches: Sequence[Batch],
) -> bool:
    """Whether a setting's weights give exactly the logits of the base weights."""
    bare = Setting(setting.prefix, setting.shift, bias=setting.bias)
    with weights.of(bare):
        base = record(hf, bare, batches)
    return all(torch.equal(a[OUTPUT], b[OUTPUT]) for a, b in zip(base, recorded, strict=True))


def verify(
    subject: Subject,
    name: str,
    setting: Setting,
    batches: Sequence[Batch],
    references: Sequence[Reference],
) -> None:
    """Raise `SubjectError` naming condition, site and difference where the hooked run differs."""
    cache = subject.prefill(setting)
    tolerance = TOLERANCE[subject.dtype]
    for batch, expected in zip(batches, references, strict=True):
        measured: Reference = {}
        hooks = {site: _keep(measured, site) for site in expected if isinstance(site, Site)}
        measured[OUTPUT] = subject.run(setting, batch, cache, hooks)
        for site, value in expected.items():
            difference = _difference(measured[site], value)
            if not difference <= tolerance:
                raise SubjectError(
                    f"parity failed for {subject.name}, condition {name}, {site}: the hooked run "
                    f"differs from plain Hugging Face by {difference:.2g} (bound {tolerance:g}); "
                    "this architecture or adapter cannot be used"
                )


def _keep(measured: Reference, site: Site) -> Any:
    def read(value: Tensor) -> None:
        measured[site] = value.detach().clone()

    return read


def _difference(measured: Tensor, expected: Tensor) -> float:
    """Largest difference; a windowed pattern holds only the last keys, the rest must be 0."""
    measured, expected = measured.float(), expected.float()
    if missing := expected.shape[-1] - measured.shape[-1]:
        measured = torch.nn.functional.pad(measured, (missing, 0))
    scale = max(1.0, float(expected.square().mean().sqrt()))
    return float((measured - expected).abs().max()) / scale
