"""The one loop: shards of queries x conditions -> capture -> accumulators, merged.

    tally = sweep(InProcess(subject), plan, queries, store, "matched", progress=print)

Memory holds one chunk's query rows in all conditions; what an accumulator keeps does not grow with
the number of queries. Shards are merged in their order, so a resumed run has the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp import readout
from interp.batch import Batch, Tokens
from interp.engines import Engine
from interp.finite import as_rows, warn
from interp.halving import Halving
from interp.influence import closing_error, influence, present_terms
from interp.measures import output
from interp.measures.certificate import in_columns
from interp.measures.layerwise import Values
from interp.measures.measuring import collect, measure
from interp.measures.output import Between, Distribution
from interp.measures.plan import Observed, OutputDistances, Plan, Scale
from interp.measures.readout import answer_information, decision_depth, lens_kl
from interp.measures.tally import Key, Summing, Tally, over_queries
from interp.names import OUTPUT
from interp.observe import observe
from interp.positions import POOLED, position_weights
from interp.progress import Progress
from interp.queries import Encoded
from interp.readout import LastStates
from interp.significance import sign_vectors
from interp.statistics import Maximum, PerQuery, poisson_weights
from interp.store import Store
from interp.subject import Subject


def sweep(
    engine: Engine[Subject],
    plan: Plan,
    queries: Sequence[Encoded],
    store: Store,
    group: str,
    progress: Progress,
) -> Tally:
    """Measure all queries of a group; finished shards of an earlier attempt are not done again, and
    a chunk that memory does not hold is measured in halves."""

    def done(newly: int) -> None:
        progress(group, newly, len(queries))

    def summed(numbers: Sequence[int]) -> Summing:
        keys = [queries[i].key for i in numbers]
        return over_queries(
            poisson_weights(keys, plan.replicates, plan.seed),
            sign_vectors(keys, plan.permutations, plan.seed),
        )

    begin = partial(measuring, plan, queries)
    return store.sharded(group, len(queries), begin, plan.batch_size, done, engine, summed)


def measuring(
    plan: Plan, queries: Sequence[Encoded], subject: Subject
) -> Callable[[Sequence[int]], Tally]:
    """What measures the queries of consecutive numbers on a subject."""
    caches = {name: subject.prefill(setting) for name, setting in subject.settings.items()}
    batches = Halving(plan.batch_size)

    def measured(numbers: Sequence[int]) -> Tally:
        chunk = [queries[i] for i in numbers]
        return measure_chunk(subject, plan, chunk, numbers[0], caches)

    return partial(batches.measured, measure=measured)


def measure_chunk(
    subject: Subject,
    plan: Plan,
    chunk: Sequence[Encoded],
    first: int,
    caches: Mapping[str, Any],
) -> Tally:
    """Every measure on one chunk of queries; `first` is the number of its first query."""
    batch = Batch.forced(chunk, subject.device)
    scale = scale_of(plan, chunk, batch)
    observed, last = observe(subject, batch, caches, plan.base, plan.unread, plan.sites)
    for name, seen in observed.items():
        if seen.broken:
            warn(name, seen.broken, [query.text for query in chunk])
    logits = {name: seen.logits for name, seen in observed.items()}
    apart = output.between(logits, (*plan.pairs, *plan.certified))
    measured = measure(observed, apart, plan, scale)
    said = last[plan.speaker].logits.argmax(-1)
    read = Readouts(
        subject, plan, scale.answers, last, scale.targets.where(scale.targets >= 0, said)
    )
    lenses = _lenses(read, measured) if "lens" not in plan.unread else ()
    terms = _influences(read, measured) if "influence" not in plan.unread else ()
    for found in (lenses, terms):
        collect(found, plan, scale.at_answer(), measured)
    _keep(measured, plan, observed, apart, scale, range(first, first + len(chunk)))
    return measured


def scale_of(plan: Plan, chunk: Sequence[Encoded], batch: Batch) -> Scale:
    """How the tokens of a chunk are summed."""
    segments = [query.segments for query in chunk]
    targets = [token for query in chunk for token in query.answer_ids or (-1,)]
    return Scale(
        position_weights(
            [len(query.ids) for query in chunk],
            batch.ids.shape[1],
            plan.labels,
            [len(found["answer"]) for found in segments],
            [len(found["query"]) for found in segments],
        ),
        plan.labels,
        batch.answer,
        torch.tensor(targets, device=batch.ids.device),
    )


@dataclass(frozen=True)
class Readouts:
    """What the readout of a chunk needs: every condition's states at the tokens that predict an
    answer, and what these should say."""

    subject: Subject
    plan: Plan
    tokens: Tokens
    last: Mapping[str, LastStates]
    targets: Tensor


def _lenses(read: Readouts, measured: Tally) -> Iterator[Values]:
    """The logit lens of every layer; `lens_js` speaks of states, so no logit bias goes into it."""
    subject, tokens, last = read.subject, read.tokens, read.last
    settings = {name: subject.settings[name] for name in last}
    parts: dict[tuple[str, str, str], list[Tensor]] = {}
    errors: dict[str, list[float]] = {name: [] for name in last}
    for rows in _blocks(subject, last):
        states = {name: own.resid_post[rows] for name, own in last.items()}
        bare = {n: readout.lens(subject, settings[n], x) for n, x in states.items()}
        biased = {
            n: readout.lens(subject, settings[n], x, tokens.some(rows))
            for n, x in states.items()
            if settings[n].bias
        }
        for key, value in _lens_values(read, rows, bare, biased).items():
            parts.setdefault(key, []).append(value)
        for name, said in (bare | biased).items():
            errors[name].append(readout.lens_error(last[name].logits[rows], said[:, -1]))
    for name, found in errors.items():
        measured[Key("closing_error", name, "", "lens")] = Maximum.of(found)
    values = {key: torch.cat(part) for key, part in parts.items()}
    for name, own in last.items():
        depth = decision_depth(values.pop(("top1", name, "")), own.logits.argmax(-1))
        yield Key("decision_depth", name, "", OUTPUT), tokens.spread(depth), 1.0
    for key, value in values.items():
        yield Key(*key, "resid_post"), tokens.spread(value), 1.0


def _lens_values(
    read: Readouts, some: slice, bare: Mapping[str, Tensor], biased: Mapping[str, Tensor]
) -> dict[tuple[str, str, str], Float[Tensor, "token layer"]]:
    """What is read off the lenses of some tokens: every distribution is made once, for all
    measures, and that of the output for all layers."""
    whole = next(iter(bare.values()))
    outputs = {name: own.logits[some] for name, own in read.last.items()}
    targets = read.targets[some]
    found: dict[tuple[str, str, str], Tensor] = {}

    def put(name: str, a: str, b: str, value: Tensor) -> None:
        kept = found.setdefault((name, a, b), value.new_empty(whole.shape[:2]))
        kept[rows, layer] = value

    for rows in output.token_blocks(whole[:, 0]):
        final = {name: Distribution.of(x[rows]) for name, x in outputs.items()}
        for layer in range(whole.shape[1]):
            own = {name: Distribution.of(x[rows, layer]) for name, x in bare.items()}
            for a, b in read.plan.pairs:
                put("lens_js", a, b, own[a].js(own[b]))
            own |= {name: Distribution.of(x[rows, layer]) for name, x in biased.items()}
            for name, said in own.items():
                put("top1", name, "", said.top)
                put("lens_kl", name, "", lens_kl(final[name], said))
                put("answer_information", name, "", answer_information(said, targets[rows]))
    return found


_LENS = 1 << 25
"""Logits of the lens that are held at once, of all layers and conditions: of so many tokens."""


def _blocks(subject: Subject, last: Mapping[str, LastStates]) -> Iterator[slice]:
    """Consecutive tokens whose lenses are held together."""
    one = subject.n_layers * sum(own.logits.shape[-1] for own in last.values())
    step, tokens = max(1, _LENS // one), len(next(iter(last.values())).logits)
    for start in range(0, tokens, step):
        yield slice(start, start + step)


def _influences(read: Readouts, measured: Tally) -> Iterator[Values]:
    """What changed the target's logit between the conditions of every pair, term by term."""
    subject, plan, tokens = read.subject, read.plan, read.tokens
    against = None if plan.against is None else torch.full_like(read.targets, plan.against)
    parts = {
        name: influence(subject, subject.settings[name], tokens, own, read.targets, against)
        for name, own in read.last.items()
    }
    for name, part in parts.items():
        error = closing_error(part)
        measured[Key("closing_error", name, "", "influence")] = Maximum.of([error])
    there = present_terms(subject)
    for a, b in plan.pairs:
        change = parts[a] - parts[b]
        yield Key("influence", a, b, OUTPUT), tokens.spread(change.total), 1.0
        for site, term in change.terms().items():
            if site in there:
                yield Key("influence", a, b, site), tokens.spread(term), 1.0


