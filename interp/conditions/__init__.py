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

from interp.conditions.condition import (
    CONDITION_KINDS,
    REFERENCES,
    Composed,
    Condition,
    simple_parts,
)
from interp.conditions.controls import (
    EmptySystem,
    FittedBias,
    Neutral,
    RandomLora,
    Shifted,
    ShuffledLabels,
    ShuffledTokens,
    Untrained,
    deranged,
)
from interp.conditions.folders import (
    CONFIG,
    REWRITING,
    beyond_lora,
    hub_name,
    local_folder,
    located,
    read_config,
)
from interp.conditions.frames import PROBE, RAW, Frame, Message, user
from interp.conditions.kinds import (
    Base,
    FineTuned,
    LogitBias,
    Lora,
    Prefix,
    Prompt,
    SoftPrompt,
    Steering,
)
from interp.conditions.placing import PlacedQuery, leading_specials, place, prefix_ids, token_id
from interp.conditions.resolving import prefix_body, prefix_length, resolve
from interp.conditions.setting import Added, Randomised, Setting, Virtual

__all__ = [
    "CONDITION_KINDS",
    "CONFIG",
    "PROBE",
    "RAW",
    "REFERENCES",
    "REWRITING",
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
    "PlacedQuery",
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
    "beyond_lora",
    "deranged",
    "hub_name",
    "leading_specials",
    "local_folder",
    "located",
    "place",
    "prefix_body",
    "prefix_ids",
    "prefix_length",
    "read_config",
    "resolve",
    "simple_parts",
    "token_id",
    "user",
]
