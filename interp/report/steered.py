"""What base writes with a mean difference added: a table, and whether it is more than chance.

steering_table(of).rows[0]
steering_words(of)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.names import Pair, pair_name
from interp.report.tables import Cell, Table, estimate, value
from interp.runs.readings import Readings
from interp.runs.view import of_pair
from interp.showing import number, visible

if TYPE_CHECKING:
    import pandas as pd

_TEXT = 60
"""Characters of a sample that are shown."""


def steering_table(of: Readings) -> Table:
    """What base writes with each mean difference added, beside a random direction as long."""
    every = of.steered
    rows = []
    for row in every[~every["random"]].to_dict("records"):
        pair = (row["condition"], row["reference"])
        same = of_pair(every[every["random"] & (every["queries"] == row["queries"])], pair)
        name = "base alone" if pair[0] == of.run.base else pair_name(pair)
        strength = Cell(f"{row['strength']:g}", kind="number")
        cells = [Cell(str(row["queries"])), Cell(visible(name)), strength]
        null = value(same[same["strength"] == row["strength"]])
        texts = [visible(str(token)) for token in of.written(row)["token"].head(1)]
        rows.append([*cells, estimate(row), null, Cell("".join(texts)[:_TEXT], kind="long")])
    columns = ["difference of", "difference", "strength", "task words", "random direction"]
    words = (
        "Steered samples: base writes greedily behind unrelated texts, with the mean difference "
        "added at one layer; share of the written tokens that are task words"
    )
    return Table(f"{words}.", [*columns, "first sample"], rows)


def steering_words(of: Readings) -> list[str]:
    """Whether a mean difference makes base write the task words: a sentence per group of texts and
    side, at the strength where it does so most, beside the same of what says nothing."""
    base = of.run.base
    return [
        _sentence(of, pair, group)
        for group in of.groups
        for pair in of.own
        if pair[1] == base and len(_shares(of, pair, group))
    ]


def _shares(of: Readings, pair: Pair, group: str, random: bool = False) -> pd.DataFrame:
    every = of.steered
    return of_pair(every[(every["queries"] == group) & (every["random"] == random)], pair)


def _sentence(of: Readings, pair: Pair, group: str) -> str:
    own = _most(_shares(of, pair, group))
    base = str(of.run.base)
    beside = {
        "base alone": _shares(of, (base, base), group),
        "a random direction": _shares(of, pair, group, random=True),
    }
    beside |= {pair_name(p): _shares(of, p, group) for p in of.against_base if p not in of.own}
    nulls = {name: _most(frame) for name, frame in beside.items() if len(frame)}
    said = ", ".join(f"{name} {_written(row)}" for name, row in nulls.items())
    reached = [name for name, row in nulls.items() if not own["ci_low"] > row["ci_high"]]
    named = "any of these" if len(reached) == len(nulls) else " and ".join(reached)
    verdict = f"not told apart from {named}" if reached else "more than all of these"
    return (
        f"Added to base at layer {own['layer']} ({own['strength']:g} x), the mean difference of "
        f"{pair_name(pair)} on {of.found['n'][group]} {group} texts makes {_written(own)} of the "
        f"tokens written task words; {said}: {verdict}."
    )


def _most(frame: pd.DataFrame) -> pd.Series:
    """The strength with the largest share."""
    return frame.loc[frame["value"].idxmax()]


def _written(row: pd.Series) -> str:
    cell = estimate(row)
    return f"{number(row['value'])} {cell.extra}".strip()
