"""What a run's differences say: `interp read` on a finished run.

    read_run(DifferenceReading(run="RUN"))        # RUN/reading.parquet, reading_tokens.parquet

The run says which model, conditions and queries. `interp.report.write` then draws what was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.design import BASE
from interp.engines import InProcess
from interp.errors import SubjectError
from interp.measures import DTYPE_NOISE
from interp.measures.tally import Key, Tally
from interp.patching.effects import halves
from interp.progress import Progress, no_progress
from interp.queries import Encoded
from interp.reading.differences import (
    GroupStates,
    LayerLenses,
    ReadRow,
    WordPlan,
    difference_sizes,
    read_differences,
)
from interp.reading.job import (
    MATCHED_QUERIES,
    UNRELATED_QUERIES,
    ReadJob,
    prepare_reading,
)
from interp.reading.lens import DifferenceLens, TransportedLens
from interp.reading.own import follow_variables
from interp.reading.patchscope import patchscope_rows
from interp.reading.settings import DifferenceReading
from interp.reading.states import segment_means
from interp.reading.steering import steering_rows
from interp.reading.words import given_words, said_words, token_text
from interp.runs.files import add_reading
from interp.runs.readings import JACOBIAN_LENS, LOGIT_LENS, WordLens
from interp.runs.view import load_run
from interp.statistics import PerQuery, poisson_weights
from interp.store import Store
from interp.subject.jacobian import fit_jacobians
from interp.subject.loading import threads_for

__all__ = ["read_run"]


def read_run(settings: DifferenceReading, progress: Progress = no_progress) -> Path:
    """Read what the differences between a finished run's conditions say; returns its folder.

    Raises what `interp.study.run_study` raises, each with one line that says what to do.
    """
    manifest = load_run(settings.run).manifest
    with Store.of_run(settings, manifest, "read", {"batch_size"}) as store:
        job = prepare_reading(settings, progress)
        with threads_for(job.subject.n_parameters):
            rows, tokens, findings = _find(settings, job, store, progress)
        add_reading(settings.run, pd.DataFrame(rows), pd.DataFrame(tokens), findings)
    return settings.run


def _find(
    settings: DifferenceReading, job: ReadJob, store: Store, progress: Progress
) -> tuple[list[ReadRow], list[ReadRow], dict[str, Any]]:
    """Rows of the run's table, ranked tokens, and what its manifest says of them."""
    engine, layers = InProcess(job), _layers(settings, job)
    states, tops = {}, {}
    for group in job.groups:
        states[group], tops[group] = _states(group, layers, job, engine, store, progress)
    words, used, notes = _words(settings, job, tops[MATCHED_QUERIES])
    lenses, fitted, told = _lenses(settings, job, layers, progress)
    notes += told
    names = [token_text(job.subject.tokenizer, token) for token in range(job.subject.d_vocab)]
    rows: list[ReadRow] = []
    tokens: list[ReadRow] = []
    total = len(job.pairs) * len(states) * len(lenses)
    for own in states.values():
        plan = _plan(settings, job, own, words, names, used)
        done = partial(progress, "lens", 1, total)
        rows += difference_sizes(own, job.pairs, plan)
        for by, each in lenses.items():
            more, said = read_differences(each, own, job.pairs, plan, done, by)
            rows, tokens = rows + more, tokens + said
        more, said = _more(settings, job, own, plan, progress)
        rows, tokens = rows + more, tokens + said
    if settings.variables:
        base = states[MATCHED_QUERIES]
        part = follow_variables(settings, job, base, words, names, engine, store, progress)
        rows, tokens, notes = rows + part.rows, tokens + part.tokens, notes + part.notes
    else:
        part = None
    findings = {
        "sides": list(job.sides),
        "pairs": [_entry(pair, null) for pair, null in job.pairs.items()],
        "n": {name: len(queries) for name, queries in job.groups.items()},
        "scored": int(used.sum()),
        "positions": {name: list(labels) for name, labels in job.labels.items()},
        "words": list(words),
        "chosen": not settings.words,
        "carrier": settings.carrier if settings.patchscope else None,
        "interval": {"replicates": settings.bootstrap},
        "jacobian": {"under": settings.jacobian, "texts": fitted}
        if JACOBIAN_LENS in lenses
        else None,
        "variables": part.entry if part else None,
        "notes": notes,
    }
    return rows, tokens, findings


