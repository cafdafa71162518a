"""Tables of what happens without some parts of a LoRA: what the output needs, and what it does not.

ablation(of).rows[0]         # the needed part whose absence does most damage
by_products(of)              # much internal change hangs on these, and little of the output
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from interp.report.tables import Cell, Table, estimate
from interp.runs.parts import NEEDED, TELLING, by_product, needed
from interp.runs.patched import Patched
from interp.showing import visible

KINDS = ("layer", "module", "direction")
_PARTS = ("ablation_damage", "ablation_kept", "ablation_change")


class Part(NamedTuple):
    """A part of a condition's LoRA, and its row of every measure of `PARTS`."""

    condition: str
    site: str
    layer: int | None
    position: str
    rows: Mapping[str, Mapping[Any, Any]]

    @property
    def name(self) -> str:
        """`layer 3`, `model.layers.3.self_attn.q_proj, direction 0`, ..."""
        where = f"layer {self.layer}" if self.site == "block" else self.site
        if self.position == "off":
            return visible(where)
        return visible(f"{where}, {self.position}")

    @property
    def kind(self) -> str:
        """`layer`, `module` or `direction`."""
        return (
            "layer" if self.site == "block" else "module" if self.position == "off" else "direction"
        )

    def number(self, measure: str) -> float:
        """The value of a measure; NaN where there is none."""
        return float(self.rows[measure]["value"]) if measure in self.rows else float("nan")

    @property
    def needed(self) -> bool:
        """Whether the output needs it."""
        return bool(needed(self.number("ablation_kept")))

    def cells(self, *measures: str) -> list[Cell]:
        """Measures with their intervals; a dash for what was not measured."""
        rows = map(self.rows.get, measures)
        return [estimate(row) if row else Cell("–", kind="number") for row in rows]


def parts(of: Patched) -> list[Part]:
    """Every part that was switched off alone (not: kept alone), most damage first."""
    found = [part for part in _all(of) if part.position.startswith(("off", "direction "))]
    return sorted(found, key=lambda part: -_or_least(part.number("ablation_damage")))


def _all(of: Patched) -> list[Part]:
    table = of.run.table
    found: dict[tuple[Any, ...], dict[str, Mapping[Any, Any]]] = {}
    for row in table[table["measure"].isin(_PARTS)].to_dict("records"):
        layer = None if row["layer"] != row["layer"] else row["layer"]
        place = (row["condition"], row["site"], layer, row["position"])
        found.setdefault(place, {})[row["measure"]] = row
    return [Part._make((*place, rows)) for place, rows in found.items()]


def _or_least(x: float) -> float:
    return float("-inf") if x != x else x


BOUND = f"{100 * NEEDED:g} % of the LoRA's whole effect"
"""What the absence of a needed part costs more than, and that of a by-product at most."""


def ablation_table(of: Patched, most: int = 15) -> Table:
    """The parts of the LoRA that the output needs; none of them is among `by_products`."""
    every = parts(of)
    found = [part for part in every if part.needed]
    words = f"Parts that the output needs: switched off alone, each costs more than {BOUND}"
    return _parts(
        of,
        f"{words}; {len(found)} of {len(every)} do{_cut(len(found), most, 'damage')}.",
        found[:most],
    )


def strongest(of: Patched, condition: str) -> Table:
    """The layer, the module and the direction of a condition whose absence does most damage, where
    it is needed."""
    own = [part for part in parts(of) if part.condition == condition and part.needed]
    first = {part.kind: part for part in reversed(own)}
    found = [first[kind] for kind in KINDS if kind in first]
    return _parts(of, "The strongest layer, module and direction.", found)


def spare_kinds(of: Patched, condition: str) -> list[str]:
    """The kinds of parts of which no single one is needed."""
    own = [part for part in parts(of) if part.condition == condition]
    required = {part.kind for part in own if part.needed}
    measured = {
        part.kind for part in own if part.number("ablation_kept") == part.number("ablation_kept")
    }
    return [kind for kind in KINDS if kind in measured - required]


def by_products(of: Patched, most: int = 10) -> Table:
    """Parts on which much of the internal change hangs and little of the output."""
    found = [
        part
        for part in parts(of)
        if by_product(part.number("ablation_kept"), part.number("ablation_change"))
    ]
    found.sort(key=lambda part: -part.number("ablation_change"))
    words = f"By-products: damage ≤ {BOUND}, change ≥ {TELLING:g}"
    return _parts(of, f"{words}{_cut(len(found), most, 'change')}.", found[:most])


def few_directions(of: Patched) -> Table:
    """Only the largest directions of every module kept: how many does the behaviour need?"""
    rows = [
        [
            Cell(visible(part.condition)),
            Cell(part.position.removeprefix("first "), kind="number"),
            *part.cells(*_PARTS[:2]),
        ]
        for part in _all(of)
        if part.site == "every"
    ]
    words = "Only the k largest directions of every module's update kept."
    return Table(words, ["condition", "k", "damage [nats]", "effect kept"], rows)


def _parts(of: Patched, words: str, found: Iterable[Part]) -> Table:
    rows = [
        [
            Cell(visible(part.condition)),
            Cell(part.name, kind="long"),
            *part.cells(*_PARTS),
        ]
        for part in found
    ]
    columns = ["condition", "part off", "damage [nats]", "effect kept", "internal change lost"]
    return Table(words, columns, rows)


def _cut(n: int, most: int, by: str) -> str:
    return f"; the {most} of {n} with most {by}" if n > most else ""
