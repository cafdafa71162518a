"""What differs between runs of one model on the same queries.

    conditions = {
        "base": Base(),
        "prompt": Prompt(text="hot -> cold ; up -> down ;"),
        "lora": Lora("adapters/opposite"),
        "neutral": Neutral(like=Prompt(text="hot -> cold ; up -> down ;")),
        "both": Prompt(text="opposite :") + Lora("adapters/opposite", scale=0.5),
    }

A condition is a frozen description: it holds no weights and no token ids. `resolve` turns it,
for one tokenizer, into a `Setting`: what exactly precedes the query (token ids and an adapter's
virtual tokens), the query's first position, the state of the weights, and what is added to the
residual stream and to the logits. Torch-free.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
class SoftPrompt(Condition):
    """A peft prompt-tuning folder (PROMPT_TUNING or P_TUNING): virtual token embeddings.

    As in peft they stand before everything, the tokenizer's BOS included, wherever the soft prompt
    is written in a composition. At most one `SoftPrompt` or `Prefix` per condition.
    """

    adapter: str


@dataclass(frozen=True)
class Prefix(Condition):
    """A peft prefix-tuning folder (PREFIX_TUNING): keys and values of virtual tokens, per layer.

    They stand before everything, as those of a `SoftPrompt`; no block computes them, so they are
    the same under any weights.
    """

    adapter: str


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


def parts(condition: Condition) -> tuple[Condition, ...]:
    """The simple conditions that a condition is composed of."""
    return condition.conditions if isinstance(condition, Composed) else (condition,)


CONTROLS = (
    Neutral, ShuffledTokens, ShuffledLabels, Shifted, RandomLora, LogitBias, Untrained
)  # fmt: skip


def kind(condition: Condition) -> str:
    """How a reader groups conditions: `base`, `control`, `prompt`, `weights`, `steering` or
    `composed`."""
    if isinstance(condition, Composed):
        return "composed"
    if isinstance(condition, Base):
        return "base"
    if isinstance(condition, CONTROLS):
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
        case Prompt(text=words):
            text = _short(str(words))
        case Lora(adapter=adapter, scale=scale):
            text = f"LoRA {Path(adapter).name}{_scaled(scale)}"
        case SoftPrompt(adapter=adapter):
            text = f"soft prompt {Path(adapter).name}"
        case Prefix(adapter=adapter):
            text = f"prefix {Path(adapter).name}"
        case Steering(vector=vector, layer=layer, scale=scale):
            text = f"steering by {Path(vector).stem} after layer {layer}{_scaled(scale)}"
        case FineTuned(model=model):
            text = f"the weights of {Path(model).name}"
        case LogitBias(bias=bias, positions=positions):
            where = "" if positions is None else f" at positions {list(positions)}"
            text = f"logit bias on {len(bias)} token{'s' * (len(bias) != 1)}{where}"
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


class Virtual(NamedTuple):
    """An adapter's virtual tokens: the folder, how many, and whether they are keys and values of
    every layer (`Prefix`) or embeddings (`SoftPrompt`)."""

    adapter: str
    length: int
    cached: bool


class Randomised(NamedTuple):
    """Stands in a setting's adapters for the random adapter that is like the one in `folder`."""

    folder: str
    seed: int


class Added(NamedTuple):
    """A vector file, times `scale`, added to the residual stream after block `layer`."""

    vector: str
    layer: int
    scale: float


@dataclass(frozen=True)
class Setting:
    """A condition made exact for one tokenizer.

    `prefix`: token ids before the query. `shift`: how far the query's positions lie beyond the
    prefix (0 except for `Shifted`). `adapters`: (folder, scale) of the active LoRAs. `model`:
    other weights, or None. `bias`: (token id, value, positions or None for all). `virtual`: virtual
    tokens, which stand before `prefix`. `steering`: what is added to the residual stream.
    """

    prefix: tuple[int, ...] = ()
    shift: int = 0
    adapters: tuple[tuple[str | Randomised, float], ...] = ()
    model: str | Untrained | None = None
    bias: tuple[tuple[int, float, tuple[int, ...] | None], ...] = ()
    virtual: Virtual | None = None
    steering: tuple[Added, ...] = ()

    @property
    def n_prefix(self) -> int:
        """How many keys stand before the query: the virtual tokens and the token ids."""
        return len(self.prefix) + (self.virtual.length if self.virtual else 0)

    @property
    def weights(self) -> tuple[Any, ...]:
        """What identifies the state of the weights."""
        return (self.model, self.adapters)


