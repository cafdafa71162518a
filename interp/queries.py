"""Queries: read from JSONL, tokenised, and aligned to the same ids in every condition.

    queries = encode(read_queries("queries.jsonl"), tokenizer)
    check_alignment(queries, prompt.render(tokenizer), tokenizer, "prompt")

A line is `{"text": ..., "answer": ... (optional), "label": ... (optional)}`. A query's ids are
those of its text alone; every condition sees exactly these ids after its prefix. Torch-free.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import QueryError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Query:
    """One query as written."""

    text: str
    answer: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Encoded:
    """One query as token ids; `key` names it (its place and its text) for seeds and shards."""

    key: str
    text: str
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()
    label: str | None = None


def read_queries(path: str | Path, limit: int | None = None) -> list[Query]:
    """Read a JSONL file; every bad line is an error that names it, none is dropped."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise QueryError(f"{path}: {error.strerror}; give a JSONL file of queries") from error
    queries = []
    for number, line in enumerate(lines, 1):
        if line.strip() or number < len(lines):
            queries.append(_parse(line, f"{path}, line {number}"))
    if not queries:
        raise QueryError(f"{path} has no queries; write one JSON object with a text per line")
    return queries[:limit]


def _parse(line: bytes, where: str) -> Query:
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise QueryError(f"{where}: not JSON in UTF-8 ({error})") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise QueryError(f'{where}: write an object with a "text", like {{"text": "big ->"}}')
    if unknown := sorted(set(fields) - {"text", "answer", "label"}):
        raise QueryError(f"{where}: unknown field {unknown[0]!r}; known are text, answer, label")
    if not fields["text"].strip():
        raise QueryError(f"{where}: the text is blank")
    if wrong := [k for k, v in fields.items() if not isinstance(v, str | None)]:
        raise QueryError(f"{where}: {wrong[0]!r} must be a string")
    return Query(**fields)


def encode(
    queries: Iterable[Query], tokenizer: PreTrainedTokenizerBase, group: str = "matched"
) -> list[Encoded]:
    """Token ids of every query and of its answer; `group` goes into the keys."""
    encoded = []
    for index, query in enumerate(queries):
        ids = tuple(_ids(query.text, tokenizer))
        if not ids:
            raise QueryError(f"{group} query {index} ({query.text!r}) has no tokens")
        answer = _answer_ids(query, ids, tokenizer) if query.answer else ()
        encoded.append(Encoded(f"{group}:{index}", query.text, ids, answer, query.label))
    return encoded


def _answer_ids(
    query: Query, ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """The answer's ids as they follow the query's, written with a space unless it brings one."""
    answer = str(query.answer)
    joint = tuple(_ids(query.text + (answer if answer[0].isspace() else f" {answer}"), tokenizer))
    if joint[: len(ids)] != ids or len(joint) == len(ids):
        raise QueryError(
            f"the answer {answer!r} merges with the end of its query {query.text!r}: "
            f"{tokenizer.convert_ids_to_tokens(list(joint))}"
        )
    return joint[len(ids) :]


def check_alignment(
    queries: Sequence[Encoded], text: str, tokenizer: PreTrainedTokenizerBase, condition: str
) -> None:
    """Refuse a prompt text whose last token would merge with a query's first.

    Every condition is fed its prefix's ids and then the query's, so the query's ids are the same
    everywhere by construction; this checks that the tokenizer would cut the joined text there too.
    Tokenizers that begin every text with a space are asked with that space at the border.
    """
    last = _ids(text, tokenizer)[-1:]
    if not last:
        return
    joined = [
        tokenizer([text + gap + query.text for query in queries], add_special_tokens=False)
        for gap in ("", " ")
    ]
    for index, query in enumerate(queries):
        expected = [*last, *query.ids]
        found = [list(ids["input_ids"][index][-len(expected) :]) for ids in joined]
        if expected not in found:
            raise QueryError(
                f"condition {condition}: the prompt and the query {query.text!r} merge across the "
                f"border: {_tokens(expected, tokenizer)} became {_tokens(found[0], tokenizer)}; "
                "end the prompt with a separator that the tokenizer keeps apart (a line break)"
            )


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _tokens(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    return list(tokenizer.convert_ids_to_tokens(list(ids)))
