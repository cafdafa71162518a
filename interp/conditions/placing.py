"""From a sequence's text to token ids, cut before the query.

    placed = place(Prompt(text="opposite :"), user("big ->"), tokenizer)
    placed.prefix, placed.ids, placed.n_text      # before the query; the query; tokens of its text

A sequence is tokenised as it is written, whole. What precedes the query must be the same for all
queries of a condition, and the query's ids the same under all conditions: `queries.check_alignment`
refuses what is not. Torch-free.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.conditions.frames import PROBE, RAW, Fill, Frame, Message, Stretch, user
from interp.conditions.kinds import Condition
from interp.errors import ConditionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = tuple[int, ...]
Offsets = list[tuple[int, int]]


class Placed(NamedTuple):
    """A sequence cut before its query: `prefix` ids, then `ids`, of which the first `n_text` are of
    the query's own text and the rest of what the template writes after it."""

    prefix: Ids
    ids: Ids
    n_text: int


def place(
    condition: Condition,
    query: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    frame: Frame = RAW,
) -> Placed:
    """The token ids of a query under a condition."""
    stretches = frame.stretches(condition, tokenizer)
    start = () if frame.chat else leading_specials(tokenizer)
    if frame.chat:
        contents = [*(s.content for s in stretches), *(m["content"] for m in query)]
        _refuse_start(contents, tokenizer)
    elif start:
        stretches = [s._replace(content=bare(s.content, tokenizer)) for s in stretches]
        query = [*query[:-1], {**query[-1], "content": bare(query[-1]["content"], tokenizer)}]
    written = frame.written(stretches, query, tokenizer)
    ids, offsets = tokenised("".join(written), tokenizer)
    border = len(written.before)
    alone = tokenised(f"{written.query}{written.after}", tokenizer)[0]
    first = len(ids) - len(alone)
    if ids[first:] != alone:  # where it is, a space sign of its own ("▁", "5") is in it
        first = next((i for i, (_, end) in enumerate(offsets) if end > border), len(ids))
    before, ahead = ids[:first], offsets[:first]
    if first < len(ids) and written.before[offsets[first][0] : border].strip():
        before, ahead = tokenised(written.before, tokenizer)  # its last word runs into the query
    if not set(start).isdisjoint((*before, *ids[first:])):
        token = tokenizer.convert_ids_to_tokens(start[0])
        raise ConditionError(
            f"{token} stands in the middle of {''.join(written)[:80]!r}: take it out of the text, "
            "or let --chat write the template's tokens"
        )
    before = _filled(stretches, written.before, before, ahead, tokenizer)
    n_text = sum(begin < border + len(written.query) for begin, _ in offsets[first:])
    return Placed((*start, *before), tuple(ids[first:]), n_text)


def prefix_ids(
    condition: Condition,
    tokenizer: PreTrainedTokenizerBase,
    frame: Frame = RAW,
    query: Sequence[Message] | None = None,
) -> Ids:
    """The token ids that precede a query under a condition."""
    return place(condition, query or user(PROBE), tokenizer, frame).prefix


def tokenised(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], Offsets]:
    """Ids of a text, no special tokens added, and where in it every token begins and ends."""
    found: Any = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(found["input_ids"]), list(found["offset_mapping"])


def bare(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A text without the special tokens that the tokenizer itself puts before every text: words
    that a template has rendered bring their own."""
    for token in tokenizer.convert_ids_to_tokens(list(leading_specials(tokenizer))):
        text = text.removeprefix(token)
    return text


@lru_cache(maxsize=64)
def leading_specials(tokenizer: PreTrainedTokenizerBase) -> Ids:
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


def _filled(
    stretches: Sequence[Stretch],
    before: str,
    ids: list[int],
    offsets: Offsets,
    tokenizer: PreTrainedTokenizerBase,
) -> list[int]:
    """The ids before a query with the tokens of controls in the place of their prompt's own."""
    spans = dict(_spans(stretches, before, offsets))
    new: dict[int, list[int]] = {}
    for fill in dict.fromkeys(s.fill for s in stretches if s.fill):
        numbers = [n for n, s in enumerate(stretches) if s.fill is fill]
        own = [ids[i] for n in numbers for i in spans[n]]
        tokens = _tokens(fill, own, tokenizer)
        for n in numbers:
            count = len(spans[n]) + (fill.extra if n == numbers[0] else 0)
            new[n], tokens = tokens[:count], tokens[count:]
    result = list(ids)
    for n in sorted(new, key=lambda n: spans[n].start, reverse=True):
        result[spans[n].start : spans[n].stop] = new[n]
    return result


def _spans(
    stretches: Sequence[Stretch], before: str, offsets: Offsets
) -> Iterator[tuple[int, range]]:
    """Which tokens every stretch has."""
    place = 0
    for number, stretch in enumerate(stretches):
        content = stretch.content
        found = before.find(content, place)
        if found < 0:  # the template has taken the spaces at its ends away
            content = content.strip()
            found = before.find(content, place)
        place = found + len(content)
        inside = [i for i, (begin, end) in enumerate(offsets) if begin < place and end > found]
        span = range(inside[0], inside[-1] + 1) if inside else range(len(offsets), len(offsets))
        yield number, span


def _tokens(fill: Fill, own: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """As many tokens as a control has in the place of its prompt's `own`."""
    if fill.text is None:
        return _shuffled(own, random.Random(fill.seed))
    length = len(own) + fill.extra
    passage = tokenised(fill.text, tokenizer)[0]
    if tokenizer.unk_token_id in passage:
        raise ConditionError("the neutral text has words this tokenizer does not know")
    return (passage * (length // max(1, len(passage)) + 1))[:length]


def _shuffled(tokens: list[int], generator: random.Random) -> list[int]:
    """The tokens in another order, wherever there is another."""
    shuffled = list(tokens)
    while True:
        generator.shuffle(shuffled)
        if shuffled != tokens or len(set(tokens)) < 2:
            return shuffled
