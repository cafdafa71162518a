"""Where a query stands: after a prompt's raw text, or in a chat that the model's template writes.

    frame = Frame(chat=True, template_options={"enable_thinking": False})
    frame.written(frame.stretches(Prompt(system="Answer in French.")), user("Hi"), tokenizer)
    # FramedText(before="<|im_start|>system\nAnswer ...", query="Hi", after="<|im_end|>\n ...")

The text is what the template writes for the whole conversation, or it is refused; `placing` turns
it into token ids. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.conditions.condition import Condition, simple_parts
from interp.errors import ConditionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
"""`{"role": ..., "content": ...}`."""

Span = tuple[int, int]
"""Where something begins and ends in a text."""

_SHOWN = 60
"""Characters of a message that an error shows."""

PROBE = "Hello"
"""Stands for a query where only what precedes it is asked for."""


@dataclass(frozen=True, eq=False)
class Fill:
    """What takes the place of a prompt's tokens: `tokens(own, length, tokenizer)`. As many as the
    prompt has itself (`own`), and so many `extra`."""

    tokens: Callable[[list[int], int, PreTrainedTokenizerBase], list[int]]
    extra: int = 0
    own: bool = True


class Stretch(NamedTuple):
    """Words that a condition puts before a query: a message of `role`, or (an empty role) text
    right before the query's own."""

    role: str
    content: str
    fill: Fill | None = None


class FramedText(NamedTuple):
    """A sequence as text: up to the query, the query, and what the template writes after it.
    `spans`: where in `before` every stretch begins and ends."""

    before: str
    query: str
    after: str
    spans: tuple[Span, ...]

    @property
    def text(self) -> str:
        """The whole sequence."""
        return self.before + self.query + self.after


def user(text: str) -> tuple[Message, ...]:
    """A query as the conversation that it is: one message of the user."""
    return ({"role": "user", "content": text},)


