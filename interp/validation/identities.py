"""What must hold of any model, up to rounding, whatever its weights say.

    CHECKS["no-op patch"](specimen)        # a Reading: 0, and it must be 0

Every check is a function of a `Specimen`; bounds are those of its dtype.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch

from interp import edits
from interp.capabilities import influence_errors
from interp.capture import capture, keep
from interp.edits import Edit
from interp.measures import DTYPE_NOISE
from interp.measures.attention import content_js
from interp.names import Site
from interp.patching.interchange import Sweep, no_op_change
from interp.subject.parity import TOLERANCE
from interp.validation.outcome import Reading, largest_or_nan
from interp.validation.planted import first_difference, is_located, site_states
from interp.validation.specimen import BOTH, Specimen

_IMPLICIT = "interp.weights.implicit"


def _bound(specimen: Specimen, exact: float) -> float:
    """A bound for float32, or what rounding allows in half precision."""
    dtype = specimen.subject.dtype
    return exact if dtype == torch.float32 else max(exact, 5 * DTYPE_NOISE[dtype])


def _parity(specimen: Specimen) -> Reading:
    """Logits, stream and patterns of the hooked run against plain Hugging Face + peft."""
    found = specimen.subject.parity
    return Reading(largest_or_nan(found.values()), TOLERANCE[specimen.subject.dtype])


def leak(specimen: Specimen) -> Reading:
    """After any other condition base's logits are the same bits."""
    subject, batch = specimen.subject, specimen.batch
    base = subject.settings["base"]
    before, left = subject.run(base, batch, specimen.caches["base"]), []
    for name, setting in subject.settings.items():
        subject.run(setting, batch, specimen.caches[name])
        if not torch.equal(subject.run(base, batch, specimen.caches["base"]), before):
            left.append(name)
    return Reading(len(left), 0.0, note=f"base is changed after {', '.join(left)}")


def no_op_patch(specimen: Specimen) -> Reading:
    """Base's own values put back into base's run, everywhere."""
    subject = specimen.subject
    whole = tuple(n for n in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
                  if subject.anatomy.layers(n))  # fmt: skip
    heads = ("z", "q", "k", "v") if subject.anatomy.layers("z") else ()
    plan = Sweep("prompt", BOTH, "base", whole, heads, ("last",))
    return Reading(no_op_change(subject, plan, specimen.queries, specimen.caches), 0.0)


def last_state(specimen: Specimen) -> Reading:
    """The last `resid_post` of another condition, in base's run, gives that condition's logits."""
    subject, batch = specimen.subject, specimen.batch
    end, apart = Site("resid_post", subject.n_layers - 1), []
    for name in ("prompt", next(iter(specimen.planted))):
        got = capture(subject, subject.settings[name], batch, specimen.caches[name], {end: keep})
        put = [Edit(end, edits.replace(got.values[end]))]
        base = subject.settings["base"]
        logits = capture(subject, base, batch, specimen.caches["base"], {}, put).logits
        scale = got.logits.float().square().mean().sqrt().clamp(min=1.0)
        apart.append(float((logits - got.logits).abs().max() / scale))
    return Reading(largest_or_nan(apart), _bound(specimen, 1e-6))


def petrov(specimen: Specimen) -> Reading:
    """At base's inputs a prompt scales content attention and leaves its pattern as it is.

    The bound is 1e-6, or the largest score's rounding where that is more: after a prompt queries
    and keys are rotated by other angles. A softmax moves by at most half the largest change of its
    scores, and each of the two runs rounds its own by up to one unit.
    """
    base, prompt = specimen.observed["base"], specimen.observed["prompt"].pinned
    apart = []
    for own, pinned in zip(base.content, prompt, strict=True):
        both = own.isnan() & pinned.isnan()  # a window that holds nothing of the query
        apart.append(float((pinned - own).abs().masked_fill(both, 0.0).max()))
    scores = largest_or_nan([0.0, *(float(s[s.isfinite()].abs().max()) for s in base.scores)])
    rounding = torch.finfo(specimen.subject.dtype).eps * scores
    return Reading(largest_or_nan(apart), max(1e-6, rounding))


def rewiring(specimen: Specimen) -> Reading:
    """The Petrov residual of adapters on queries and keys: what no prefix can do."""
    base, least = specimen.observed["base"].content, float("inf")
    for name, place in specimen.planted.items():
        if place.part in "qk":
            number = specimen.subject.anatomy.layers("pattern").index(place.layer)
            js = content_js(specimen.observed[name].pinned[number], base[number]).nan_to_num()
            least = min(least, float(js.amax((0, 2)).max()))
    return Reading(least, 1e-6, at_least=True)


def _change_sum(specimen: Specimen) -> Reading:
    """The four terms of every head's change add up to it."""
    errors = [float(change.error) for seen in specimen.observed.values() for change in seen.changes]
    return Reading(largest_or_nan(errors), _bound(specimen, 1e-5))


def influence_sum(specimen: Specimen) -> Reading:
    """What heads, MLPs, embedding and norm contribute adds up to the logit, in every condition."""
    errors = influence_errors(specimen.subject, specimen.batch.answer, specimen.last)
    return Reading(largest_or_nan(errors), _bound(specimen, 1e-4))


def _planted(specimen: Specimen) -> Reading:
    """Adapters on one part of one block, or on one head of it: how many are not found there."""
    subject, batch = specimen.subject, specimen.batch
    base, missed = site_states(subject, "base", batch), []
    for name, place in specimen.planted.items():
        found = first_difference(base, site_states(subject, name, batch))
        if not is_located(found, [place]):
            missed.append(f"{place} at {found.site or 'no site'}")
    return Reading(len(missed), 0.0, note=f"seen first: {', '.join(missed)}")


def _implicit_update(specimen: Specimen) -> Reading:
    """The block without the prompt, its weights updated, says what the block with it says
    (Dherin et al. 2507.16003)."""
    subject = specimen.subject
    errors = importlib.import_module(_IMPLICIT).identity_errors(
        subject, "base", "prompt", specimen.queries
    )
    return Reading(float(errors.max()), _bound(specimen, 1e-5))


IDENTITY_CHECKS: dict[str, Callable[[Specimen], Reading]] = {
    "parity": _parity,
    "no leak": leak,
    "planted divergence": _planted,
    "no-op patch": no_op_patch,
    "last state": last_state,
    "Petrov identity": petrov,
    "re-wiring seen": rewiring,
    "change terms": _change_sum,
    "influence terms": influence_sum,
}
"""Name -> check."""

OF = {
    "Petrov identity": "pinned inputs",
    "re-wiring seen": "pinned inputs",
    "change terms": "change decomposition",
    "influence terms": "influence",
}
"""Check -> what must be measurable for it (`interp.capabilities`)."""

if importlib.util.find_spec(_IMPLICIT):
    IDENTITY_CHECKS["implicit update"] = _implicit_update
