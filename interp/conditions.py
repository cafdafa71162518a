"""What differs between runs of one model on the same queries.

    conditions = {
        "base": Base(),
        "prompt": Prompt(text="hot -> cold ; up -> down ;"),
        "lora": Lora("adapters/opposite"),
        "neutral": Neutral(like=Prompt(text="hot -> cold ; up -> down ;")),
        "both": Prompt(text="opposite :") + Lora("adapters/opposite", scale=0.5),
    }

A condition is a frozen description: it holds no weights and no token ids. `resolve` turns it,
for one tokenizer, into a `Setting`: the exact token ids before the query, the query's first
position, the state of the weights, and what is added to the logits. Torch-free.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import ConditionError
from interp.organism.language import NEUTRAL_PASSAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Condition:
    """Anything that can precede a query or change the weights; `a + b` composes."""

    __pydantic_config__ = {"extra": "forbid", "arbitrary_types_allowed": True}  # noqa: RUF012

    def __add__(self, other: Condition) -> Composed:
        return Composed((*parts(self), *parts(other)))


@dataclass(frozen=True)
class Base(Condition):
    """The model as it is: nothing but the tokenizer's own special tokens precedes the query."""


@dataclass(frozen=True)
class Prompt(Condition):
    """Text before the query: exactly one of `text`, `messages` and `pairs`.

    `messages`: chat messages (`{"role": ..., "content": ...}`) rendered by the tokenizer's chat
    template; the query continues the last one. `pairs`: few-shot (query, answer) pairs, each
    rendered by `template`. `separator` is written between the prompt and the query.
    """

    text: str | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    template: str = "{query} {answer}\n"
    separator: str = "\n"

    def __post_init__(self) -> None:
        given = [self.text is not None, bool(self.messages), bool(self.pairs)]
        if sum(given) != 1:
            raise ConditionError("a prompt takes exactly one of text, messages and pairs")

    def render(self, tokenizer: PreTrainedTokenizerBase) -> str:
        """The prompt as the text that precedes the query."""
        if self.messages:
            return self._render_chat(tokenizer)
        if self.pairs:
            shots = (
                self.template.format(query=query, answer=answer) for query, answer in self.pairs
            )
            return "".join(shots)
        return f"{self.text}{self.separator}"

    def _render_chat(self, tokenizer: PreTrainedTokenizerBase) -> str:
        if not tokenizer.chat_template:
            raise ConditionError("chat messages need a tokenizer with a chat template; use text")
        rendered = tokenizer.apply_chat_template(
            [dict(message) for message in self.messages],
            tokenize=False,
            continue_final_message=True,
        )
        return str(rendered)


@dataclass(frozen=True)
class Lora(Condition):
    """A peft LoRA adapter folder, its effect multiplied by `scale`."""

    adapter: str
    scale: float = 1.0


@dataclass(frozen=True)
class FineTuned(Condition):
    """Other weights of the same architecture (full fine-tune, RLHF, DPO): a model folder or id."""

    model: str


@dataclass(frozen=True)
class LogitBias(Condition):
    """Adds `bias[token]` to the logits, at all query positions or at `positions` (negative: from
    the query's end). Moves the output and no state: the negative control."""

    bias: Mapping[str, float]
    positions: tuple[int, ...] | None = None

    def __hash__(self) -> int:
        return hash((tuple(self.bias.items()), self.positions))


@dataclass(frozen=True)
class Neutral(Condition):
    """A control: as many tokens as the prompt `like`, of ordinary text that asks for nothing."""

    like: Condition
    text: str = NEUTRAL_PASSAGE


@dataclass(frozen=True)
class ShuffledTokens(Condition):
    """A control: the prompt's own tokens in a random order (leading special tokens stay)."""

    of: Condition
    seed: int = 0


@dataclass(frozen=True)
class Shifted(Condition):
    """A control: no prompt, but the query stands at the positions it has after the prompt `by`."""

    by: Condition


@dataclass(frozen=True)
class Composed(Condition):
    """Several conditions at once, their prefixes in this order."""

    conditions: tuple[Condition, ...]


def parts(condition: Condition) -> tuple[Condition, ...]:
    """The simple conditions that a condition is composed of."""
    return condition.conditions if isinstance(condition, Composed) else (condition,)


CONTROLS = (Neutral, ShuffledTokens, Shifted, LogitBias)


def kind(condition: Condition) -> str:
    """`base`, `control`, `prompt`, `weights` or `composed`: how a reader groups conditions."""
    if isinstance(condition, Composed):
        return "composed"
    if isinstance(condition, Base):
        return "base"
    if isinstance(condition, CONTROLS):
        return "control"
    return "prompt" if isinstance(condition, Prompt) else "weights"