@dataclass(frozen=True)
class Frame:
    """`chat`: every query is a message of the user (or a conversation that ends in one), rendered
    by the tokenizer's own chat template with its generation prompt; otherwise a query's text
    follows the prompt's. `template_options`: variables of the template (`enable_thinking`,
    `date_string`, ...)."""

    chat: bool = False
    template_options: Mapping[str, Any] = field(default_factory=dict)

    def render(self, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
        """What the template writes for a conversation, the generation prompt at its end."""
        if not tokenizer.chat_template:
            raise ConditionError(
                "the tokenizer has no chat template: leave --chat away, or save one with it"
            )
        options = {"add_generation_prompt": True, **self.template_options}
        try:
            rendered = tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, **options
            )
        except Exception as error:  # a template raises what it likes
            roles = ", ".join(str(message.get("role")) for message in messages)
            reason = " ".join(str(error).split())
            raise ConditionError(
                f"the chat template refuses a conversation of {roles}: {reason}"
            ) from error
        return str(rendered)

    def written(
        self,
        stretches: Sequence[Stretch],
        query: Sequence[Message],
        tokenizer: PreTrainedTokenizerBase,
    ) -> FramedText:
        """The whole sequence as text; a ConditionError where the template alters what it is
        given (spaces at the ends of a message may go)."""
        contents = [*(s.content for s in stretches), *(m["content"] for m in query)]
        if not self.chat:
            whole, spans = "".join(contents), _one_after_the_other(contents)
        else:
            marks = [f"INTERP{n}WORDS" if content else "" for n, content in enumerate(contents)]
            skeleton = self.render(_conversation(stretches, query, marks), tokenizer)
            whole = self.render(_conversation(stretches, query, contents), tokenizer)
            spans = _located(contents, marks, skeleton, whole)
        (begin, _), (_, end) = spans[len(stretches)], spans[-1]
        for (place, _), stretch in zip(spans, stretches, strict=False):
            if place > begin:
                raise ConditionError(
                    f"the chat template writes {_shown(stretch.content)} behind the query's first "
                    "message: give queries of one message"
                )
        return FramedText(
            whole[:begin], whole[begin:end], whole[end:], tuple(spans[: len(stretches)])
        )

    def stretches(self, condition: Condition, tokenizer: PreTrainedTokenizerBase) -> list[Stretch]:
        """What a condition puts before a query, in the order in which a conversation has it: the
        system message, earlier turns, text before the query's own."""
        found = [s for part in simple_parts(condition) for s in part.stretches(self, tokenizer)]
        if sum(s.role == "system" for s in found) > 1:
            raise ConditionError(f"two system messages at once: {condition.describe()}")
        if not self.chat and any(s.role for s in found):
            raise ConditionError(
                f"{condition.describe()}: messages are whole turns and need the chat frame (--chat)"
            )
        return sorted(found, key=lambda s: {"system": 0, "": 2}.get(s.role, 1))

    def takes_system(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the frame is a chat whose template takes a system message."""
        if not self.chat:
            return False
        try:
            self.render([{"role": "system", "content": PROBE}, *user(PROBE)], tokenizer)
        except ConditionError:
            return False
        return True

    def writes_default(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether the template writes a system message of its own where none is given: without one
        it then writes more than with an empty one."""
        if not self.chat:
            return False
        try:
            emptied = self.render([{"role": "system", "content": ""}, *user(PROBE)], tokenizer)
        except ConditionError:
            return False
        return len(self.render(user(PROBE), tokenizer)) > len(emptied)


RAW = Frame()
"""A query's text follows the prompt's, without a template."""


def _conversation(
    stretches: Sequence[Stretch], query: Sequence[Message], contents: Sequence[str]
) -> list[Message]:
    """Turns, then the query, whose first message begins with the text that stands before it: with
    these contents in the place of their own."""
    given = list(zip(stretches, contents, strict=False))
    turns = [{"role": s.role, "content": content} for s, content in given if s.role]
    text = "".join(content for s, content in given if not s.role)
    asked = [
        {**message, "content": content}
        for message, content in zip(query, contents[len(stretches) :], strict=True)
    ]
    return [*turns, {**asked[0], "content": text + asked[0]["content"]}, *asked[1:]]


def _one_after_the_other(contents: Sequence[str]) -> list[Span]:
    """Where contents stand that are written without anything between them."""
    ends = list(accumulate(map(len, contents)))
    return list(zip([0, *ends], ends, strict=False))


def _located(
    contents: Sequence[str], marks: Sequence[str], skeleton: str, whole: str
) -> list[Span]:
    """Where a template has written every content, from what it writes around marks in their place;
    a ConditionError where that is not all (spaces at the ends of a content may go)."""
    found = {n: skeleton.find(mark) for n, mark in enumerate(marks) if mark}
    order = sorted(found, key=lambda n: found[n])
    borders = [place for n in order for place in (found[n], found[n] + len(marks[n]))]
    template = [skeleton[a:b] for a, b in pairwise([0, *borders, len(skeleton)])][::2]
    spans: dict[int, Span] = {}
    place = len(template[0])
    for n, follows in zip(order, template[1:], strict=True):
        spaces = (contents[n], contents[n].rstrip(), contents[n].lstrip(), contents[n].strip())
        as_given = [c for c in spaces if whole.startswith(c + follows, place)]
        if skeleton.count(marks[n]) != 1 or not as_given:
            raise ConditionError(f"the chat template leaves out or alters {_shown(contents[n])}")
        spans[n] = (place, place + len(as_given[0]))
        place = spans[n][1] + len(follows)
    if place != len(whole) or not whole.startswith(template[0]):
        raise ConditionError("the chat template writes other words for other messages")
    for n in reversed(range(len(contents))):  # an empty one stands before the next
        spans.setdefault(n, (spans[n + 1][0],) * 2 if n + 1 in spans else (place, place))
    return [spans[n] for n in range(len(contents))]


def _shown(content: str) -> str:
    return repr(content if len(content) <= _SHOWN else f"{content[: _SHOWN - 1]}…")
