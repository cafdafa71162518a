"""Two conditions side by side: what each has that the other has not, and what stands for it.

    contrast = Contrast.of(prompt, prompt + lora)
    contrast.own                                                      # ((), (lora,))
    contrast.replaced(is_plain_lora, lambda part: RandomLora(like=part))    # prompt + a random LoRA
    contrast.place(prompt + RandomLora(like=lora))                    # 1: in the second's place

Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from interp.conditions import (
    Base,
    Composed,
    Condition,
    Lora,
    Prompt,
    Untrained,
    beyond_lora,
    read_config,
    simple_parts,
)
from interp.errors import ConditionError

_Parts = tuple[Condition, ...]
_Wanted = Callable[[Condition], bool]


@dataclass(frozen=True)
class Contrast:
    """`sides`: the parts of either condition; base has none.

    A control is one side with some of its own parts replaced. The rest of the side stays: what
    both sides share must be in the control too, or the control would differ by more than it is for.
    """

    sides: tuple[_Parts, _Parts]

    @classmethod
    def of(cls, condition: Condition, reference: Condition) -> Contrast:
        """The contrast of two conditions."""
        a, b = (
            tuple(part for part in simple_parts(side) if not isinstance(part, Base))
            for side in (condition, reference)
        )
        return cls((a, b))

    @property
    def own(self) -> tuple[_Parts, _Parts]:
        """What each side has and the other has not."""
        a, b = self.sides
        return _without(a, b), _without(b, a)

    @property
    def shared(self) -> _Parts:
        """What both sides have."""
        return _without(self.sides[0], self.own[0])

    def places(self, wanted: _Wanted) -> list[int]:
        """The sides (0, 1) that have such a part of their own: first one that has nothing else of
        its own, so that its control differs from it by that part alone."""
        found = [place for place, own in enumerate(self.own) if any(map(wanted, own))]
        return sorted(found, key=lambda place: len({part.role for part in self.own[place]}))

    def replaced(
        self,
        wanted: _Wanted,
        make: Callable[..., Condition],
        others: Iterable[Condition] = (),
    ) -> Condition | None:
        """A side with `make(part)` in the place of its own parts that are `wanted`.

        Where neither side has one, `make` of the first of `others` that is one, if a side is a
        single part of that kind. None where there is nothing to control.
        """
        for place in self.places(wanted)[:1]:
            own = [part for part in self.own[place] if wanted(part)]
            return _composed(make(p) if p in own else p for p in self.sides[place])
        for other in filter(wanted, others):
            alone = [side[0] for side in self.own if len(side) == 1 and side in self.sides]
            return make(other) if other.role in {part.role for part in alone} else None
        return None

    def untrained(self, seed: int) -> Condition | None:
        """A side whose weights have learnt nothing; None where neither has weights of its own."""
        for place in self.places(_is_weights)[:1]:
            rest = (part for part in self.sides[place] if not _is_weights(part))
            return _composed([*rest, Untrained(seed=seed)])
        return None

    def place(self, control: Condition) -> int | None:
        """The side (0, 1) in whose place a control stands; None where it is a control of neither.

        A control of text or of weights stands for the side that has the part that it is like, else
        for one that has such parts of its own. What only moves logits stands for the first side: it
        has the output of the second, and base's states.
        """
        made = [part for part in simple_parts(control) if part.stands_in]
        if not made or any(part.only_logits for part in made):
            return 0
        weights = [part for part in made if part.reweights]
        if weights and len(weights) < len(made):
            return None  # of text and weights at once
        like = [part for one in made for other in one.made_of for part in simple_parts(other)]
        fitting = [
            p for p in self.places(_is_weights if weights else is_prompt) if self.fits(p, control)
        ]
        return min(
            fitting, key=lambda place: not any(p in self.own[place] for p in like), default=None
        )

    def fits(self, place: int, control: Condition) -> bool:
        """Whether the rest of a control is what both sides share and, at most, the rest of its
        side. Untrained weights take the place of all weights."""
        rest = [part for part in simple_parts(control) if not part.stands_in]
        bare = any(isinstance(part, Untrained) for part in simple_parts(control))
        kept = [part for part in self.shared if not (bare and _is_weights(part))]
        return not _without(kept, rest) and not _without(rest, self.sides[place])


def is_prompt(part: Condition) -> bool:
    """Whether a part stands before the query and is no control."""
    return part.role == "prompt"


def _is_weights(part: Condition) -> bool:
    """Whether a part changes the weights and is no control."""
    return part.role == "weights"


def is_text(part: Condition) -> bool:
    """Whether a part is a prompt of tokens."""
    return isinstance(part, Prompt)


def is_few_shot(part: Condition) -> bool:
    """Whether a part is a prompt of demonstrations."""
    return isinstance(part, Prompt) and bool(part.pairs)


def is_plain_lora(part: Condition) -> bool:
    """A LoRA that a random one can be like; of a folder that cannot be read, loading says so."""
    if not isinstance(part, Lora):
        return False
    try:
        return beyond_lora(read_config(part.adapter)) is None
    except ConditionError:
        return True


def _composed(members: Iterable[Condition]) -> Condition:
    """The composition of one or more parts."""
    found = tuple(members)
    return found[0] if len(found) == 1 else Composed(found)


def _without(some: Iterable[Condition], others: Iterable[Condition]) -> _Parts:
    """Multiset difference, in order: a part that stands twice has to be taken away twice."""
    rest, found = list(others), []
    for part in some:
        if part in rest:
            rest.remove(part)
        else:
            found.append(part)
    return tuple(found)
