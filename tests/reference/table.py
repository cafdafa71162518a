"""The rows of a run: measures pooled over tokens and queries, by what they are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from . import families, geometry, measures, readout
from .measures import ALONE, ALONE_WITHOUT_BOS, CHANGED, PAIRED, PAIRED_WITHOUT_BOS
from .numbers import (
    STILL,
    Array,
    js,
    rounding_of_change,
    rounding_of_js,
    softmax,
    top1,
)
from .pooling import last_rows, pooled
from .running import States
from .study import Study, Table, Value

CLOSE_CALL = 1e-4
"""Logits nearer to each other than this may change places by rounding."""


def rows(study: Study) -> Table:
    """Every row that a run must have, and no other."""
    table: Table = {}
    for part in (alone_rows, paired_rows, changed_rows, answer_rows, lens_rows, influence_rows):
        table |= part(study)
    return table | geometry.rows(study) | families.rows(study)


def alone_rows(study: Study) -> Table:
    table: Table = {}
    named = ALONE if study.has_bos else ALONE | ALONE_WITHOUT_BOS
    for a, states in study.observed.items():
        for name, alone in named.items():
            errors = [measures.rounding_without_sink(name[0], s) for s in states]
            table |= pooled(study, name, a, None, [alone(s) for s in states], None, errors)
    return table


def paired_rows(study: Study) -> Table:
    table: Table = {}
    named = PAIRED if study.has_bos else PAIRED | PAIRED_WITHOUT_BOS
    for a, b in study.pairs:
        for name, paired in named.items():
            errors = None
            if name in PAIRED_WITHOUT_BOS:
                errors = [
                    sum(measures.rounding_without_sink(name[0], s) for s in both)
                    for both in study.together(a, b)
                ]
            values = [paired(x, y) for x, y in study.together(a, b)]
            table |= pooled(study, name, a, b, values, None, errors)
    return table


def changed_rows(study: Study) -> Table:
    """Changes from base: of one condition, or of two beside each other."""
    table: Table = {}
    for a, b in study.pairs:
        if b != "base":
            for name, changed in CHANGED.items():
                table |= pooled(study, name, a, b, *changes(study, a, b, name[1], changed))
            continue
        residual = [measures.petrov_residual(x, y) for x, y in study.together(a, b)]
        table |= pooled(study, ("petrov_residual", "pattern"), a, b, residual)
        table |= pooled(study, ("rewiring_share", "pattern"), a, b, *rewired(study, a))
        table |= shares(study, a)
    return table


def rewired(study: Study, a: str) -> tuple[list[Array], list[Array], list[Array]]:
    """Numerators, denominators, and their errors by rounding."""
    parts = [measures.rewiring(x, y) for x, y in study.together(a, "base")]
    return (
        [top for top, _ in parts],
        [bottom for _, bottom in parts],
        [rounding_of_js(bottom) * study.moves(a) for _, bottom in parts],
    )


def shares(study: Study, a: str) -> Table:
    """The four terms of a head's change, as ratios of sums."""
    table: Table = {}
    parts = [measures.change_shares(x, y) for x, y in study.together(a, "base")]
    errors = [
        rounding_of_change(x.z - y.z, y.z) * study.moves(a) for x, y in study.together(a, "base")
    ]
    for name in parts[0][0]:
        tops, bottoms = [top[name] for top, _ in parts], [bottom for _, bottom in parts]
        table |= pooled(study, (name, "z"), a, "base", tops, bottoms, errors)
    return table


def changes(
    study: Study,
    a: str,
    b: str,
    site: str,
    measure: Callable[[Array, Array, Array], Array],
) -> tuple[list[Array], None, list[Array]]:
    """A measure of two changes from base, and its error by rounding."""
    all_deltas = [measures.deltas(*three, site) for three in study.together(a, b, "base")]
    sure = 0.0 if site == "attn_scores" else STILL / 10  # scores cancel: they may be any noise
    errors = [
        rounding_of_change(x, zero, sure) + rounding_of_change(y, zero, sure)
        for x, y, zero in all_deltas
    ]
    moved = measures.moved
    values = [measure(moved(x, zero), moved(y, zero), zero) for x, y, zero in all_deltas]
    return values, None, errors


