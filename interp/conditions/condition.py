"""What every condition can say of itself, and how conditions compose.

    both = Prompt(text="opposite :") + Lora("adapters/opposite", scale=0.5)
    both.role, both.reweights, list(both.files())
    CONDITION_KINDS["prompt"]                # the class behind a name in an experiment file

A condition is one class: a frozen dataclass that derives from `Condition` and overrides what it
does. Its name in experiment files is that of the class, `RandomLora` -> `random_lora`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

from interp.conditions.setting import Setting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from interp.conditions.frames import Frame, Message, Stretch

CONDITION_KINDS: dict[str, type[Condition]] = {}
"""Name in an experiment file -> class, in the order in which errors list them."""

REFERENCES = frozenset({"like", "of", "by"})
"""Fields that hold another condition; an experiment file names one that is above it."""


class Condition:
    """Anything that can precede a query or change the weights; `a + b` composes."""

    __pydantic_config__ = {  # noqa: RUF012
        "extra": "forbid",
        "arbitrary_types_allowed": True,
        "allow_inf_nan": False,
    }

    tag: ClassVar[str] = ""
    """Its name in experiment files."""

    def __init_subclass__(cls, *, tagged: bool = True) -> None:
        if tagged:
            cls.tag = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
            CONDITION_KINDS[cls.tag] = cls

    def __add__(self, other: Condition) -> Composed:
        return Composed((*simple_parts(self), *simple_parts(other)))

    @property
    def role(self) -> str:
        """How a reader groups conditions: `base`, `control`, `prompt`, `weights`, `steering` or
        `composed`. A composition with a stand-in in it is a control."""
        raise NotImplementedError

    def describe(self) -> str:
        """The condition in one short line, for people."""
        raise NotImplementedError

    @property
    def stands_in(self) -> bool:
        """Whether it is a control in the place of another condition. A logit bias that one writes
        is a control by itself, and a part like any other in a composition."""
        return False

    @property
    def reweights(self) -> bool:
        """Whether it has weights of its own."""
        return False

    @property
    def only_logits(self) -> bool:
        """Whether it moves logits and no internal state."""
        return False

    @property
    def made_of(self) -> tuple[Condition, ...]:
        """The conditions that it is like."""
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return tuple(value for value in values if isinstance(value, Condition))

    @property
    def n_virtual(self) -> int:
        """How many virtual tokens it puts before everything."""
        return 0

    def files(self) -> Iterable[tuple[str, str]]:
        """What it reads from disk: `adapter`, `model` or `vector`, and where."""
        return ()

    def stretches(self, frame: Frame, tokenizer: PreTrainedTokenizerBase) -> Iterable[Stretch]:
        """The words that it puts before a query."""
        return ()

    def setting(
        self, tokenizer: PreTrainedTokenizerBase, frame: Frame, query: Sequence[Message]
    ) -> Setting:
        """What else it does, exact for one tokenizer: all of a setting but its prefix."""
        return Setting()


@dataclass(frozen=True)
class Composed(Condition, tagged=False):
    """Several conditions at once, their prefixes in this order."""

    conditions: tuple[Condition, ...]

    @property
    def role(self) -> str:
        return "control" if any(part.stands_in for part in self.conditions) else "composed"

    def describe(self) -> str:
        return " + ".join(part.describe() for part in self.conditions)

    @property
    def reweights(self) -> bool:
        return any(part.reweights for part in self.conditions)

    @property
    def only_logits(self) -> bool:
        return all(part.only_logits for part in self.conditions)

    @property
    def n_virtual(self) -> int:
        return sum(part.n_virtual for part in self.conditions)

    def files(self) -> Iterable[tuple[str, str]]:
        for part in self.conditions:
            yield from part.files()


def simple_parts(condition: Condition) -> tuple[Condition, ...]:
    """The simple conditions that a condition is composed of."""
    return condition.conditions if isinstance(condition, Composed) else (condition,)
