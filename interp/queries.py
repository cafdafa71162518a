"""Queries: read from JSONL, tokenised, and aligned to the same ids in every condition.

    queries = encode(read_queries("queries.jsonl"), tokenizer, frame=frame)
    check_alignment(queries, Prompt(system="Answer in French."), tokenizer, "prompt", frame)

A line is `{"text": ..., "answer": ... (optional), "label": ... (optional)}`; in a chat `messages`
may stand for the text: a conversation that ends with the user's turn. A query's ids are those of
its text and of what the chat template writes after it; every condition sees exactly these ids
after its prefix. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.conditions import RAW, Base, Condition, Frame, Message, place, user
from interp.conditions.placing import tokenised
from interp.errors import ConditionError, QueryError
from interp.untrusted import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Query:
    """One query as written: a text, or the `messages` of a conversation whose last is `text`."""

    text: str
    answer: str | None = None
    label: str | None = None
    messages: tuple[Message, ...] = ()

    @property
    def turns(self) -> tuple[Message, ...]:
        """The query as a conversation."""
        return self.messages or user(self.text)


@dataclass(frozen=True)
class Encoded:
    """One query as token ids; `key` names it (its place and its text) for seeds and shards.

    `ids`: from the first token of the query's text to the last before its answer. `n_text` of them
    are the text's, the others what the chat template writes after it (None: all are the text's).
    """

    key: str
    text: str
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()
    label: str | None = None
    turns: tuple[Message, ...] = ()
    n_text: int | None = None

    @property
    def forced(self) -> tuple[int, ...]:
        """The ids that a model reads where the answer is forced on it: its last token predicts
        nothing that is asked."""
        return (*self.ids, *self.answer_ids[:-1])

    @property
    def segments(self) -> dict[str, range]:
        """Which rows of `forced` are of the query's text, of the template after it, and predict
        the answer: the first of these is the last token before it."""
        last = len(self.ids) - 1
        text = min(len(self.ids) if self.n_text is None else self.n_text, last)
        return {
            "query": range(text),
            "template": range(text, last),
            "answer": range(last, last + max(1, len(self.answer_ids))),
        }


Groups = Mapping[str, Sequence[Encoded]]
"""Group of queries, such as `matched` -> its queries."""


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
        fields = read_json(line)
    except ValueError as error:
        raise QueryError(f"{where}: not JSON in UTF-8 ({error})") from error
    if not isinstance(fields, dict) or ("text" in fields) == ("messages" in fields):
        raise QueryError(f'{where}: write an object with a "text", like {{"text": "big ->"}}')
    if unknown := sorted(set(fields) - {"text", "messages", "answer", "label"}):
        known = "known are text, messages, answer, label"
        raise QueryError(f"{where}: unknown field {unknown[0]!r}; {known}")
    if "messages" in fields:
        fields["messages"] = _messages(fields["messages"], where)
        fields["text"] = fields["messages"][-1]["content"]
    if not isinstance(fields["text"], str):
        raise QueryError(f'{where}: write an object with a "text", like {{"text": "big ->"}}')
    if not fields["text"].strip():
        raise QueryError(f"{where}: the text is blank")
    if wrong := [k for k in ("answer", "label") if not isinstance(fields.get(k), str | None)]:
        raise QueryError(f"{where}: {wrong[0]!r} must be a string")
    return Query(**fields)


def _messages(found: Any, where: str) -> tuple[Message, ...]:
    """A conversation: roles and contents, the user's turn last."""
    messages = found if isinstance(found, list) else []
    whole = all(
        isinstance(m, dict) and {*m} == {"role", "content"} and all(map(_is_text, m.values()))
        for m in messages
    )
    if not (messages and whole and messages[-1]["role"] == "user"):
        raise QueryError(
            f"{where}: messages are a list of {{role, content}}, the user's last; found {found!r}"
        )
    return tuple(messages)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def encode(
    queries: Iterable[Query],
    tokenizer: PreTrainedTokenizerBase,
    group: str = "matched",
    frame: Frame = RAW,
) -> list[Encoded]:
    """Token ids of every query and of its answer; `group` goes into the keys."""
    encoded = []
    for index, query in enumerate(queries):
        where = f"{group} query {index} ({query.text!r})"
        if query.messages and not frame.chat:
            raise QueryError(f"{where} is a conversation: add --chat")
        try:
            placed = place(Base(), query.turns, tokenizer, frame)
        except ConditionError as error:
            raise QueryError(f"{where}: {error}") from error
        if not placed.ids or not placed.n_text:
            raise QueryError(f"{where} has no tokens")
        one = Encoded(
            f"{group}:{index}", query.text, placed.ids, (), query.label, query.turns, placed.n_text
        )
        answer = _answer_ids(query, one, tokenizer, frame) if query.answer else ()
        encoded.append(replace(one, answer_ids=answer))
    return encoded


