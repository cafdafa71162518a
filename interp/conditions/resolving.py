"""Conditions made exact for one tokenizer.

    resolve(Prompt(text="opposite :") + Lora("adapters/opposite"), tokenizer)
    # Setting(prefix=(1, 403, ...), adapters=(("adapters/opposite", 1.0),))

Torch-free: of an adapter's virtual tokens only their number is read, from its configuration.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.conditions.kinds import (
    Base,
    Composed,
    Condition,
    FineTuned,
    FittedBias,
    LogitBias,
    Lora,
    Neutral,
    Prefix,
    Prompt,
    RandomLora,
    Shifted,
    ShuffledLabels,
    ShuffledTokens,
    SoftPrompt,
    Steering,
    Untrained,
    describe,
    parts,
)
from interp.errors import ConditionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
            case Base() | FittedBias():
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
    if type(length) is not int or length < 1:
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
