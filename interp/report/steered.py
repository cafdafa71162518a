"""Tables of mean differences that act: written into a neutral prompt, and added while base writes.

patchscope_table(of).rows[0]
steering_table(of).rows[0]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.names import pair_name
from interp.report.reading import listed
from interp.report.tables import Cell, Table, estimate
from interp.runs.readings import PATCH_SCORE, STEERED_RANDOM, STEERED_WORDS, Readings
from interp.showing import number, visible

if TYPE_CHECKING:
    import pandas as pd

_TEXT = 60
"""Characters of a sample that are shown."""


def patchscope_table(of: Readings) -> Table:
    """Every pair on every group of texts, where the patchscope names the task words most."""
    rows = []
    for group in of.groups:
        for pair in of.pairs:
            found = of.strongest(pair, group, PATCH_SCORE)
            if found is not None:
                place = (pair, group, int(found["layer"]), str(found["position"]))
                p = Cell(f"{found['p_adjusted']:.2g}", kind="number")
                where = Cell(f"{found['layer']}, {found['position']}")
                said = listed(of.said(*place, lens="patchscope"))
                score = Cell(number(found["value"]), kind="number")
                name = Cell(visible(pair_name(pair)))
                rows.append([Cell(group), name, where, score, p, Cell(said, kind="long")])
    columns = ["texts", "difference", "layer, position", "score [SD]", "p (corrected)"]
    words = (
        "Patchscope: the mean difference in the place of the last token's state of a neutral "
        "prompt, where it names the task words most"
    )
    return Table(f"{words}.", [*columns, "tokens it adds most"], rows)


def steering_table(of: Readings) -> Table:
    """What base writes with each mean difference added, beside a random direction as long."""
    table = of.run.table
    own = table[table["measure"] == STEERED_WORDS]
    random = table[table["measure"] == STEERED_RANDOM]
    rows = []
    for row in own.to_dict("records"):
        same = random[(random["condition"] == row["condition"])
                      & (random["reference"] == row["reference"])
                      & (random["queries"] == row["queries"])]  # fmt: skip
        strength = str(row["position"]).split(" x ")[0]
        beside = same[same["position"].str.startswith(f"{strength} x ")]
        bare = row["condition"] == of.run.base
        name = "base alone" if bare else pair_name((row["condition"], row["reference"]))
        null = Cell("–", kind="number") if beside.empty else estimate(beside.iloc[0])
        cells = [Cell(str(row["queries"])), Cell(visible(name)), Cell(strength, kind="number")]
        rows.append([*cells, estimate(row), null, Cell(_sample(of, row), kind="long")])
    columns = ["difference of", "difference", "strength", "task words", "random direction"]
    words = (
        "Steered samples: base writes greedily behind unrelated texts, with the mean difference "
        "added at one layer; share of the written tokens that are task words"
    )
    return Table(f"{words}.", [*columns, "first sample"], rows)


def _sample(of: Readings, row: dict[str, object]) -> str:
    """The first text that was written so."""
    t: pd.DataFrame = of.tokens
    keep = (t["lens"] == "steered") & (t["rank"] == 1)
    for name in ("condition", "reference", "queries", "position"):
        keep &= t[name] == row[name]
    found = t[keep.fillna(False)]
    return "" if found.empty else visible(str(found.iloc[0]["token"]))[:_TEXT]
