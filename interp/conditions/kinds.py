"""What can differ between runs: the frozen descriptions that conditions are made of.

    Prompt(text="opposite :") + Lora("adapters/opposite", scale=0.5)
    describe(Neutral(like=Prompt(text="opposite :")))

A description holds no weights and no token ids.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from interp.conditions.folders import adapter_name, type_of
from interp.errors import ConditionError
from interp.organism.language import NEUTRAL_PASSAGE


class Condition:
    """Anything that can precede a query or change the weights; `a + b` composes."""

    __pydantic_config__ = {"extra": "forbid", "arbitrary_types_allowed": True}  # noqa: RUF012

    def __add__(self, other: Condition) -> Composed:
        return Composed((*simple_parts(self), *simple_parts(other)))


@dataclass(frozen=True)
class Base(Condition):
    """The model as it is: nothing but the tokenizer's own special tokens precedes the query."""


@dataclass(frozen=True)
class Prompt(Condition):
    """Words before the query: exactly one of `text`, `pairs`, `system` and `messages`.

    `text` stands right before the query, in a chat at the beginning of the user's message;
    `separator` is written between the two. `pairs`: few-shot (query, answer) pairs, each rendered
    by `template`; in a chat they are earlier turns. `system`: the chat's system message.
    `messages`: chat messages (`{"role": ..., "content": ...}`) before the user's, whole turns.
    """

    text: str | None = None
    messages: tuple[Mapping[str, str], ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    template: str = "{query} {answer}\n"
    separator: str = "\n"
    system: str | None = None

    def __post_init__(self) -> None:
        given = [self.text is not None, bool(self.messages), bool(self.pairs)]
        if sum([*given, self.system is not None]) != 1:
            raise ConditionError("a prompt takes exactly one of text, messages, pairs and system")
        for message in self.messages:
            if not all(isinstance(message.get(key), str) for key in ("role", "content")):
                raise ConditionError(
                    f"a chat message needs a role and a content, both text: {dict(message)!r}"
                )
        if self.messages and self.messages[-1]["role"] == "user":
            raise ConditionError(
                "the messages end with the user's turn, and the query is one: end them with the "
                "assistant's, or use text to put words before the query's own"
            )

    def as_text(self) -> str:
        """A prompt of text or pairs as the text that precedes a query without a chat frame."""
        shots = (self.template.format(query=query, answer=answer) for query, answer in self.pairs)
        return "".join(shots) if self.pairs else f"{self.text}{self.separator}"


@dataclass(frozen=True)
class SoftPrompt(Condition):
    """A peft prompt-tuning folder (PROMPT_TUNING or P_TUNING): virtual token embeddings.

    As in peft they stand before everything, the tokenizer's BOS included, wherever the soft prompt
    is written in a composition. At most one `SoftPrompt` or `Prefix` per condition.
    """

    adapter: str


@dataclass(frozen=True)
class Prefix(Condition):
    """A peft prefix folder (PREFIX_TUNING or CARTRIDGE): keys and values of virtual tokens, per
    layer.

    They stand before everything, as those of a `SoftPrompt`; no block computes them, so they are
    the same under any weights.
    """

    adapter: str


@dataclass(frozen=True)
class Lora(Condition):
    """A peft adapter folder: LoRA, or any other type that peft mounts on a model's modules. `scale`
    multiplies its effect, where its type has a scale."""

    adapter: str
    scale: float = 1.0


@dataclass(frozen=True)
class FineTuned(Condition):
    """Other weights of the same architecture (full fine-tune, RLHF, DPO): a model folder or id."""

    model: str


@dataclass(frozen=True)
class Steering(Condition):
    """Adds `scale * vector` to the residual stream after block `layer` (0-based: `resid_post`).

    At the query positions only: the prefix and its cache stay as they are. `vector` is a
    .safetensors file with one tensor, `vector`, of shape `[d_model]`.
    """

    vector: str
    layer: int
    scale: float = 1.0


@dataclass(frozen=True)
class LogitBias(Condition):
    """Adds `bias[token]` to the logits, at all query positions or at `positions` (negative: from
    the query's end). Moves the output and no state: the negative control."""

    bias: Mapping[str, float]
    positions: tuple[int, ...] | None = None

    def __hash__(self) -> int:
        return hash((tuple(self.bias.items()), self.positions))


@dataclass(frozen=True)
class FittedBias(Condition):
    """A control: base, its logits tilted so that its mean next-token distribution over the queries
    is that of `like`. The output follows the other condition as far as one constant tilt can, and
    no state moves. Fitted to the matched queries when a study begins
    (`interp.logit_bias.fit_bias`)."""

    like: Condition


@dataclass(frozen=True)
class Neutral(Condition):
    """A control: as many tokens as the prompt `like`, of ordinary text that asks for nothing."""

    like: Condition
    text: str = NEUTRAL_PASSAGE


@dataclass(frozen=True)
class EmptySystem(Condition):
    """A control: an empty system message, where the chat template writes its own into base."""


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
class ShuffledLabels(Condition):
    """A control: the few-shot prompt `of` with its answers given to other demonstrations.

    The answers are permuted so that as few demonstrations as possible keep the answer they had
    (none, unless one answer makes up more than half of them; two answers are then swapped).
    """

    of: Prompt
    seed: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.of, Prompt) and self.of.pairs):
            raise ConditionError("shuffled labels need a few-shot prompt: a Prompt with pairs")

    @property
    def prompt(self) -> Prompt:
        """The prompt that this is."""
        labels = deranged([answer for _, answer in self.of.pairs], random.Random(self.seed))
        queries = [query for query, _ in self.of.pairs]
        return replace(self.of, pairs=tuple(zip(queries, labels, strict=True)))


