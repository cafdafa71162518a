"""From a sequence's text to token ids, cut before the query.

    placed = place(Prompt(text="opposite :"), user("big ->"), tokenizer)
    placed.prefix, placed.ids, placed.n_text      # before the query; the query; tokens of its text

A sequence is tokenised as it is written, whole. What precedes the query must be the same for all
queries of a condition, and the query's ids the same under all conditions: `queries.check_alignment`
refuses what is not. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.conditions.condition import Condition
from interp.conditions.frames import (
    PROBE,
    RAW,
    Frame,
    FramedText,
    Message,
    Span,
    Stretch,
    user,
)
from interp.errors import ConditionError
from interp.untrusted import check_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST = 80
"""Characters of a text that an error shows."""

TokenIds = tuple[int, ...]
_Offsets = list[tuple[int, int]]


class PlacedQuery(NamedTuple):
    """A sequence cut before its query: `prefix` ids, then `ids`, of which the first `n_text` are of
    the query's own text and the rest of what the template writes after it."""

    prefix: TokenIds
    ids: TokenIds
    n_text: int


def place(
    condition: Condition,
    query: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    frame: Frame = RAW,
) -> PlacedQuery:
    """The token ids of a query under a condition."""
    stretches = frame.stretches(condition, tokenizer)
    start = () if frame.chat else leading_specials(tokenizer)
    if frame.chat:
        contents = [*(s.content for s in stretches), *(m["content"] for m in query)]
        _refuse_start(contents, tokenizer)
    elif start:
        stretches = [s._replace(content=_bare(s.content, tokenizer)) for s in stretches]
        query = [*query[:-1], {**query[-1], "content": _bare(query[-1]["content"], tokenizer)}]
    written = frame.written(stretches, query, tokenizer)
    ids, offsets = tokenised(written.text, tokenizer)
    first, whole = _first_token(written, offsets)
    if not frame.chat:  # a space sign of its own ("▁", "5") is the query's
        alone = tokenised(written.query, tokenizer)[0]
        if ids[len(ids) - len(alone) :] == alone:
            first, whole = len(ids) - len(alone), True
    before, ahead = ids[:first], offsets[:first]
    if not whole:
        if frame.chat:
            raise ConditionError(_merged(written, ids[: first + 1], tokenizer))
        before, ahead = tokenised(written.before, tokenizer)
    if not set(start).isdisjoint((*before, *ids[first:])):
        token = tokenizer.convert_ids_to_tokens(start[0])
        raise ConditionError(
            f"{token} stands in the middle of {written.text[:80]!r}: take it out of the text, "
            "or let --chat write the template's tokens"
        )
    before = _filled(stretches, written, before, ahead, tokenizer)
    border = len(written.before)
    n_text = sum(begin < border + len(written.query) for begin, _ in offsets[first:])
    return PlacedQuery((*start, *before), tuple(ids[first:]), n_text)


def prefix_ids(
    condition: Condition,
    tokenizer: PreTrainedTokenizerBase,
    frame: Frame = RAW,
    query: Sequence[Message] | None = None,
) -> TokenIds:
    """The token ids that precede a query under a condition."""
    return place(condition, query or user(PROBE), tokenizer, frame).prefix


def tokenised(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], _Offsets]:
    """Ids of a text, no special tokens added, and where in it every token begins and ends."""
    try:
        check_text(text)
    except ValueError as error:
        raise ConditionError(f"{text[:_LONGEST]!r} is no text: {error}") from error
    found: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(found["input_ids"]), list(found["offset_mapping"])


def token_id(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of a text that is a single token."""
    if token in tokenizer.get_vocab():
        return tokenizer.get_vocab()[token]
    ids = tokenised(token, tokenizer)[0]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        raise ConditionError(f"{token!r} is not one token of this model but {pieces}")
    return ids[0]


def _bare(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text without the special tokens that the tokenizer itself puts before every text: words
    that a template has rendered bring their own."""
    for token in tokenizer.convert_ids_to_tokens(list(leading_specials(tokenizer))):
        text = text.removeprefix(token)
    return text


@lru_cache(maxsize=64)
def leading_specials(tokenizer: PreTrainedTokenizerBase) -> TokenIds:
    """The special tokens that the tokenizer puts before every text (BOS, or none)."""
    marked = tokenizer("a", add_special_tokens=True)["input_ids"]
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    end = len(marked) - len(plain)
    while end > 0 and marked[end : end + len(plain)] != plain:
        end -= 1
    return tuple(marked[:end])


def _refuse_start(contents: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """A template writes BOS itself; in a message it would be a second beginning."""
    bos = tokenizer.bos_token
    for content in contents:
        if bos and bos in content:
            raise ConditionError(
                f"{bos} stands in the message {content[:80]!r}: the chat template writes it, give "
                "the message's own words"
            )


def _first_token(written: FramedText, offsets: _Offsets) -> tuple[int, bool]:
    """The query's first token, and whether it has no words of what precedes the query. One that has
    some, but only spaces of the query (a special token may take them in), precedes it itself."""
    border = len(written.before)
    first = next((i for i, (_, end) in enumerate(offsets) if end > border), len(offsets))
    if not border or first == len(offsets):
        return first if border else 0, True
    begin, end = offsets[first]
    if not written.before[begin:].strip():
        return first, True
    return (first, False) if written.text[border:end].strip() else (first + 1, True)


def _merged(written: FramedText, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """An error: the template's last words and the query's first are one token."""
    tokens = tokenizer.convert_ids_to_tokens(ids[-_SHOWN:])
    return (
        f"the chat template's words merge with the query {written.query[:_SHOWN]!r}: {tokens}; let "
        "the query begin otherwise"
    )


_SHOWN = 8
"""Tokens and characters that an error shows of a border."""


def _filled(
    stretches: Sequence[Stretch],
    written: FramedText,
    ids: list[int],
    offsets: _Offsets,
    tokenizer: PreTrainedTokenizerBase,
) -> list[int]:
    """The ids before a query with the tokens of controls in the place of their prompt's own."""
    spans = [_tokens_of(span, written.before, offsets) for span in written.spans]
    new: dict[int, list[int]] = {}
    for fill in dict.fromkeys(s.fill for s in stretches if s.fill):
        numbers = [n for n, s in enumerate(stretches) if s.fill is fill]
        own = [ids[i] for n in numbers for i in spans[n]] if fill.own else []
        tokens = fill.tokens(own, len(own) + fill.extra, tokenizer)
        for n in numbers:
            count = len(spans[n]) * fill.own + (fill.extra if n == numbers[0] else 0)
            new[n], tokens = tokens[:count], tokens[count:]
    result = list(ids)
    for n in sorted(new, key=lambda n: (spans[n].start, n), reverse=True):
        result[spans[n].start : spans[n].stop] = new[n]
    return result


def _tokens_of(span: Span, text: str, offsets: _Offsets) -> range:
    """The tokens that are of a span of the text alone: a space before it may belong to them, what
    follows it not."""
    a, b = span
    inside = [
        i
        for i, (begin, end) in enumerate(offsets)
        if a < end <= b and (begin >= a or not text[begin:a].strip())
    ]
    start = inside[0] if inside else sum(begin < a for begin, _ in offsets)
    return range(start, start + len(inside))
