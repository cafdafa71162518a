"""The stage of `interp read` that follows a LoRA's own variables through the run's queries.

part = follow_variables(settings, job, states, words, names, engine, store, progress)
part.rows, part.tokens, part.entry, part.notes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from interp.design import BASE
from interp.engines import InProcess
from interp.patching.effects import halves
from interp.progress import Progress
from interp.reading.differences import GroupStates, ReadRow
from interp.reading.job import MATCHED_QUERIES, UNRELATED_QUERIES, ReadJob
from interp.reading.lens import DifferenceLens
from interp.reading.settings import DifferenceReading
from interp.reading.variable_rows import (
    QueryDraws,
    channel_rows,
    detection_rows,
    driver_tokens,
    strongest_directions,
)
from interp.reading.variables import (
    SeenVariables,
    Variables,
    collected,
    following,
    variables_of,
)
from interp.reading.writes import residual_writers, written_words
from interp.statistics import poisson_weights
from interp.store import Store


class OwnPart(NamedTuple):
    """Rows, ranked tokens, the entry of the manifest (None: no LoRA to follow), notes."""

    rows: list[ReadRow]
    tokens: list[ReadRow]
    entry: dict[str, Any] | None
    notes: list[str]


def follow_variables(
    settings: DifferenceReading,
    job: ReadJob,
    base: GroupStates,
    words: Mapping[str, int],
    names: Sequence[str],
    engine: InProcess[ReadJob],
    store: Store,
    progress: Progress,
) -> OwnPart:
    """What a LoRA's directions see and write, on both groups of texts; `base`: the matched states,
    whose mean says where the lens of what is written is taken."""
    of = variables_of(job)
    if of is None:
        return OwnPart([], [], None, ["no side is one plain LoRA: its directions are not followed"])
    seen = {
        g: _seen(g, of, job, engine, store, progress) for g in (MATCHED_QUERIES, UNRELATED_QUERIES)
    }
    draws = {g: _draws(settings, job, g) for g in seen}
    rows: list[ReadRow] = []
    tokens: list[ReadRow] = []
    for group, own in seen.items():
        rows += channel_rows(own, of, job.neutral, group, draws[group])
    rows += detection_rows(
        seen[MATCHED_QUERIES],
        seen[UNRELATED_QUERIES],
        of,
        draws[MATCHED_QUERIES],
        draws[UNRELATED_QUERIES],
    )
    chosen = strongest_directions(seen[MATCHED_QUERIES], of, settings.strongest)
    for group, own in seen.items():
        queries = job.groups[group]
        tokens += driver_tokens(own, of, queries, names, group, chosen, settings.top)
    written = _written(settings, job, of, base, list(words.values()), names, seen[MATCHED_QUERIES])
    entry = {
        "lora": of.lora,
        "random": job.random if len(of.owners) > 1 else None,
        "neutral": job.neutral,
        "users": list(of.users),
        "strongest": [_direction(of, *one) for one in chosen],
    }
    return OwnPart(rows + written[0], tokens + written[1], entry, [])


def _direction(of: Variables, number: int, size: float, _: int) -> dict[str, Any]:
    module, k = of.own.places[number]
    return {"module": module, "direction": k, "size": size}


def _seen(
    group: str,
    of: Variables,
    job: ReadJob,
    engine: InProcess[ReadJob],
    store: Store,
    progress: Progress,
) -> SeenVariables:
    queries = job.groups[group]

    def done(newly: int) -> None:
        progress(f"{group} variables", newly, len(queries))

    begin = partial(following, group, of)
    place = f"{group}-variables"
    tally = store.sharded(place, len(queries), begin, job.batch_size, done, engine)
    return collected(tally, job.labels[group])


def _draws(settings: DifferenceReading, job: ReadJob, group: str) -> QueryDraws:
    keys = [query.key for query in job.groups[group]]
    chosen, _ = halves(keys, job.seed)
    return QueryDraws(poisson_weights(keys, settings.bootstrap, job.seed), chosen)


def _written(
    settings: DifferenceReading,
    job: ReadJob,
    of: Variables,
    base: GroupStates,
    words: Sequence[int],
    names: Sequence[str],
    seen: SeenVariables,
) -> tuple[list[ReadRow], list[ReadRow]]:
    """The lens of every direction that writes to the stream, the LoRA's turned by the sign of its
    mean coordinate; tokens of its strongest ones."""
    lens = DifferenceLens(job.subject, job.subject.settings[BASE])
    state = torch.from_numpy(base.at(BASE, 0, len(base.layers) - 1).mean(0))
    writers = residual_writers(job.subject, of.own.modules)
    places = [i for i, (module, _) in enumerate(of.own.places) if module in writers]
    turned = strongest_directions(seen, of, len(of.own.places))
    own = [(of.own.places[number], sign) for number, _, sign in turned if number in places]
    rows: list[ReadRow] = []
    tokens: list[ReadRow] = []
    for name, channels in of.owners.items():
        signs = dict(own[: settings.strongest]) if name == of.lora else {}
        found = written_words(lens, channels, writers, state, words, names, signs, settings.top)
        rows, tokens = rows + found[0], tokens + found[1]
    return rows, tokens
