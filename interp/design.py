"""What is compared with what: families, pairs with rows, nulls, floors, and the tests.

    design = Design.of(conditions, families={}, compare=("instruction_0", "lora_0"))
    design.headline                 # the same; without `compare` the first prompt, first adapter
    design.families                 # {"few_shot": ("few_shot_0", "few_shot_1"), ...}
    design.controls[headline]       # the pair it is tested against: ("neutral", "lora_0")

Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from interp.conditions import Condition, Neutral, RandomLora, simple_parts
from interp.contrast import Contrast
from interp.errors import ConfigError

BASE = "base"

ConditionPair = tuple[str, str]
"""(condition, reference)."""


@dataclass(frozen=True)
class Design:
    """`families`: kinds with several members. `headline`: the pair the study is about (see
    `headline_of`). `pairs` have rows: the headline and its nulls; the first of every family of
    prompts, and whatever else leaves the weights alone, against the first of every family of
    weights; consecutive members of a family (`floors`, without the headline); every condition
    against base. `certified`: pairs that get a match certificate: also every prompt against every
    adapter.

    `nulls`: the headline with a control in the place of the side that it is a control of
    (`Contrast.place`); a control of neither has none. `null_pair`: the null that the headline is
    tested against: "the two sides are farther apart than one of them from a control of the other".
    That control is neutral text where a side has a prompt that the other has not, else a random
    LoRA where a side has a LoRA that the other has not. One side is replaced and one stays. It is
    the first side, unless that has parts of both kinds and the second has not.

    `controls`: the pair that a pair is tested against: the headline against `null_pair`, and a side
    of it, against base or alone ("x", ""), against its own control, neutral before random.
    """

    families: dict[str, tuple[str, ...]]
    headline: ConditionPair | None
    pairs: tuple[ConditionPair, ...]
    certified: tuple[ConditionPair, ...]
    floors: tuple[ConditionPair, ...]
    nulls: dict[str, ConditionPair]
    null_pair: ConditionPair | None
    controls: dict[ConditionPair, ConditionPair]

    @classmethod
    def of(
        cls,
        built: Mapping[str, Condition],
        families: Mapping[str, Sequence[str]],
        compare: ConditionPair | None = None,
    ) -> Design:
        """The design of an experiment's conditions, base among them; `compare`: the headline."""
        kinds = families_of(built, families)
        first = headline_of(built, compare)
        others = [name for name in built if name != BASE]
        later = {name for members in kinds.values() for name in members[1:]}
        heads = [name for name in others if name not in later]
        nulls = _nulls(built, heads, first)
        floors = [(b, a) for members in kinds.values() for a, b in pairwise(members)]
        floors = [pair for pair in floors if set(pair) != set(first or ())]
        against_base = [(name, BASE) for name in others]
        leading = [first, *nulls.values()] if first else []
        turned = {(b, a) for a, b in leading}
        found = [*leading[:1], *_cross(built, heads), *leading, *floors, *against_base]
        pairs = [pair for pair in dict.fromkeys(found) if pair not in turned]
        wanted = _between(built, others, "prompt", "weights")
        null = _tested(built, list(nulls))
        return cls(
            families=kinds,
            headline=first,
            pairs=tuple(pairs),
            certified=tuple(p for p in dict.fromkeys([*pairs, *wanted]) if p not in turned),
            floors=tuple(floors),
            nulls=nulls,
            null_pair=nulls[null] if null else None,
            controls=_controls(built, first, nulls),
        )

    @property
    def members(self) -> tuple[str, ...]:
        """The conditions of all families, family by family."""
        return tuple(name for members in self.families.values() for name in members)

    def family(self, name: str) -> str | None:
        """The family of a condition."""
        return next((f for f, members in self.families.items() if name in members), None)