def resolve(condition: Condition, tokenizer: PreTrainedTokenizerBase) -> Setting:
    """Token ids, positions and weights of a condition; raises `ConditionError`."""
    start = leading_specials(tokenizer)
    body: list[int] = []
    shift = 0
    adapters: list[tuple[str | Randomised, float]] = []
    models: list[str | Untrained] = []
    bias: list[tuple[int, float, tuple[int, ...] | None]] = []
    virtual: list[Virtual] = []
    steering: list[Added] = []
    for part in parts(condition):
        match part:
            case Prompt() | Neutral() | ShuffledTokens() | ShuffledLabels():
                body += prefix_body(part, tokenizer)
            case SoftPrompt() | Prefix():
                virtual.append(virtual_tokens(part))
            case Shifted(by=prompt):
                shift += prefix_length(prompt, tokenizer)
            case Lora(adapter=adapter, scale=scale):
                adapters.append((adapter, scale))
            case RandomLora(like=like, seed=seed, scale=scale):
                adapters.append((Randomised(like.adapter, seed), like.scale * scale))
            case FineTuned(model=model):
                models.append(model)
            case Untrained():
                models.append(part)
            case Steering(vector=vector, layer=layer, scale=scale):
                steering.append(Added(vector, layer, scale))
            case LogitBias(bias=values, positions=positions):
                bias += [(token_id(t, tokenizer), float(v), positions) for t, v in values.items()]
            case Base():
                pass
            case _:
                raise ConditionError(f"not a condition: {part!r}")
    if len(models) > 1:
        names = " and ".join(m if isinstance(m, str) else describe(m) for m in models)
        raise ConditionError(f"only one set of weights at a time, not {names}")
    if len(virtual) > 1:
        names = " and ".join(v.adapter for v in virtual)
        raise ConditionError(f"only one soft prompt or prefix at a time, not {names}")
    if body[: len(start)] == list(start):  # a chat template that writes its own first token
        body = body[len(start) :]
    return Setting(
        (*start, *body),
        shift,
        tuple(adapters),
        models[0] if models else None,
        tuple(bias),
        virtual[0] if virtual else None,
        tuple(steering),
    )


PEFT_TYPES = {SoftPrompt: ("PROMPT_TUNING", "P_TUNING"), Prefix: ("PREFIX_TUNING",)}


def virtual_tokens(condition: SoftPrompt | Prefix) -> Virtual:
    """How many virtual tokens an adapter folder has, from its configuration alone."""
    path = Path(condition.adapter) / "adapter_config.json"
    if not path.is_file():
        raise ConditionError(f"{condition.adapter} is not a peft adapter: it has no {path.name}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConditionError(f"adapter {condition.adapter} is damaged: {error}") from error
    config = config if isinstance(config, dict) else {}
    known = PEFT_TYPES[type(condition)]
    if (found := config.get("peft_type")) not in known:
        wanted = " or ".join(known)
        raise ConditionError(f"adapter {condition.adapter} is of type {found}, not {wanted}")
    length = config.get("num_virtual_tokens")
    if not (isinstance(length, int) and length > 0):
        raise ConditionError(
            f"adapter {condition.adapter}: num_virtual_tokens is {length!r}, not a positive number"
        )
    return Virtual(condition.adapter, length, isinstance(condition, Prefix))


def prefix_length(condition: Condition, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens, virtual ones included, a condition puts before the query (no BOS)."""
    virtual = [part for part in parts(condition) if isinstance(part, SoftPrompt | Prefix)]
    length = sum(virtual_tokens(part).length for part in virtual)
    return length + len(prefix_body(condition, tokenizer))


def prefix_body(condition: Condition, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that a condition puts before the query, without the leading special tokens.

    Virtual tokens have no ids; `prefix_length` counts them too.
    """
    match condition:
        case Prompt():
            return _encode(condition.render(tokenizer), tokenizer)
        case ShuffledLabels():
            return prefix_body(condition.prompt, tokenizer)
        case Neutral(like=like, text=text):
            length = prefix_length(like, tokenizer)
            passage = _encode(text, tokenizer)
            if tokenizer.unk_token_id in passage:
                raise ConditionError("the neutral text has words this tokenizer does not know")
            return (passage * (length // max(1, len(passage)) + 1))[:length]
        case ShuffledTokens(of=prompt, seed=seed):
            if any(isinstance(part, SoftPrompt | Prefix) for part in parts(prompt)):
                raise ConditionError(f"no tokens to shuffle: {describe(prompt)} is virtual")
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
