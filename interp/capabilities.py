"""What can be measured of a model: every group of measures, and why one is withheld.

    withheld = find(subject, queries)
    withheld                        # {"influence": "its terms do not add up (...)"}; {}: nothing

Parity says that a model runs hooked as it runs plain. Some measures need more: patterns that the
plain model shows, heads that mix values, a residual stream that is a sum. Each is tried on a query
or two in every condition, before anything is measured. What fails is left out by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from interp.batch import Batch, Tokens
from interp.capture import capture, keep
from interp.edits import Edit, replace
from interp.errors import SubjectError
from interp.influence import closing_error, influence
from interp.measures import DTYPE_NOISE, wide
from interp.measures.plan import Observed
from interp.memory import is_out_of_memory
from interp.observe import observe
from interp.queries import Encoded
from interp.readout import LastStates, lens, lens_error
from interp.registry import MEASURES
from interp.selection import NEEDS
from interp.subject import Subject

GROUPS = tuple(dict.fromkeys(m.group for m in MEASURES.values() if m.group))
"""What can be withheld. States and outputs follow from parity alone."""

_CLOSING = 10.0
"""An identity that is out by more than so many times the rounding of the dtype does not hold."""


_STEPS = ("score split", "change decomposition", "pinned inputs", "scores", "patterns")
"""What is left out, one more at a time, where a run that reads everything fails."""


def find(
    subject: Subject,
    queries: Sequence[Encoded],
    base: str = "base",
    unasked: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """Names of `GROUPS` -> why they are withheld, tried on `queries` in every condition.

    `unasked` are not tried. `SubjectError` where not even states can be read.
    """
    batch = Batch.forced(queries, subject.device)
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    withheld = _with_consequences(dict(subject.withheld))
    if subject.anatomy.layers("router") and not subject.anatomy.link:
        withheld["routing"] = "the weights of its experts do not follow from its router's logits"
    if "pinned inputs" not in unasked and (
        reason := _tried(lambda: _pinned_error(subject, batch, base, caches[base]), subject)
    ):
        withheld = _with_consequences(withheld | {"pinned inputs": reason})
    for step in (None, *_STEPS):
        if step is not None:
            withheld = _with_consequences({step: reason} | withheld)
        try:
            unread = unasked.union(withheld)
            observed, last = observe(subject, batch, caches, base, unread)
            break
        except Exception as raised:  # whatever it raises, the architecture is another than assumed
            reason = _reason(raised)
    else:
        raise SubjectError(f"the states of {subject.name} cannot be read: {reason}")
    changes = [float(change.error) for seen in observed.values() for change in seen.changes]
    splits = [float(split.error) for seen in observed.values() for split in seen.splits]
    if "scores" not in unasked.union(withheld) and (
        reason := _not_scores(observed.values(), subject)
    ):
        withheld = _with_consequences(withheld | {"scores": reason})
    if "score split" not in unasked.union(withheld) and _tried(
        lambda: _turned(subject, batch, base, caches[base]), subject
    ):
        withheld["score split"] = "its queries and keys are shown behind the rotary embedding"
    errors: dict[str, Callable[[], float]] = {
        "change decomposition": lambda: _largest(changes),
        "score split": lambda: _largest(splits),
        "lens": lambda: _largest(_lens_errors(subject, batch.answer, last)),
        "influence": lambda: _largest(influence_errors(subject, batch.answer, last, base)),
    }
    for name, error in errors.items():
        if name not in unasked.union(withheld) and (reason := _tried(error, subject)):
            withheld[name] = reason
    return {name: reason for name, reason in withheld.items() if name not in unasked}


def open_sum(error: float, subject: Subject) -> str:
    """Why a sum that is out by a relative error is no sum; "" where it is rounding."""
    bound = _CLOSING * DTYPE_NOISE[subject.dtype]
    if error <= bound:
        return ""
    return f"its parts do not add up (relative error {error:.2g}, bound {bound:.2g})"


def _tried(error: Callable[[], float], subject: Subject) -> str:
    try:
        return open_sum(error(), subject)
    except Exception as raised:  # as above
        return _reason(raised)


def _reason(error: Exception) -> str:
    """What an error says; raised again where memory ran out, which says nothing of the model."""
    if is_out_of_memory(error):
        raise error
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


def _with_consequences(withheld: dict[str, str]) -> dict[str, str]:
    for name, needs in NEEDS.items():
        for needed in needs:
            if needed in withheld:
                withheld.setdefault(name, f"{needed} are withheld")
    return withheld


def _largest(errors: Iterable[float]) -> float:
    """NaN where one is."""
    return float(np.max([0.0, *errors]))


def _pinned_error(subject: Subject, batch: Batch, base: str, cache: Any) -> float:
    """How far base's output is moved by pinning every block's input to what it is."""
    setting, sites = subject.settings[base], subject.sites("resid_pre")
    own = capture(subject, setting, batch, cache, dict.fromkeys(sites, keep))
    edits = [Edit(site, replace(own.values[site])) for site in sites]
    pinned = capture(subject, setting, batch, cache, {}, edits)
    return lens_error(own.logits.flatten(0, 1), pinned.logits.flatten(0, 1))


def _turned(subject: Subject, batch: Batch, base: str, cache: Any) -> float:
    """How far base's queries and keys move with their position alone, every block's input being
    what it is: those behind a rotary embedding cannot be put beside another run's."""
    bare = subject.settings[base]
    stream = subject.sites("resid_pre")
    sites = [*subject.sites("q"), *subject.sites("k")]
    own = capture(subject, bare, batch, cache, dict.fromkeys([*stream, *sites], keep))
    edits = [Edit(site, replace(own.values[site])) for site in stream]
    moved = capture(
        subject, dataclasses.replace(bare, shift=1), batch, cache, dict.fromkeys(sites, keep), edits
    )
    pairs = [(own.values[site], moved.values[site]) for site in sites]
    return _largest([float((x - y).abs().max() / x.abs().max()) for x, y in pairs])


def _not_scores(observed: Iterable[Observed], subject: Subject) -> str:
    """Why scores are not what the patterns are the softmax of (TransformerLens shows the pattern
    twice where the model does not tell its scores); "" where they are."""
    pairs = [pair for seen in observed for pair in zip(seen.scores, seen.content, strict=True)]
    apart = [float((wide(s).softmax(-1) - p).abs().nan_to_num().max()) for s, p in pairs]
    largest, bound = _largest(apart), _CLOSING * DTYPE_NOISE[subject.dtype]
    if largest <= bound:
        return ""
    return f"the model does not show them: patterns are {largest:.2g} from their softmax"


def _lens_errors(
    subject: Subject, tokens: Tokens, last: Mapping[str, LastStates]
) -> Iterator[float]:
    for name, own in last.items():
        yield lens_error(
            own.logits, lens(subject, subject.settings[name], own.resid_post[:, -1], tokens)
        )


def influence_errors(
    subject: Subject, tokens: Tokens, last: Mapping[str, LastStates], base: str = "base"
) -> Iterator[float]:
    """How far the terms of base's top tokens are from adding up to their logits, by condition."""
    target = last[base].logits.argmax(-1)
    for name, setting in subject.settings.items():
        yield closing_error(influence(subject, setting, tokens, last[name], target))
