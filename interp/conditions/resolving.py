"""Conditions made exact for one tokenizer.

    resolve(Prompt(text="opposite :") + Lora("adapters/opposite"), tokenizer)
    # Setting(prefix=(1, 403, ...), adapters=(("adapters/opposite", 1.0),))

Torch-free: of an adapter's virtual tokens only their number is read, from its configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from interp.conditions.condition import CONDITION_KINDS, Condition, simple_parts
from interp.conditions.frames import PROBE, RAW, Frame, Message, user
from interp.conditions.placing import leading_specials, prefix_ids
from interp.conditions.setting import Setting
from interp.errors import ConditionError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
    parts = []
    for part in simple_parts(condition):
        if type(part) not in CONDITION_KINDS.values():
            raise ConditionError(f"not a condition: {part!r}")
        parts.append(part.setting(tokenizer, frame, query))
    models = [part.model for part in parts if part.model is not None]
    virtual = [part.virtual for part in parts if part.virtual]
    if len(models) > 1:
        names = " and ".join(m if isinstance(m, str) else m.describe() for m in models)
        raise ConditionError(f"only one set of weights at a time, not {names}")
    if len(virtual) > 1:
        names = " and ".join(v.adapter for v in virtual)
        raise ConditionError(f"only one soft prompt or prefix at a time, not {names}")
    return Setting(
        prefix_ids(condition, tokenizer, frame, query),
        sum(part.shift for part in parts),
        tuple(chain.from_iterable(part.adapters for part in parts)),
        models[0] if models else None,
        tuple(chain.from_iterable(part.bias for part in parts)),
        virtual[0] if virtual else None,
        tuple(chain.from_iterable(part.steering for part in parts)),
    )


def prefix_length(condition: Condition, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens, virtual ones included, a condition puts before a raw query (no BOS)."""
    return condition.n_virtual + len(prefix_body(condition, tokenizer))


def prefix_body(condition: Condition, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that a condition puts before a raw query, without the leading special tokens.

    Virtual tokens have no ids; `prefix_length` counts them too.
    """
    return list(prefix_ids(condition, tokenizer)[len(leading_specials(tokenizer)) :])
