"""Null controls: conditions made in the place of another one.

Neutral(like=Prompt(text="opposite :")).describe()
Prompt(text="opposite :") + RandomLora(like=Lora("adapters/opposite"))
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from interp.conditions.condition import Condition
from interp.conditions.frames import Fill, Frame, Message, Stretch
from interp.conditions.kinds import Base, Lora, Prompt, scaled
from interp.conditions.placing import prefix_ids, tokenised
from interp.conditions.setting import Randomised, Setting
from interp.errors import ConditionError
from interp.organism.language import NEUTRAL_PASSAGE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Control(Condition, tagged=False):
    """A control that stands in for another condition."""

    role = "control"
    stands_in = True


@dataclass(frozen=True)
class FittedBias(Control):
    """A control: base, its logits tilted so that its mean next-token distribution over the queries
    is that of `like`. The output follows the other condition as far as one constant tilt can, and
    no state moves. Fitted to the matched queries when a study begins
    (`interp.logit_bias.fit_bias`)."""

    like: Condition

    only_logits = True

    def describe(self) -> str:
        return f"logit bias fitted to the outputs of: {self.like.describe()}"


@dataclass(frozen=True)
class Neutral(Control):
    """A control: as many tokens as the prompt `like`, of ordinary text that asks for nothing."""

    like: Condition
    text: str = NEUTRAL_PASSAGE

    def describe(self) -> str:
        return f"neutral text, as many tokens as: {self.like.describe()}"

    def stretches(self, frame: Frame, tokenizer: PreTrainedTokenizerBase) -> Iterable[Stretch]:
        """As many tokens of the passage as `like` has, virtual ones included."""
        virtual = self.like.n_virtual
        own = frame.stretches(self.like, tokenizer)
        if own:
            fill = Fill(self._passage, extra=virtual)
            yield from (stretch._replace(fill=fill) for stretch in own)
        elif virtual and frame.takes_system(tokenizer):
            yield Stretch("system", self.text, Fill(self._passage, extra=virtual, own=False))
        elif virtual:
            yield Stretch("", "", Fill(self._passage, extra=virtual))

    def _passage(
        self, own: list[int], length: int, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        passage = tokenised(self.text, tokenizer)[0]
        if tokenizer.unk_token_id in passage:
            raise ConditionError("the neutral text has words this tokenizer does not know")
        return (passage * (length // max(1, len(passage)) + 1))[:length]


@dataclass(frozen=True)
class EmptySystem(Control):
    """A control: an empty system message, where the chat template writes its own into base."""

    def describe(self) -> str:
        return "an empty system message"

    def stretches(self, frame: Frame, tokenizer: PreTrainedTokenizerBase) -> Iterable[Stretch]:
        return [Stretch("system", "")]


@dataclass(frozen=True)
class ShuffledTokens(Control):
    """A control: the prompt's own tokens in a random order (leading special tokens stay)."""

    of: Condition
    seed: int = 0

    def describe(self) -> str:
        return f"the tokens in random order of: {self.of.describe()}"

    def stretches(self, frame: Frame, tokenizer: PreTrainedTokenizerBase) -> Iterable[Stretch]:
        if self.of.n_virtual:
            raise ConditionError(f"no tokens to shuffle: {self.of.describe()} is virtual")
        fill = Fill(self._shuffled)
        own = frame.stretches(self.of, tokenizer)
        return [stretch._replace(fill=fill) for stretch in own]

    def _shuffled(
        self, own: list[int], length: int, tokenizer: PreTrainedTokenizerBase
    ) -> list[int]:
        """The tokens in another order, wherever there is another."""
        generator, shuffled = random.Random(self.seed), list(own)
        while True:
            generator.shuffle(shuffled)
            if shuffled != own or len(set(own)) < 2:
                return shuffled


@dataclass(frozen=True)
class ShuffledLabels(Control):
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

    def describe(self) -> str:
        return f"the answers in random order of: {self.of.describe()}"

    def stretches(self, frame: Frame, tokenizer: PreTrainedTokenizerBase) -> Iterable[Stretch]:
        return self.prompt.stretches(frame, tokenizer)


@dataclass(frozen=True)
class Shifted(Control):
    """A control: no prompt, but the query stands at the positions it has after the prompt `by`."""

    by: Condition

    def describe(self) -> str:
        return f"no prompt, positions as after: {self.by.describe()}"

    def setting(
        self, tokenizer: PreTrainedTokenizerBase, frame: Frame, query: Sequence[Message]
    ) -> Setting:
        own, base = (prefix_ids(c, tokenizer, frame, query) for c in (self.by, Base()))
        return Setting(shift=self.by.n_virtual + len(own) - len(base))


@dataclass(frozen=True)
class RandomLora(Control):
    """A control: a random adapter of the size of `like`.

    The same modules, ranks and scaling; A and B are Gaussian, and every module's update has the
    Frobenius norm that it has in `like`. `scale` multiplies `like`'s own. See
    `interp.subject.controls.random_like`.
    """

    like: Lora
    seed: int = 0
    scale: float = 1.0

    reweights = True

    def __post_init__(self) -> None:
        if not isinstance(self.like, Lora):
            raise ConditionError("a random LoRA needs the LoRA that it is like")

    def describe(self) -> str:
        return f"a random LoRA of the size of: {self.like.describe()}{scaled(self.scale)}"

    def files(self) -> Iterable[tuple[str, str]]:
        return self.like.files()

    def setting(
        self, tokenizer: PreTrainedTokenizerBase, frame: Frame, query: Sequence[Message]
    ) -> Setting:
        made = Randomised(self.like.adapter, self.seed)
        return Setting(adapters=((made, self.like.scale * self.scale),))


@dataclass(frozen=True)
class Untrained(Control):
    """A control: the same architecture, freshly initialised, which has learned nothing."""

    seed: int = 0

    reweights = True

    def describe(self) -> str:
        return "the same architecture, untrained"

    def setting(
        self, tokenizer: PreTrainedTokenizerBase, frame: Frame, query: Sequence[Message]
    ) -> Setting:
        return Setting(model=self)


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
