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

from interp.conditions.frames import PROBE, RAW, Frame, Message, user
from interp.conditions.kinds import (
    CONTROLS,
    STAND_INS,
    Base,
    Composed,
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
    deranged,
    describe,
    kind,
    parts,
)
from interp.conditions.placing import Placed, leading_specials, place, prefix_ids
from interp.conditions.resolving import (
    Added,
    Randomised,
    Setting,
    prefix_body,
    prefix_length,
    resolve,
    token_id,
)
from interp.conditions.virtual import PEFT_TYPES, Virtual, virtual_tokens

__all__ = [
    "CONTROLS",
    "PEFT_TYPES",
    "PROBE",
    "RAW",
    "STAND_INS",
    "Added",
    "Base",
    "Composed",
    "Condition",
    "EmptySystem",
    "FineTuned",
    "FittedBias",
    "Frame",
    "LogitBias",
    "Lora",
    "Message",
    "Neutral",
    "Placed",
    "Prefix",
    "Prompt",
    "RandomLora",
    "Randomised",
    "Setting",
    "Shifted",
    "ShuffledLabels",
    "ShuffledTokens",
    "SoftPrompt",
    "Steering",
    "Untrained",
    "Virtual",
    "deranged",
    "describe",
    "kind",
    "leading_specials",
    "parts",
    "place",
    "prefix_body",
    "prefix_ids",
    "prefix_length",
    "resolve",
    "token_id",
    "user",
    "virtual_tokens",
]