def families_of(
    built: Mapping[str, Condition], given: Mapping[str, Sequence[str]]
) -> dict[str, tuple[str, ...]]:
    """Families as given; of the other conditions, those that share a stem before a number
    (`few_shot_0`, `few_shot_1`). One member is no family."""
    placed = [name for members in given.values() for name in members]
    if unknown := [name for name in placed if name not in built or name == BASE]:
        raise ConfigError(f"families: no condition {unknown[0]!r} to be in one")
    if twice := [name for name in placed if placed.count(name) > 1]:
        raise ConfigError(f"families: {twice[0]} is in two of them")
    if alone := [family for family, members in given.items() if len(members) < 2]:
        raise ConfigError(f"families: {alone[0]} needs two conditions or more")
    found: dict[str, list[str]] = {family: list(members) for family, members in given.items()}
    for name in built:
        match = re.fullmatch(r"(.+)_\d+", name)
        if match and name not in placed and match[1] not in given:
            found.setdefault(match[1], []).append(name)
    return {family: tuple(members) for family, members in found.items() if len(members) > 1}


def headline_of(
    built: Mapping[str, Condition], compare: ConditionPair | None = None
) -> ConditionPair | None:
    """The two conditions that a study is about: `compare` as given, base as the reference.

    Else the first prompt and the first adapter or fine-tune; else the two conditions there are,
    controls and base aside; else none. Raises `ConfigError` where `compare` names no two of them.
    """
    if compare:
        a, b = compare
        if unknown := [name for name in compare if name not in built]:
            raise ConfigError(f"compare: no condition {unknown[0]!r}; there are {', '.join(built)}")
        if a == b:
            raise ConfigError(f"compare: {a!r} with itself; name two of {', '.join(built)}")
        return (b, a) if a == BASE else (a, b)
    prompts, weights = (
        [name for name, condition in built.items() if condition.role == wanted]
        for wanted in ("prompt", "weights")
    )
    if prompts and weights:
        return prompts[0], weights[0]
    others = [name for name in built if built[name].role not in ("base", "control")]
    return (others[0], others[1]) if len(others) == 2 else None


def _cross(built: Mapping[str, Condition], names: Sequence[str]) -> list[ConditionPair]:
    """What has base's weights against what has its own, but not control against control."""
    own = [name for name in names if built[name].reweights]
    return [
        (name, other)
        for name in names
        if name not in own
        for other in own
        if built[name].role != "control" or built[other].role != "control"
    ]


def _between(
    built: Mapping[str, Condition], names: Sequence[str], first: str, second: str
) -> list[ConditionPair]:
    a, b = ([n for n in names if built[n].role == wanted] for wanted in (first, second))
    return [(name, other) for name in a for other in b]


def _nulls(
    built: Mapping[str, Condition], names: Sequence[str], headline: ConditionPair | None
) -> dict[str, ConditionPair]:
    """Every control in the place of the side of the headline that it is a control of."""
    if headline is None:
        return {}
    a, b = headline
    contrast = Contrast.of(built[a], built[b])
    found: dict[str, ConditionPair] = {}
    for name in names:
        if built[name].role == "control" and name not in headline:
            place = contrast.place(built[name])
            if place is not None:
                found[name] = (name, b) if place == 0 else (a, name)
    return found


def _tested(built: Mapping[str, Condition], controls: Sequence[str]) -> str | None:
    """The control that a test is made against: neutral text, else a random LoRA."""
    for made in (Neutral, RandomLora):
        for name in controls:
            if any(isinstance(part, made) for part in simple_parts(built[name])):
                return name
    return None


def _controls(
    built: Mapping[str, Condition],
    headline: ConditionPair | None,
    nulls: Mapping[str, ConditionPair],
) -> dict[ConditionPair, ConditionPair]:
    """The pair that the headline and its sides are tested against; ("x", "") stands for the
    measures of one condition alone."""
    found: dict[ConditionPair, ConditionPair] = {}
    null = _tested(built, list(nulls))
    if headline and null:
        found[headline] = nulls[null]
    for place, side in enumerate(headline or ()):
        own = _tested(built, [name for name in nulls if nulls[name][place] == name])
        if own:
            found |= {(side, BASE): (own, BASE), (side, ""): (own, "")}
    return found