def answer_rows(study: Study) -> Table:
    table: Table = {}
    observed, answers = study.observed, study.answers
    for a, states in observed.items():
        table["accuracy", a, None, "output", None, None, "last"] = accuracy(states, answers)
    for a, b in study.pairs:
        if b != "base":
            key = ("rec2ftp", a, b, "output", None, None, "last")
            table[key] = rec2ftp(observed["base"], observed[a], observed[b], answers)
    return table


def lens_rows(study: Study) -> Table:
    """What the model would say after each layer, at the last token."""
    table: Table = {}
    for a, states in study.observed.items():
        close_call = [float(readout.margin(s.said) < CLOSE_CALL) for s in states]
        information = map(readout.answer_information, states, study.targets)
        table |= last_rows("lens_kl", a, None, "resid_post", [readout.lens_kl(s) for s in states])
        table |= last_rows("answer_information", a, None, "resid_post", [*information])
        depth = [np.array(readout.decision_depth(s)) for s in states]
        table |= last_rows("decision_depth", a, None, "output", depth, rounding=max(close_call))
    for a, b in study.pairs:
        between = [readout.lens_js(x, y) for x, y in study.together(a, b)]
        table |= last_rows("lens_js", a, b, "resid_post", between)
    return table


def influence_rows(study: Study) -> Table:
    """Every term that the model or one condition of the run has, for every pair."""
    table: Table = {}
    everyone = [states[0] for states in study.observed.values()]
    sites = {name for states in everyone for name in states.terms}
    targets = study.targets
    for a, b in study.pairs:
        changes = [
            readout.influence(x, y, target)
            for (x, y), target in zip(study.together(a, b), targets, strict=True)
        ]
        largest = max(
            float(np.abs(readout.at(x, site, target)).max())
            for states in study.together(a, b)
            for x, target in zip(states, targets, strict=False)
            for site in x.terms
            if site != "output"
        )
        for site in sites:
            values = [change.get(site, np.array(0.0)) for change in changes]
            table |= last_rows("influence", a, b, site, values, scale=largest)
    return table


# --- answers and certificates --------------------------------------------------------------------


def correct(states: Sequence[States], answers: Sequence[int | None]) -> Array:
    """Whether the answer comes first at each query's last token; NaN for queries without one."""
    return np.array([
        np.nan if answer is None else float(top1(s.logits[-1]) == answer)
        for s, answer in zip(states, answers, strict=True)
    ])  # fmt: skip


def accuracy(states: Sequence[States], answers: Sequence[int | None]) -> Value:
    known = correct(states, answers)
    known = known[~np.isnan(known)]
    return Value(float(known.mean()) if len(known) else float("nan"), len(known))


def rec2ftp(
    base: Sequence[States],
    a: Sequence[States],
    reference: Sequence[States],
    answers: Sequence[int | None],
) -> Value:
    """Of what base misses and the reference knows, the share that the condition knows too."""
    zero, own, other = (correct(states, answers) for states in (base, a, reference))
    learned = (zero == 0) & (other == 1)
    value = float(own[learned].mean()) if learned.any() else float("nan")
    return Value(value, int((~np.isnan(zero)).sum()))


def certificate(a: Sequence[States], b: Sequence[States]) -> dict[str, float]:
    """Outputs at each query's last token: mean and 95th percentile of JS, and top-1 agreement."""
    last = [(x.logits[-1], y.logits[-1]) for x, y in zip(a, b, strict=True)]
    divergences = [float(js(softmax(x), softmax(y))) for x, y in last]
    return {
        "mean_js": float(np.mean(divergences)),
        "p95_js": float(np.quantile(divergences, 0.95)),
        "top1_agreement": float(np.mean([top1(x) == top1(y) for x, y in last])),
        "n": len(last),
    }