@dataclass(frozen=True)
class RandomLora(Condition):
    """A control: a random adapter of the size of `like`.

    The same modules, ranks and scaling; A and B are Gaussian, and every module's update has the
    Frobenius norm that it has in `like`. `scale` multiplies `like`'s own. See
    `interp.subject.controls.random_like`.
    """

    like: Lora
    seed: int = 0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.like, Lora):
            raise ConditionError("a random LoRA needs the LoRA that it is like")


@dataclass(frozen=True)
class Untrained(Condition):
    """A control: the same architecture, freshly initialised, which has learned nothing."""

    seed: int = 0


@dataclass(frozen=True)
class Composed(Condition):
    """Several conditions at once, their prefixes in this order."""

    conditions: tuple[Condition, ...]


def simple_parts(condition: Condition) -> tuple[Condition, ...]:
    """The simple conditions that a condition is composed of."""
    return condition.conditions if isinstance(condition, Composed) else (condition,)


CONTROL_CONDITIONS = (
    Neutral, EmptySystem, ShuffledTokens, ShuffledLabels, Shifted, RandomLora, LogitBias,
    FittedBias, Untrained,
)  # fmt: skip
STAND_INS = tuple(control for control in CONTROL_CONDITIONS if control is not LogitBias)
"""Controls that are made of another condition. A logit bias that one writes is a control by itself,
and a part like any other in a composition."""


def kind(condition: Condition) -> str:
    """How a reader groups conditions: `base`, `control`, `prompt`, `weights`, `steering` or
    `composed`. A composition with a stand-in in it is a control."""
    if isinstance(condition, Composed):
        stands_in = any(isinstance(part, STAND_INS) for part in condition.conditions)
        return "control" if stands_in else "composed"
    if isinstance(condition, Base):
        return "base"
    if isinstance(condition, CONTROL_CONDITIONS):
        return "control"
    if isinstance(condition, Steering):
        return "steering"
    return "prompt" if isinstance(condition, Prompt | SoftPrompt | Prefix) else "weights"


def describe(condition: Condition) -> str:
    """A condition in one short line, for people."""
    match condition:
        case Prompt(messages=messages) if messages:
            text = f"{len(messages)} chat messages, the last: {_short(messages[-1]['content'])}"
        case Prompt(pairs=pairs) if pairs:
            text = f"{len(pairs)} demonstrations, the first: {_short(' '.join(pairs[0]))}"
        case Prompt(system=words) if words is not None:
            text = f"system message {_short(words)}"
        case Prompt(text=words):
            text = _short(str(words))
        case EmptySystem():
            text = "an empty system message"
        case Lora(adapter=adapter, scale=scale):
            text = f"{type_of(adapter)} {adapter_name(adapter)}{_scaled(scale)}"
        case SoftPrompt(adapter=adapter):
            text = f"soft prompt {adapter_name(adapter)}"
        case Prefix(adapter=adapter):
            text = f"prefix {adapter_name(adapter)}"
        case Steering(vector=vector, layer=layer, scale=scale):
            text = f"steering by {Path(vector).stem} after layer {layer}{_scaled(scale)}"
        case FineTuned(model=model):
            text = f"the weights of {Path(model).name}"
        case LogitBias(bias=bias, positions=positions):
            where = "" if positions is None else f" at positions {list(positions)}"
            text = f"logit bias on {len(bias)} token{'s' * (len(bias) != 1)}{where}"
        case FittedBias(like=like):
            text = f"logit bias fitted to the outputs of: {describe(like)}"
        case Neutral(like=like):
            text = f"neutral text, as many tokens as: {describe(like)}"
        case ShuffledTokens(of=prompt):
            text = f"the tokens in random order of: {describe(prompt)}"
        case ShuffledLabels(of=prompt):
            text = f"the answers in random order of: {describe(prompt)}"
        case RandomLora(like=lora, scale=scale):
            text = f"a random LoRA of the size of: {describe(lora)}{_scaled(scale)}"
        case Untrained():
            text = "the same architecture, untrained"
        case Shifted(by=prompt):
            text = f"no prompt, positions as after: {describe(prompt)}"
        case Composed(conditions=members):
            text = " + ".join(map(describe, members))
        case _:
            text = "the model as it is"
    return text


def _scaled(scale: float) -> str:
    return "" if scale == 1 else f", scale {scale:g}"


def _short(text: str, width: int = 70) -> str:
    flat = " ".join(text.split())
    return f"“{flat}”" if len(flat) <= width else f"“{flat[: width - 1]}…”"


def deranged(values: Sequence[str], generator: random.Random) -> list[str]:
    """The values in another order, as few as possible where an equal one was.

    Sorted by value (places of equal values in random order), every place gets the value that
    stands `m` places further round, where `m` is the commonest value's count. No group of equals
    is longer than `m`, so a value comes to lie on its equal only where 2m exceeds the total, and
    then 2m - n times, which is the least possible.
    """
    places = list(range(len(values)))
    generator.shuffle(places)
    labels = list(dict.fromkeys(values[place] for place in places))
    places.sort(key=lambda place: labels.index(values[place]))
    most = max((values.count(label) for label in labels), default=0)
    result = list(values)
    for rank, place in enumerate(places):
        result[place] = values[places[(rank + most) % len(places)]]
    return result