def describe(condition: Condition) -> str:
    """A condition in one short line, for people."""
    match condition:
        case Prompt(messages=messages) if messages:
            text = f"{len(messages)} chat messages, the last: {_short(messages[-1]['content'])}"
        case Prompt(pairs=pairs) if pairs:
            text = f"{len(pairs)} demonstrations, the first: {_short(' '.join(pairs[0]))}"
        case Prompt(text=words):
            text = _short(str(words))
        case Lora(adapter=adapter, scale=scale):
            text = f"LoRA {Path(adapter).name}" + ("" if scale == 1 else f", scale {scale:g}")
        case FineTuned(model=model):
            text = f"the weights of {Path(model).name}"
        case LogitBias(bias=bias, positions=positions):
            where = "" if positions is None else f" at positions {list(positions)}"
            text = f"logit bias on {len(bias)} token{'s' * (len(bias) != 1)}{where}"
        case Neutral(like=like):
            text = f"neutral text, as many tokens as: {describe(like)}"
        case ShuffledTokens(of=prompt):
            text = f"the tokens in random order of: {describe(prompt)}"
        case Shifted(by=prompt):
            text = f"no prompt, positions as after: {describe(prompt)}"
        case Composed(conditions=members):
            text = " + ".join(map(describe, members))
        case _:
            text = "the model as it is"
    return text


def _short(text: str, width: int = 70) -> str:
    flat = " ".join(text.split())
    return f"“{flat}”" if len(flat) <= width else f"“{flat[: width - 1]}…”"


@dataclass(frozen=True)
class Setting:
    """A condition made exact for one tokenizer.

    `prefix`: token ids before the query. `shift`: how far the query's positions lie beyond the
    prefix (0 except for `Shifted`). `adapters`: (folder, scale) of the active LoRAs. `model`:
    other weights, or None. `bias`: (token id, value, positions or None for all).
    """

    prefix: tuple[int, ...] = ()
    shift: int = 0
    adapters: tuple[tuple[str, float], ...] = ()
    model: str | None = None
    bias: tuple[tuple[int, float, tuple[int, ...] | None], ...] = ()

    @property
    def weights(self) -> tuple[Any, ...]:
        """What identifies the state of the weights."""
        return (self.model, self.adapters)


def resolve(condition: Condition, tokenizer: PreTrainedTokenizerBase) -> Setting:
    """Token ids, positions and weights of a condition; raises `ConditionError`."""
    start = leading_specials(tokenizer)
    body: list[int] = []
    shift, adapters, models, bias = 0, [], [], []
    for part in parts(condition):
        match part:
            case Prompt() | Neutral() | ShuffledTokens():
                body += prefix_body(part, tokenizer)
            case Shifted(by=prompt):
                shift += len(prefix_body(prompt, tokenizer))
            case Lora(adapter=adapter, scale=scale):
                adapters.append((adapter, scale))
            case FineTuned(model=model):
                models.append(model)
            case LogitBias(bias=values, positions=positions):
                bias += [(token_id(t, tokenizer), float(v), positions) for t, v in values.items()]
            case Base():
                pass
            case _:
                raise ConditionError(f"not a condition: {part!r}")
    if len(models) > 1:
        raise ConditionError(f"only one set of weights at a time, not {' and '.join(models)}")
    if body[: len(start)] == list(start):  # a chat template that writes its own first token
        body = body[len(start) :]
    return Setting(
        (*start, *body), shift, tuple(adapters), models[0] if models else None, tuple(bias)
    )


def prefix_body(condition: Condition, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that a condition puts before the query, without the leading special tokens."""
    match condition:
        case Prompt():
            return _encode(condition.render(tokenizer), tokenizer)
        case Neutral(like=like, text=text):
            length = len(prefix_body(like, tokenizer))
            passage = _encode(text, tokenizer)
            if tokenizer.unk_token_id in passage:
                raise ConditionError("the neutral text has words this tokenizer does not know")
            return (passage * (length // max(1, len(passage)) + 1))[:length]
        case ShuffledTokens(of=prompt, seed=seed):
            return _shuffled(prefix_body(prompt, tokenizer), random.Random(seed))
        case Composed(conditions=members):
            return [token for member in members for token in prefix_body(member, tokenizer)]
        case _:
            return []


def _shuffled(tokens: list[int], generator: random.Random) -> list[int]:
    """The tokens in another order, wherever there is another."""
    shuffled = list(tokens)
    while True:
        generator.shuffle(shuffled)
        if shuffled != tokens or len(set(tokens)) < 2:
            return shuffled


def leading_specials(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before every text (BOS, or none)."""
    marked = tokenizer("a", add_special_tokens=True)["input_ids"]
    plain = _encode("a", tokenizer)
    end = len(marked) - len(plain)
    while end > 0 and marked[end : end + len(plain)] != plain:
        end -= 1
    return tuple(marked[:end])


def token_id(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of a text that is a single token."""
    if token in tokenizer.get_vocab():
        return tokenizer.get_vocab()[token]
    ids = _encode(token, tokenizer)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        raise ConditionError(f"{token!r} is not one token of this model but {pieces}")
    return ids[0]


def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
