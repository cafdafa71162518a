"""Answers of a study: what conditions write, what is forced on all of them, what a run keeps.

    names = list(subject.settings)
    written = write_answers(InProcess(subject), names, groups, 16, Sampling(), store, progress)
    groups = forced(groups, written, "prompt")          # the prompt's answers, on every condition
    answer_table(subject, groups, written)              # RUN/answers.parquet

Without written answers those of the query file are forced, where it has any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.conditions import Condition
from interp.engines import Engine
from interp.errors import RunError
from interp.generating import Sampling, generate
from interp.measures.tally import Key, Tally
from interp.names import OUTPUT
from interp.progress import Progress
from interp.queries import Encoded, Groups, Query
from interp.registry import MEASURES
from interp.runs.files import QUERIES, read_manifest, token_hash
from interp.statistics import PerQuery, pooled
from interp.store import SHARD, Store
from interp.subject import Subject
from interp.subject.aligning import check_lengths, encode_groups

WrittenAnswers = Mapping[str, Mapping[str, Sequence[tuple[int, ...]]]]
"""Group -> condition -> the token ids of every query's answer."""

_NOTHING = -1
"""Fills rows of answers that are shorter than the longest that is allowed."""


def write_answers(
    engine: Engine[Subject],
    names: Sequence[str],
    groups: Groups,
    n_tokens: int,
    sampling: Sampling,
    store: Store,
    progress: Progress,
) -> WrittenAnswers:
    """The own answers of the conditions of these names; those of an earlier attempt are not written
    again."""
    written: dict[str, dict[str, list[tuple[int, ...]]]] = {}
    for group, queries in groups.items():
        total = len(queries) * len(names)
        done = partial(_written, progress, f"{group} answers", total)
        for name in names:
            begin = partial(_answering, name, queries, n_tokens, sampling)
            place = f"answers-{group}-{name}"
            found = store.sharded(place, len(queries), begin, SHARD, done, engine)
            kept = found[_key(name)]
            assert isinstance(kept, PerQuery)
            rows = kept.compute().astype(int).tolist()
            own = [tuple(i for i in row if i != _NOTHING) for row in rows]
            written.setdefault(group, {})[name] = own
    return written


def _written(progress: Progress, what: str, total: int, newly: int) -> None:
    progress(what, newly, total)


def _answering(
    name: str,
    queries: Sequence[Encoded],
    n_tokens: int,
    sampling: Sampling,
    subject: Subject,
) -> Callable[[Sequence[int]], Tally]:
    """What a condition of a subject answers to the queries of given numbers."""

    def answers(numbers: Sequence[int]) -> Tally:
        some = [queries[i] for i in numbers]
        found = generate(subject, subject.settings[name], some, n_tokens, sampling)
        return {_key(name): PerQuery.of(numbers, _padded(found, n_tokens))}

    return answers


def _key(name: str) -> Key:
    return Key("answer", name, "", OUTPUT)


def _padded(answers: Sequence[tuple[int, ...]], width: int) -> np.ndarray:
    rows = [[*answer, *[_NOTHING] * (width - len(answer))] for answer in answers]
    return np.array(rows, dtype=np.float64)


def forced(
    subject: Subject, groups: Groups, written: WrittenAnswers, condition: str
) -> dict[str, list[Encoded]]:
    """The queries with one condition's answers."""
    answered = {
        group: [
            replace(query, answer_ids=answer)
            for query, answer in zip(queries, written[group][condition], strict=True)
        ]
        for group, queries in groups.items()
    }
    for queries in answered.values():
        check_lengths(subject, queries)
    return answered


def query_table(groups: Groups) -> pd.DataFrame:
    """What was measured, token by token: `RUN/queries.parquet`."""
    return pd.DataFrame(
        [
            {
                "queries": group,
                "query": number,
                "text": query.text,
                "label": query.label,
                "ids": list(query.ids),
                "n_text": len(query.ids) if query.n_text is None else query.n_text,
                "answer_ids": list(query.answer_ids),
            }
            for group, queries in groups.items()
            for number, query in enumerate(queries)
        ]
    )


def answer_table(subject: Subject, written: WrittenAnswers) -> pd.DataFrame:
    """What every condition wrote itself: `RUN/answers.parquet`."""
    rows = [
        {
            "queries": group,
            "query": number,
            "condition": name,
            "text": subject.tokenizer.decode(list(ids), skip_special_tokens=True),
            "ids": list(ids),
        }
        for group, by_condition in written.items()
        for name, answers in by_condition.items()
        for number, ids in enumerate(answers)
    ]
    return pd.DataFrame(rows, columns=["queries", "query", "condition", "text", "ids"])


def own_rows(
    written: WrittenAnswers,
    pairs: Sequence[tuple[str, str]],
    groups: Groups,
    replicates: int,
    seed: int,
) -> Iterator[dict[str, Any]]:
    """`own_agreement`: share of queries on which two conditions write the same answer;
    `own_difference`: the first token (counted from 0) at which they part, over queries on which
    they do."""
    for group, by_condition in written.items():
        keys = [query.key for query in groups[group]]
        for a, b in pairs:
            parted = np.array(
                [_parted(x, y) for x, y in zip(by_condition[a], by_condition[b], strict=True)]
            )
            same = np.isnan(parted).astype(float)
            for measure, above, below in (
                ("own_agreement", same, 1.0),
                ("own_difference", parted, np.where(np.isnan(parted), np.nan, 1.0)),
            ):
                value, low, high, n = pooled(above, below, keys, replicates, seed)
                yield {
                    "measure": measure,
                    "condition": a,
                    "reference": b,
                    "site": OUTPUT,
                    "position": "answer",
                    "queries": group,
                    "value": float(value),
                    "ci_low": float(low),
                    "ci_high": float(high),
                    "n": int(n),
                    "units": MEASURES[measure].units,
                }


def _parted(x: Sequence[int], y: Sequence[int]) -> float:
    """The first token at which two answers differ; NaN where they are the same."""
    same = next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), None)
    if same is None and len(x) == len(y):
        return np.nan
    return float(min(len(x), len(y)) if same is None else same)


def encode_again(
    folder: Path,
    subject: Subject,
    built: Mapping[str, Condition],
    asked: Mapping[str, Sequence[Query]],
) -> dict[str, list[Encoded]]:
    """The queries of a finished run with the answers that were forced there; a RunError where any
    token is another today (a template with a date, a changed tokenizer)."""
    manifest, table = read_manifest(folder), pd.read_parquet(folder / QUERIES)
    for name in built:
        then = manifest["conditions"][name]["token_ids"]
        if then != token_hash(subject.settings[name].prefix):
            raise RunError(
                f"the tokens of condition {name} are not those of {folder} (does the chat template "
                "write a date? fix it in frame: template_options); run `interp diverge` again"
            )
    groups = encode_groups(subject, built, asked)
    answered = {}
    for group, queries in groups.items():
        kept = table[table["queries"] == group].sort_values("query").head(len(queries))
        if [list(ids) for ids in kept["ids"]] != [list(query.ids) for query in queries]:
            raise RunError(f"the {group} queries have other tokens than in {folder}: run it again")
        answered[group] = [
            replace(query, answer_ids=tuple(map(int, ids)))
            for query, ids in zip(queries, kept["answer_ids"], strict=True)
        ]
    return answered
