"""Virtual tokens: how many an adapter folder has, from its configuration alone."""

from __future__ import annotations

from typing import NamedTuple

from interp.conditions.folders import read_config
from interp.conditions.kinds import Condition, Prefix, SoftPrompt, simple_parts
from interp.errors import ConditionError

PEFT_TYPES = {SoftPrompt: ("PROMPT_TUNING", "P_TUNING"), Prefix: ("PREFIX_TUNING", "CARTRIDGE")}


class Virtual(NamedTuple):
    """An adapter's virtual tokens: the folder, how many, and whether they are keys and values of
    every layer (`Prefix`) or embeddings (`SoftPrompt`)."""

    adapter: str
    length: int
    cached: bool


def virtual_tokens(condition: SoftPrompt | Prefix) -> Virtual:
    """How many virtual tokens an adapter folder has, from its configuration alone."""
    config = read_config(condition.adapter)
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


def virtual_length(condition: Condition) -> int:
    """How many virtual tokens a condition puts before everything."""
    virtual = (part for part in simple_parts(condition) if isinstance(part, SoftPrompt | Prefix))
    return sum(virtual_tokens(part).length for part in virtual)
