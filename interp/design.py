"""What is compared with what: families, pairs with rows, nulls, floors, and the tests.

    design = Design.of(conditions, families={})
    design.headline                 # ("instruction_0", "lora_0")
    design.families                 # {"few_shot": ("few_shot_0", "few_shot_1"), ...}
    design.controls[headline]       # the pair it is tested against: ("neutral", "lora_0")

Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from interp.conditions import (
    Condition,
    FineTuned,
    Lora,
    Neutral,
    RandomLora,
    Untrained,
    kind,
    parts,
)
from interp.errors import ConfigError

BASE = "base"

Pair = tuple[str, str]
"""(condition, reference)."""


@dataclass(frozen=True)
class Design:
    """`families`: kinds with several members. `headline`: the pair the study is about, its first
    prompt and its first adapter or fine-tune. `pairs` have rows: every condition against base; the
    first of every family of prompts, and whatever else leaves the weights alone, against the first
    of every family of weights; consecutive members of a family (`floors`). `nulls`: every control's
    pair beside the headline. `certified`: pairs that get a match certificate: also every prompt
    against every adapter. `controls`: the pair that a pair is tested against.
    """

    families: dict[str, tuple[str, ...]]
    headline: Pair | None
    pairs: tuple[Pair, ...]
    certified: tuple[Pair, ...]
    floors: tuple[Pair, ...]
    nulls: dict[str, Pair]
    null_pair: Pair | None
    controls: dict[Pair, Pair]

    @classmethod
    def of(cls, built: Mapping[str, Condition], families: Mapping[str, Sequence[str]]) -> Design:
        """The design of an experiment's conditions, base among them."""
        kinds = families_of(built, families)
        first = _headline(built)
        others = [name for name in built if name != BASE]
        later = {name for members in kinds.values() for name in members[1:]}
        heads = [name for name in others if name not in later]
        cross = _cross(built, heads)
        floors = tuple((b, a) for members in kinds.values() for a, b in pairwise(members))
        against_base = [(name, BASE) for name in others]
        pairs = tuple(dict.fromkeys([*cross, *floors, *against_base]))
        wanted = _between(built, others, "prompt", "weights")
        nulls = _nulls(built, first)
        neutral = next((n for n in nulls if isinstance(built[n], Neutral)), None)
        return cls(
            families=kinds,
            headline=first,
            pairs=pairs,
            certified=tuple(dict.fromkeys([*pairs, *wanted])),
            floors=floors,
            nulls={name: pair for name, pair in nulls.items() if pair in pairs},
            null_pair=nulls[neutral] if neutral else None,
            controls=_controls(built, first, neutral),
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


def reweighted(condition: Condition) -> bool:
    """Whether a condition has weights of its own."""
    own = (Lora, FineTuned, RandomLora, Untrained)
    return any(isinstance(part, own) for part in parts(condition))


def _headline(built: Mapping[str, Condition]) -> Pair | None:
    prompt = next((name for name, c in built.items() if kind(c) == "prompt"), None)
    weights = next((name for name, c in built.items() if kind(c) == "weights"), None)
    return (prompt, weights) if prompt and weights else None


def _cross(built: Mapping[str, Condition], names: Sequence[str]) -> list[Pair]:
    """What has base's weights against what has its own, but not control against control."""
    own = [name for name in names if reweighted(built[name])]
    return [
        (name, other)
        for name in names
        if name not in own
        for other in own
        if kind(built[name]) != "control" or kind(built[other]) != "control"
    ]


def _between(
    built: Mapping[str, Condition], names: Sequence[str], first: str, second: str
) -> list[Pair]:
    a, b = ([n for n in names if kind(built[n]) == wanted] for wanted in (first, second))
    return [(name, other) for name in a for other in b]


def _nulls(built: Mapping[str, Condition], headline: Pair | None) -> dict[str, Pair]:
    """Every control in the place of the side of the headline that it is a control of."""
    if headline is None:
        return {}
    prompt, weights = headline
    return {
        name: (prompt, name) if reweighted(condition) else (name, weights)
        for name, condition in built.items()
        if kind(condition) == "control"
    }


def _controls(
    built: Mapping[str, Condition], headline: Pair | None, neutral: str | None
) -> dict[Pair, Pair]:
    """Prompts are tested against neutral text, adapters against random ones; ("x", "") stands for
    the measures of one condition alone."""
    if headline is None:
        return {}
    prompt, weights = headline
    random = next((n for n, c in built.items() if isinstance(c, RandomLora)), None)
    found: dict[Pair, Pair] = {}
    if neutral:
        found[headline] = (neutral, weights)
        found |= {(prompt, BASE): (neutral, BASE), (prompt, ""): (neutral, "")}
    if random:
        found |= {(weights, BASE): (random, BASE), (weights, ""): (random, "")}
    return found
