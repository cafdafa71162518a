"""Where a query stands: after a prompt's raw text, or in a chat that the model's template writes.

    frame = Frame(chat=True, template_options={"enable_thinking": False})
    frame.written(frame.stretches(Prompt(system="Answer in French.")), user("Hi"), tokenizer)
    # Written(before="<|im_start|>system\nAnswer ...", query="Hi", after="<|im_end|>\n ...")

The text is what the template writes for the whole conversation, or it is refused; `placing` turns
it into token ids. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.conditions.kinds import (
    Condition,
    EmptySystem,
    Neutral,
    Prompt,
    ShuffledLabels,
    ShuffledTokens,
    describe,
    parts,
)
from interp.conditions.virtual import virtual_length
from interp.errors import ConditionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]
"""`{"role": ..., "content": ...}`."""

FIRST, LAST = "INTERPQUERYBEGINS", "INTERPQUERYENDS"
"""Stand for the query in a template's text, to find where it is written."""

PROBE = "Hello"
"""Stands for a query where only what precedes it is asked for."""


@dataclass(frozen=True, eq=False)
class Fill:
    """What takes the place of a prompt's tokens: the passage `text`, over and over, or (None) the
    prompt's own tokens in the random order of `seed`. `extra`: so many tokens more than it has."""

    text: str | None
    seed: int = 0
    extra: int = 0


class Stretch(NamedTuple):
    """Words that a condition puts before a query: a message of `role`, or (an empty role) text
    right before the query's own."""

    role: str
    content: str
    fill: Fill | None = None


class Written(NamedTuple):
    """A sequence as text: up to the query, the query, and what the template writes after it."""

    before: str
    query: str
    after: str


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
    ) -> Written:
        """The whole sequence as text; a ConditionError where the template alters what it is
        given (spaces at the ends of a message may go)."""
        if not self.chat:
            return Written("".join(s.content for s in stretches), query[-1]["content"], "")
        turns = [{"role": s.role, "content": s.content} for s in stretches if s.role]
        text = "".join(s.content for s in stretches if not s.role)
        begins = FIRST if len(query) > 1 else LAST
        skeleton = self.render([*turns, *_marked(query, text)], tokenizer)
        if skeleton.count(begins) != 1 or skeleton.count(LAST) != 1:
            raise ConditionError("the chat template does not write the query once")
        before, after = skeleton.split(begins)[0], skeleton.split(LAST)[1]
        whole = self.render([*turns, *_after(text, query)], tokenizer)
        middle = whole[len(before) : len(whole) - len(after)]
        as_given = _in_order([message["content"] for message in query], middle)
        if not (whole.startswith(before) and whole.endswith(after) and as_given):
            raise ConditionError(
                f"the chat template alters the query {query[-1]['content']!r}: it writes {middle!r}"
            )
        for content in [*(turn["content"] for turn in turns), text]:
            if not _in_order([content], before):
                raise ConditionError(f"the chat template leaves out or alters {content[:60]!r}")
        return Written(before, middle, after)

    def stretches(self, condition: Condition, tokenizer: PreTrainedTokenizerBase) -> list[Stretch]:
        """What a condition puts before a query, in the order in which a conversation has it: the
        system message, earlier turns, text before the query's own."""
        found = [s for part in parts(condition) for s in self._stretches(part, tokenizer)]
        if sum(s.role == "system" for s in found) > 1:
            raise ConditionError(f"two system messages at once: {describe(condition)}")
        if not self.chat and any(s.role for s in found):
            raise ConditionError(
                f"{describe(condition)}: messages are whole turns and need the chat frame (--chat)"
            )
        return sorted(found, key=lambda s: {"system": 0, "": 2}.get(s.role, 1))

    def _stretches(self, part: Condition, tokenizer: PreTrainedTokenizerBase) -> Iterator[Stretch]:
        match part:
            case EmptySystem():
                yield Stretch("system", "")
            case Prompt():
                yield from self._prompt(part)
            case ShuffledLabels():
                yield from self._prompt(part.prompt)
            case Neutral(like=like, text=text):
                yield from self._neutral(like, text, tokenizer)
            case ShuffledTokens(of=prompt, seed=seed):
                if virtual_length(prompt):
                    raise ConditionError(f"no tokens to shuffle: {describe(prompt)} is virtual")
                fill = Fill(None, seed)
                own = self.stretches(prompt, tokenizer)
                yield from (stretch._replace(fill=fill) for stretch in own)

    def _prompt(self, prompt: Prompt) -> Iterator[Stretch]:
        if prompt.system is not None:
            yield Stretch("system", prompt.system)
        elif prompt.messages:
            yield from (Stretch(m["role"], m["content"]) for m in prompt.messages)
        elif prompt.pairs and self.chat:
            for query, answer in prompt.pairs:
                yield from (Stretch("user", query), Stretch("assistant", answer))
        else:
            yield Stretch("", prompt.as_text())

    def _neutral(
        self, like: Condition, text: str, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[Stretch]:
        """As many tokens of the passage as `like` has, virtual ones included."""
        virtual = virtual_length(like)
        own = self.stretches(like, tokenizer)
        if own:
            fill = Fill(text, extra=virtual)
            yield from (stretch._replace(fill=fill) for stretch in own)
        elif virtual:
            count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
            role = "system" if self.takes_system(tokenizer) else ""
            yield Stretch(role, text, Fill(text, extra=virtual - count))

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
        if not self.takes_system(tokenizer):
            return False
        empty = [{"role": "system", "content": ""}, *user(PROBE)]
        return len(self.render(user(PROBE), tokenizer)) > len(self.render(empty, tokenizer))


RAW = Frame()
"""A query's text follows the prompt's, without a template."""


def _after(text: str, query: Sequence[Message]) -> list[Message]:
    """A query with a text put before its first message's own."""
    first, *rest = query
    return [{**first, "content": text + first["content"]}, *rest]


def _marked(query: Sequence[Message], text: str) -> list[Message]:
    """The same with marks in the place of the query's own words."""
    marked = [dict(message) for message in query]
    marked[0]["content"], marked[-1]["content"] = FIRST, LAST
    return _after(text, marked)


def _in_order(contents: Sequence[str], text: str) -> bool:
    """Whether these stand in a text one after the other, spaces at their ends aside."""
    place = 0
    for content in contents:
        place = text.find(content.strip(), place)
        if place < 0:
            return False
        place += len(content.strip())
    return True