def _answer_ids(
    query: Query, encoded: Encoded, tokenizer: PreTrainedTokenizerBase, frame: Frame
) -> tuple[int, ...]:
    """The answer's ids as they follow the query's, tokenised together with what stands there.

    A space is written between a query's text and its answer unless either brings white space, or
    the query ends in a special token; after a template nothing is."""
    answer, ids = str(query.answer), encoded.ids
    ends = ids[-1] in tokenizer.all_special_ids or query.text[-1].isspace()
    gap = "" if frame.chat or ends or answer[0].isspace() else " "
    written = frame.written(frame.stretches(Base(), tokenizer), query.turns, tokenizer).text
    joint = tuple(tokenised(f"{written}{gap}{answer}", tokenizer)[0])
    before = tuple(tokenised(written, tokenizer)[0])
    if joint[: len(before)] != before or len(joint) == len(before):
        raise QueryError(
            f"the answer {answer!r} merges with the end of its query {query.text!r}: "
            f"{tokenizer.convert_ids_to_tokens(list(joint[-len(ids) - 1 :]))}"
        )
    return joint[len(before) :]


def check_alignment(
    queries: Sequence[Encoded],
    condition: Condition,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    frame: Frame = RAW,
    prefix: Sequence[int] | None = None,
) -> None:
    """Refuse a condition under which a query, tokenised together with all that precedes it, has
    other ids than in base, or follows other ids than the condition's `prefix` (none: those before
    the first query)."""
    for query in queries:
        try:
            placed = place(condition, query.turns or user(query.text), tokenizer, frame)
        except ConditionError as error:
            raise ConditionError(f"condition {name}: {error}") from error
        prefix = placed.prefix if prefix is None else tuple(prefix)
        expected, found = (*prefix, *query.ids), (*placed.prefix, *placed.ids)
        if found != expected:
            hint = _CHAT_HINT if frame.chat else _RAW_HINT
            raise QueryError(f"{_apart(name, query, expected, found, tokenizer)}; {hint}")


_SHOWN = 8
"""Tokens on either side of a border that an error shows."""

_RAW_HINT = (
    "put a separator between them that the tokenizer keeps apart (--separator: a line break; a "
    "space where the tokenizer begins words with one)"
)
_CHAT_HINT = "use earlier turns, or another separator, or let the query begin otherwise"


def _apart(
    name: str,
    query: Encoded,
    expected: Sequence[int],
    found: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
) -> str:
    """What a border should be, and what it is."""
    pairs = zip(expected, found, strict=False)
    same = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(expected), len(found)))
    window = slice(max(0, same - _SHOWN), same + _SHOWN)
    shown = [tokenizer.convert_ids_to_tokens(list(ids[window])) for ids in (expected, found)]
    return (
        f"condition {name}: the prompt and the query {query.text!r} merge across the border: "
        f"{shown[0]} became {shown[1]}"
    )
