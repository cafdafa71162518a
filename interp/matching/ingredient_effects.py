"""What the factorial shows: the strength of every cell, and what each ingredient is worth.

worth = effects(found, bench, "heldout")
worth["instruction"]["alone"].strength          # the share of the target's effect that it wins
combination_strengths(found, bench)             # a tidy table; the figure shows its column `left`
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from interp.design import BASE
from interp.matching.bench import Bench
from interp.matching.factorial import CONSTANT, Combination, Factorial
from interp.matching.ingredients import NONE, RANDOM_VECTOR, SOFT_TOKEN, STEERING_VECTOR
from interp.matching.strength import Strength

_PARTS = Combination._fields
WAYS = ("alone", "on average", "on top of all others")
_PANELS = {NONE: "text alone", STEERING_VECTOR: "+ steering vector", SOFT_TOKEN: "+ soft token"}
_BIASED, _ALONE = "+ constant bias", "no anchor"

Worth = dict[str, dict[str, Strength]]
"""By ingredient and `WAYS`: the gain in strength."""


def effects(found: Factorial, bench: Bench, group: str) -> Worth:
    """The gain of every level of a part (of demonstrations of the most) over its first one: alone;
    on average over all combinations of the others (its main effect); and on top of all others at
    their last level."""
    columns = zip(*found, strict=True)
    levels = {p: list(dict.fromkeys(column)) for p, column in zip(_PARTS, columns, strict=True)}
    ends = [Combination._make(some[i] for some in levels.values()) for i in (0, -1)]
    worth: Worth = {}
    for part, (first, *others) in levels.items():
        for level in others[-1:] if part == "shots" else others:
            every = [cell for cell in found if getattr(cell, part) == level]
            change = partial(_gain, found, bench, group, part, first, level)
            gains = [change(cells) for cells in ([ends[0]], every, [ends[1]])]
            worth[_name(part, level)] = dict(zip(WAYS, gains, strict=True))
    return worth


def _gain(
    found: Factorial,
    bench: Bench,
    group: str,
    part: str,
    first: Any,
    level: Any,
    cells: Sequence[Combination],
) -> Strength:
    """What share of the target's effect is won, on average over pairs of combinations."""
    without, given = (
        np.mean([found[cell._replace(**{part: value})][group] for cell in cells], axis=0)
        for value in (first, level)
    )
    return bench.strength(bench.kl(BASE, group) - without + given, group)


def _name(part: str, level: object) -> str:
    return {"shots": f"{level} demonstrations", "bias": f"{level} bias"}.get(part, str(level))


def combination_strengths(found: Factorial, bench: Bench) -> pd.DataFrame:
    """The strength of every combination on every group of queries."""
    rows = []
    for cell, kl in found.items():
        for group, values in kl.items():
            anchor = _ALONE if cell.anchor == NONE else cell.anchor
            point = bench.strength(values, group).point(cell.intent, anchor, str(cell.shots))
            rows.append({**point, "bias": cell.bias, "queries": group})
    return pd.DataFrame(rows).rename(columns={"panel": "intent"})


def left(table: pd.DataFrame) -> pd.DataFrame:
    """What the figure shows: texts alone, with each intent, with the bias; 1 - strength."""
    random = table["intent"] == RANDOM_VECTOR
    biased = (table["bias"] == CONSTANT) & (table["intent"] == NONE)
    panel = (
        table["intent"].map(_PANELS).mask(random, _PANELS[STEERING_VECTOR]).mask(biased, _BIASED)
    )
    series = table["series"].mask(random, RANDOM_VECTOR)
    kept = biased | (table["bias"] == NONE) & (~random | (table["series"] == _ALONE))
    shown = table.assign(panel=panel, series=series)[kept]
    ends = {"value": "value", "ci_low": "ci_high", "ci_high": "ci_low"}
    return shown.assign(**{a: 1 - shown[b] for a, b in ends.items()})


def gained(worth: Worth) -> pd.DataFrame:
    """The gains as a tidy table."""
    rows = [
        strength.point("", way, ingredient)
        for ingredient, ways in worth.items()
        for way, strength in ways.items()
    ]
    return pd.DataFrame(rows)