def _lenses(
    settings: DifferenceReading, job: ReadJob, layers: Sequence[int], progress: Progress
) -> tuple[dict[WordLens, LayerLenses], int, list[str]]:
    """What differences are read by; on how many texts the Jacobian lens was fitted; a note where it
    does not apply. Of the last layer it is the logit lens."""
    subject = job.subject
    logit = DifferenceLens(subject, subject.settings[BASE])
    found: dict[WordLens, LayerLenses] = {LOGIT_LENS: dict.fromkeys(layers, logit)}
    if settings.jacobian is None:
        return found, 0, []
    setting = subject.settings[settings.jacobian]
    texts = [query.text for query in job.groups[UNRELATED_QUERIES]]
    done = partial(progress, "Jacobian lens", 1, len(texts))
    try:
        fitted = fit_jacobians(subject, setting, texts, layers, done)
    except SubjectError as error:
        return found, 0, [str(error)]
    own = DifferenceLens(subject, setting)
    onward = {layer: TransportedLens(own, matrix) for layer, matrix in fitted.matrices.items()}
    found[JACOBIAN_LENS] = {layer: onward.get(layer, own) for layer in layers}
    return found, fitted.n, []


def _plan(
    settings: DifferenceReading,
    job: ReadJob,
    own: GroupStates,
    words: Mapping[str, int],
    names: Sequence[str],
    used: np.ndarray,
) -> WordPlan:
    return WordPlan(
        words,
        names,
        used if own.name == MATCHED_QUERIES else np.ones(len(own.keys), dtype=bool),
        poisson_weights(own.keys, settings.bootstrap, job.seed),
        settings.top,
        settings.directions,
        DTYPE_NOISE[job.subject.dtype],
    )


def _more(
    settings: DifferenceReading,
    job: ReadJob,
    own: GroupStates,
    plan: WordPlan,
    progress: Progress,
) -> tuple[list[ReadRow], list[ReadRow]]:
    """Mean differences written into a neutral prompt, and added to base while it writes."""
    rows: list[ReadRow] = []
    tokens: list[ReadRow] = []
    pairs = list(job.pairs)
    if settings.patchscope:
        total = len(own.labels) * len(own.layers) * len(job.groups)
        done = partial(progress, "patchscope", 1, total)
        given = (job.subject, job.carrier, own, pairs, plan, job.seed, done)
        rows, tokens = patchscope_rows(*given)
    if settings.steer and plan.words:
        layers = list(own.layers)
        wanted = settings.steer_layer if settings.steer_layer is not None else layers[-1] // 2
        layer = min(layers, key=lambda one: (abs(one - wanted), one))
        queries = job.groups[UNRELATED_QUERIES][: settings.steer_texts]
        count = (1 + 2 * len(pairs) * len(settings.steer)) * len(job.groups)
        done = partial(progress, "steered samples", 1, count)
        draws = (settings.bootstrap, job.seed)
        more, texts = steering_rows(
            job.subject, queries, own, pairs, plan, (layer, own.labels[-1]), settings.steer,
            settings.steer_tokens, draws, done,
        )  # fmt: skip
        rows, tokens = rows + more, tokens + texts
    return rows, tokens


def _entry(pair: Sequence[str], null: Sequence[str] | None) -> dict[str, Any]:
    return {"condition": pair[0], "reference": pair[1], "null": list(null) if null else None}


