"""Queries as every condition of a subject reads them: the same ids, behind a border that holds.

groups = encode_groups(subject, conditions, {"matched": read_queries("queries.jsonl")})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from interp.conditions import Condition
from interp.errors import QueryError
from interp.queries import Encoded, Query, check_alignment, encode
from interp.subject import Subject


def encode_groups(
    subject: Subject, built: Mapping[str, Condition], asked: Mapping[str, Sequence[Query]]
) -> dict[str, list[Encoded]]:
    """Token ids of all queries, aligned in every condition and within the model's context."""
    words, frame = subject.tokenizer, subject.frame
    groups = {name: encode(queries, words, name, frame) for name, queries in asked.items()}
    for queries in groups.values():
        for name, condition in built.items():
            prefix = subject.settings[name].prefix
            check_alignment(queries, condition, words, name, frame, prefix)
        check_lengths(subject, queries)
    return groups


def check_lengths(subject: Subject, queries: Sequence[Encoded]) -> None:
    """Refuse queries that, with what precedes them and their answer, are longer than the model
    can read."""
    longest = max(queries, key=lambda query: len(query.forced))
    for name, setting in subject.settings.items():
        length = setting.n_prefix + setting.shift + len(longest.forced)
        if length > subject.context:
            raise QueryError(
                f"condition {name}: {setting.n_prefix} tokens and the query {longest.text!r} "
                f"with its answer make {length}, the model reads {subject.context}: "
                "shorten the prompt, the query or the answer"
            )