def _keep(
    measured: Tally,
    plan: Plan,
    observed: Mapping[str, Observed],
    apart: OutputDistances,
    scale: Scale,
    numbers: range,
) -> None:
    """What is kept query by query: outputs for the certificate, states of the sample."""
    tokens = scale.answers
    for a, b in plan.certified:
        outputs = in_columns(Between(*map(tokens.pick, apart[a, b])), tokens, plan.longest_answer)
        measured[Key("certificate", a, b, OUTPUT)] = PerQuery.of(numbers, outputs)
    rows = [i for i, number in enumerate(numbers) if number in plan.sample]
    for name in plan.kept:
        stream = torch.stack(observed[name].states["resid_post"], dim=1)[rows]
        for label in kept_labels(plan.labels):
            share = torch.from_numpy(scale.positions[rows, :, plan.labels.index(label)])
            states = _pooled_states(stream, share.to(stream))
            key = Key("states", name, "", f"resid_post {label}")
            measured[key] = PerQuery.of([numbers[i] for i in rows], states)
    for name, seen in observed.items():
        measured[no_numbers(name)] = as_rows(seen.broken, numbers)
        for identity, parts in (
            ("change_decomposition", seen.changes),
            ("score_split", seen.splits),
        ):
            if parts:
                key = Key("closing_error", name, "", identity)
                measured[key] = Maximum.of(
                    [float(torch.stack([part.error for part in parts]).max())]
                )


def no_numbers(condition: str) -> Key:
    """Where the queries are kept on which a condition's values are no numbers."""
    return Key("no numbers", condition, "", OUTPUT)


def kept_labels(labels: Sequence[str]) -> list[str]:
    """Where states are kept: at the last token, and the mean of every segment."""
    return [label for label in labels if label in POOLED and label != "mean"]


def _pooled_states(
    stream: Float[Tensor, "query layer query_pos d_model"], share: Float[Tensor, "query query_pos"]
) -> Float[np.ndarray, "query column"]:
    """The mean state of every query's chosen tokens, layers one after the other, float32; NaN where
    a query has none."""
    total = torch.einsum("q l p d, q p -> q l d", stream, share)
    mean = total / share.sum(-1)[:, None, None]
    return mean.flatten(1).float().cpu().numpy()
