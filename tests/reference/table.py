"""The rows of a run: measures pooled over tokens and queries, by what they are about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from . import families, geometry, measures, readout
from .measures import ALONE, ALONE_WITHOUT_BOS, CHANGED, PAIRED, PAIRED_WITHOUT_BOS, ROUTED
from .numbers import (
    STILL,
    Array,
    js,
    kl_logits,
    rounding_of_change,
    rounding_of_js,
    softmax,
    top1,
)
from .pooling import pooled, spread
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
    named = named | ROUTED if study.observed["base"][0].routers else named
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
        rounding_of_change(x.mixed - y.mixed, y.mixed) * study.moves(a)
        for x, y in study.together(a, "base")
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
    """What is known of every token of the answers, and of answers as wholes."""
    table: Table = {}
    right = {name: correct(study, name) for name in study.observed}
    for a, values in right.items():
        table |= at_answers(study, ("accuracy", "output"), a, None, values)
    for a, b in study.pairs:
        if b != "base":
            learned = [
                np.where(np.isnan(zero), np.nan, (zero == 0) & (other == 1))
                for zero, other in zip(right["base"], right[b], strict=True)
            ]
            both = [x * y for x, y in zip(learned, right[a], strict=True)]
            table |= at_answers(study, ("rec2ftp", "output"), a, b, both, learned)
        if study.segments:
            table |= whole_answers(study, a, b)
    return table


def whole_answers(study: Study, a: str, b: str) -> Table:
    compared = [outputs(x, y) for x, y in study.together(a, b)]
    n = len(compared)
    values = {
        "sequence_kl": float(np.mean([each.kl.sum() for each in compared])),
        "answer_agreement": float(np.mean([each.same.all() for each in compared])),
    }
    return {
        (name, a, b, "output", None, None, "answer"): Value(value, n)
        for name, value in values.items()
    }


def at_answers(
    study: Study,
    name: tuple[str, str],
    a: str,
    b: str | None,
    tops: Sequence[Array],
    bottoms: Sequence[Array] | None = None,
    errors: Sequence[Array] | None = None,
    scale: float = 1.0,
) -> Table:
    """Rows of a measure that the answer's tokens have, from its values there."""

    def all_rows(values: Sequence[Array]) -> list[Array]:
        base = study.observed["base"]
        return [spread(value, states) for value, states in zip(values, base, strict=True)]

    parts = [None if values is None else all_rows(values) for values in (bottoms, errors)]
    labels = study.answer_positions
    return pooled(study, name, a, b, all_rows(tops), *parts, labels=labels, scale=scale)


def lens_rows(study: Study) -> Table:
    """What the model would say after each layer, at the rows that predict the answer."""
    table: Table = {}
    targets = study.targets
    for a, states in study.observed.items():
        close_call = [(readout.margin(s.said) < CLOSE_CALL).astype(float) for s in states]
        kl = [readout.lens_kl(s) for s in states]
        information = [*map(readout.answer_information, states, targets)]
        depth = [readout.decision_depth(s) for s in states]
        table |= at_answers(study, ("lens_kl", "resid_post"), a, None, kl)
        table |= at_answers(study, ("answer_information", "resid_post"), a, None, information)
        table |= at_answers(study, ("decision_depth", "output"), a, None, depth, errors=close_call)
    for a, b in study.pairs:
        between = [readout.lens_js(x, y) for x, y in study.together(a, b)]
        table |= at_answers(study, ("lens_js", "resid_post"), a, b, between)
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
            for states, target in zip(study.together(a, b), targets, strict=True)
            for x in states
            for site in x.terms
            if site != "output"
        )
        for site in sites:
            values = [c.get(site, np.zeros(len(t))) for c, t in zip(changes, targets, strict=True)]
            table |= at_answers(study, ("influence", site), a, b, values, scale=largest)
    return table


# --- answers and certificates --------------------------------------------------------------------


def correct(study: Study, name: str) -> list[Array]:
    """Whether every row of an answer puts its token first; NaN where that is not known."""
    observed = zip(study.observed[name], study.known, strict=True)
    return [
        np.where(np.isnan(known), np.nan, top1(states.logits[states.answer]) == known)
        for states, known in observed
    ]


class Outputs(NamedTuple):
    """Two outputs at every row of an answer."""

    js: Array
    kl: Array
    same: Array


def outputs(a: States, b: States) -> Outputs:
    x, y = a.logits[a.answer], b.logits[b.answer]
    return Outputs(js(softmax(x), softmax(y)), kl_logits(x, y), top1(x) == top1(y))


def certificate(a: Sequence[States], b: Sequence[States]) -> dict[str, float]:
    """Outputs at all tokens of the answers: mean and 95th percentile of JS over answers, top-1
    agreement by token and of whole answers, nats per answer."""
    compared = [outputs(x, y) for x, y in zip(a, b, strict=True)]
    divergences = [float(each.js.mean()) for each in compared]
    return {
        "mean_js": float(np.mean(divergences)),
        "p95_js": float(np.quantile(divergences, 0.95)),
        "top1_agreement": float(np.mean([each.same.mean() for each in compared])),
        "answer_agreement": float(np.mean([each.same.all() for each in compared])),
        "sequence_kl": float(np.mean([each.kl.sum() for each in compared])),
        "n": len(compared),
        "tokens": sum(len(each.js) for each in compared),
    }
