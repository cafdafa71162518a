"""Conditions made exact for one tokenizer.

    resolve(Prompt(text="opposite :") + Lora("adapters/opposite"), tokenizer)
    # Setting(prefix=(1, 403, ...), adapters=(("adapters/opposite", 1.0),))

Torch-free: of an adapter's virtual tokens only their number is read, from its configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.conditions.frames import PROBE, RAW, Frame, Message, user
from interp.conditions.kinds import (
    Base,
    Condition,
    EmptySystem,
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
    simple_parts,
)
from interp.conditions.placing import leading_specials, prefix_ids, tokenised
from interp.conditions.virtual import Virtual, virtual_length, virtual_tokens
from interp.errors import ConditionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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


def resolve(
    condition: Condition,
    tokenizer: PreTrainedTokenizerBase,
    frame: Frame = RAW,
    query: Sequence[Message] | None = None,
) -> Setting:
    """Token ids, positions and weights of a condition; raises `ConditionError`.

    `query`: one of those that are to follow (none: any).
    """
    query = query or user(PROBE)
    shift = 0
    adapters: list[tuple[str | Randomised, float]] = []
    models: list[str | Untrained] = []
    bias: list[tuple[int, float, tuple[int, ...] | None]] = []
    virtual: list[Virtual] = []
    steering: list[Added] = []
    for part in simple_parts(condition):
        match part:
            case SoftPrompt() | Prefix():
                virtual.append(virtual_tokens(part))
            case Shifted():
                shift += _shift_of(part, tokenizer, frame, query)
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
            case Base() | FittedBias() | Prompt() | EmptySystem() | Neutral():
                pass
            case ShuffledTokens() | ShuffledLabels():
                pass
            case _:
                raise ConditionError(f"not a condition: {part!r}")
    if len(models) > 1:
        names = " and ".join(m if isinstance(m, str) else describe(m) for m in models)
        raise ConditionError(f"only one set of weights at a time, not {names}")
    if len(virtual) > 1:
        names = " and ".join(v.adapter for v in virtual)
        raise ConditionError(f"only one soft prompt or prefix at a time, not {names}")
    return Setting(
        prefix_ids(condition, tokenizer, frame, query),
        shift,
        tuple(adapters),
        models[0] if models else None,
        tuple(bias),
        virtual[0] if virtual else None,
        tuple(steering),
    )


def _shift_of(
    condition: Shifted, tokenizer: PreTrainedTokenizerBase, frame: Frame, query: Sequence[Message]
) -> int:
    """How many positions further on a query stands after a prompt than in base."""
    own, base = (prefix_ids(c, tokenizer, frame, query) for c in (condition.by, Base()))
    return virtual_length(condition.by) + len(own) - len(base)


def prefix_length(condition: Condition, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens, virtual ones included, a condition puts before a raw query (no BOS)."""
    return virtual_length(condition) + len(prefix_body(condition, tokenizer))


def prefix_body(condition: Condition, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that a condition puts before a raw query, without the leading special tokens.

    Virtual tokens have no ids; `prefix_length` counts them too.
    """
    return list(prefix_ids(condition, tokenizer)[len(leading_specials(tokenizer)) :])


def token_id(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of a text that is a single token."""
    if token in tokenizer.get_vocab():
        return tokenizer.get_vocab()[token]
    ids = tokenised(token, tokenizer)[0]
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        raise ConditionError(f"{token!r} is not one token of this model but {pieces}")
    return ids[0]
