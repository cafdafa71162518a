"""Queries as every condition of a subject reads them: the same ids, behind a border that holds.

groups = encode_groups(subject, conditions, {"matched": read_queries("queries.jsonl")})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from interp.conditions import Condition, Prompt, ShuffledLabels, parts
from interp.errors import QueryError
from interp.queries import Encoded, Query, check_alignment, encode
from interp.subject import Subject


def encode_groups(
    subject: Subject, built: Mapping[str, Condition], asked: Mapping[str, Sequence[Query]]
) -> dict[str, list[Encoded]]:
    """Token ids of all queries, aligned in every condition and within the model's context."""
    groups = {name: encode(queries, subject.tokenizer, name) for name, queries in asked.items()}
    for queries in groups.values():
        longest = max(queries, key=lambda query: len(query.ids))
        for name, condition in built.items():
            last = parts(condition)[-1]
            if isinstance(last, ShuffledLabels):
                last = last.prompt
            if isinstance(last, Prompt):
                check_alignment(queries, last.render(subject.tokenizer), subject.tokenizer, name)
            setting = subject.settings[name]
            length = setting.n_prefix + setting.shift + len(longest.ids)
            if length > subject.context:
                raise QueryError(
                    f"condition {name}: {setting.n_prefix} tokens and the query "
                    f"{longest.text!r} make {length}, the model reads {subject.context}: "
                    "shorten the prompt or the query"
                )
    return groups
