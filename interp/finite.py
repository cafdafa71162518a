"""Queries on which a run stops being numbers: where it begins, and how that is kept and told.

    broken = first_broken(run, batch)       # {3: "attn_out of layer 7"}: the batch's query 3
    kept = as_rows(broken, range(16))       # by query, for a shard
    told("lora", kept, "matched")           # a note, or None

What is NaN or infinite in a block is so in all that follow, so the logits tell whether there is
anything to look for.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from interp.batch import Batch
from interp.capture import Captured
from interp.names import OUTPUT, Site
from interp.statistics import PerQuery

_ORDER = ("resid_pre", "q", "k", "v", "z", "attn_out", "mixer_out", "resid_mid", "mlp_out",
          "resid_post")  # fmt: skip
"""Sites of a block, in the order in which it computes them."""

_OUTPUT_ROW, _FINE = -1.0, -2.0


def first_broken(run: Captured, batch: Batch) -> dict[int, Site | None]:
    """Number in the batch of every query with values that are no numbers -> the first site that has
    one (None: the output alone)."""
    length = batch.ids.shape[1]
    real = torch.arange(length, device=batch.ids.device) < batch.lengths[:, None]
    found = _queries(run.logits, real)
    if not found:
        return {}
    kept = [site for site, value in run.values.items() if _is_state(site, value, length)]
    broken: dict[int, Site | None] = dict.fromkeys(found)
    for site in sorted(kept, key=lambda site: (-(site.layer or 0), -_ORDER.index(site.name))):
        for query in _queries(run.values[site], real):
            broken[query] = site
    return broken


def _is_state(site: Site, value: object, length: int) -> bool:
    return site.name in _ORDER and isinstance(value, Tensor) and value.shape[-2] == length


def _queries(value: Tensor, real: Tensor) -> list[int]:
    """The queries that have a token with values that are no numbers; heads stand before tokens."""
    fine = torch.isfinite(value).all(-1)
    fine = fine.all(1) if fine.ndim == 3 else fine
    return (~fine & real).any(-1).nonzero().flatten().tolist()


def as_rows(broken: Mapping[int, Site | None], numbers: Sequence[int]) -> PerQuery:
    """What is kept of consecutive queries: the first site, as a number."""
    rows = torch.full((len(numbers), 1), _FINE, dtype=torch.float64)
    for query, site in broken.items():
        place = _OUTPUT_ROW if site is None else _code(site)
        rows[query] = place
    return PerQuery.of(list(numbers), rows.numpy())


def _code(site: Site) -> float:
    return float((site.layer or 0) * len(_ORDER) + _ORDER.index(site.name))


def told(condition: str, kept: PerQuery, group: str) -> str | None:
    """How many queries of a group are left out of a condition's measures, and from which site on;
    None where all are numbers."""
    codes = kept.compute()[:, 0]
    broken = codes[codes != _FINE]
    if not len(broken):
        return None
    first = broken[broken >= 0]
    where = OUTPUT
    if len(first):
        layer, name = divmod(int(first.min()), len(_ORDER))
        where = f"{_ORDER[name]} of layer {layer}"
    return (
        f"condition {condition}: NaN or infinite values from {where} on, in {len(broken)} of "
        f"{len(codes)} {group} queries: its measures leave them out (n says how many count)"
    )


def warn(condition: str, broken: Mapping[int, Site | None], texts: Sequence[str]) -> None:
    """Say so while the run goes on, with the first such query."""
    query, site = min(broken.items())
    where = OUTPUT if site is None else f"{site.name} of layer {site.layer}"
    logging.getLogger("interp").warning(
        "condition %s: NaN or infinite values from %s on, in %d of the %d queries of this chunk "
        "(first: %.60r): its measures leave them out",
        condition, where, len(broken), len(texts), texts[query],
    )  # fmt: skip