def _layers(settings: DifferenceReading, job: ReadJob) -> list[int]:
    """Every so many back from the last."""
    return [site.layer for site in job.subject.sites("resid_post")][:: -settings.every][::-1]


def _states(
    group: str,
    layers: Sequence[int],
    job: ReadJob,
    engine: InProcess[ReadJob],
    store: Store,
    progress: Progress,
) -> tuple[GroupStates, dict[str, list[int]]]:
    """Mean states of a group under every condition, and the token that each says next."""
    queries, labels = job.groups[group], job.labels[group]

    def done(newly: int) -> None:
        progress(f"{group} states", newly, len(queries))

    begin = partial(_reading, group, list(layers))
    total = store.sharded(f"{group}-states", len(queries), begin, job.batch_size, done, engine)
    means = {name: _kept(total, "means", name) for name in job.conditions}
    tops = {name: _kept(total, "top", name)[:, 0].astype(int).tolist() for name in job.conditions}
    keys = [query.key for query in queries]
    return GroupStates(group, keys, labels, layers, means), tops


def _reading(group: str, layers: Sequence[int], job: ReadJob) -> Callable[[Sequence[int]], Tally]:
    labels = job.labels[group]

    def compute(numbers: Sequence[int]) -> Tally:
        some = [job.groups[group][number] for number in numbers]
        return dict(_of_chunk(job, some, numbers, labels, layers))

    return compute


def _of_chunk(
    job: ReadJob,
    queries: Sequence[Encoded],
    numbers: Sequence[int],
    labels: Sequence[str],
    layers: Sequence[int],
) -> Iterator[tuple[Key, PerQuery]]:
    for name in job.conditions:
        seen = segment_means(job.subject, name, queries, job.caches[name], labels, layers)
        yield _place("means", name), PerQuery.of(numbers, seen.means.cpu().numpy())
        top = seen.top[:, None].to(seen.means).cpu().numpy()
        yield _place("top", name), PerQuery.of(numbers, top)


def _place(what: str, condition: str) -> Key:
    return Key(what, condition, "", "resid_post")


def _kept(total: Tally, what: str, condition: str) -> np.ndarray:
    kept = total[_place(what, condition)]
    assert isinstance(kept, PerQuery)
    return kept.compute()


def _words(
    settings: DifferenceReading, job: ReadJob, tops: Mapping[str, Sequence[int]]
) -> tuple[dict[str, int], np.ndarray, list[str]]:
    """The task words, the matched queries that they are scored on, and notes."""
    queries = job.groups[MATCHED_QUERIES]
    everyone = np.ones(len(queries), dtype=bool)
    if settings.words:
        return given_words(job.subject.tokenizer, settings.words), everyone, []
    chosen, scored = halves([query.key for query in queries], job.seed)
    answers = _answers(settings, job, tops)
    own = {name: [said[i] for i in np.flatnonzero(chosen)] for name, said in answers.items()}
    words = said_words(job.subject.tokenizer, own, job.sides)
    if words:
        return words, scored, []
    note = (
        f"no token is said more by {' and '.join(job.sides)} than by base: no word is scored "
        "(name some with --words)"
    )
    return {}, everyone, [note]


def _answers(
    settings: DifferenceReading, job: ReadJob, tops: Mapping[str, Sequence[int]]
) -> dict[str, list[list[int]]]:
    """What base and the sides answer: as the run has it written, else the next token of each."""
    names, count = [BASE, *job.sides], len(job.groups[MATCHED_QUERIES])
    written = load_run(settings.run).answers
    written = written[(written["queries"] == MATCHED_QUERIES) & (written["query"] < count)]
    if not set(names) <= set(written["condition"]):
        return {name: [[token] for token in tops[name]] for name in names}
    ordered = written.sort_values("query")
    return {
        name: [list(map(int, ids)) for ids in ordered.loc[ordered["condition"] == name, "ids"]]
        for name in names
    }
