"""Tables of what a run compares its headline with: families, controls, geometry, closing checks.

families(run).rows[0]        # the pair of families of the headline, at its largest index
nulls(run)                   # each control: what is expected of it and what was measured
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from typing import TYPE_CHECKING, NamedTuple

from interp.names import OUTPUT, Head, Pair, pair_name
from interp.plots.families import DIVERGENCE, pair_words
from interp.plots.geometry import DIMENSIONS, SIMILARITIES
from interp.registry import MEASURES
from interp.report.tables import Cell, Table, value
from interp.runs.largest import UNTESTED, Largest, at_least
from interp.runs.view import Run
from interp.runs.words import SITES
from interp.showing import number, visible

if TYPE_CHECKING:
    import pandas as pd

EXPECTED = {
    "neutral": "as long as the prompt, without its content: output and states unlike the other "
    "side's",
    "empty_system": "a chat without the template's own system message: near base where that "
    "message matters little",
    "shuffled_tokens": "the prompt's tokens without their order: unlike the other side where order "
    "matters",
    "shuffled_labels": "the same format with wrong answers: unlike the other side where the "
    "answers matter",
    "shifted": "no prompt, later positions: as without it where positions are relative",
    "random_lora": "weights moved as far, in random directions: not the other side's states",
    "logit_bias": "output pulled towards that of a side, states those of base to the bit",
    "untrained": "the same architecture, nothing learnt: farther than anything that was",
}
"""What each control is there for."""

BOUNDS = {"influence": 1e-4, "change_decomposition": 1e-5, "lens": 1e-4}
_IDENTITIES = {
    "influence": "equation of influence: the terms sum to the change of the logit",
    "change_decomposition": "change decomposition: the four terms sum to the head's change",
    "lens": "logit lens: at the last layer it is the model's own output",
}


class Peak(NamedTuple):
    """Where a pair of families is furthest apart at a site, beyond what relabelling gives."""

    pair: Pair
    site: str
    top: Largest


def peaks(run: Run, position: str = "last") -> Iterator[Peak]:
    """The largest index of every pair of families at every site, of those beyond relabelling."""
    for pair in run.family_pairs:
        for site in SITES:
            found = run.rows(DIVERGENCE, site, pair, position)
            found = found[found["value"].notna()]
            if len(found):
                yield Peak(pair, site, run.largest(found))


def family_table(run: Run, position: str = "last") -> Table:
    """Between families over within them, where it is largest beyond what relabelling gives, with
    PERMANOVA there."""
    rows = []
    for pair, site, top in peaks(run, position):
        f = run.rows("permanova_f", site, pair, position)
        rows.append(
            [
                Cell(visible(pair_words((pair[0], str(pair[1]))))),
                Cell(SITES[site]),
                *_furthest(top),
                Cell(number(smallest_p(run, pair), 2), kind="number"),
                *_pseudo_f(f, top),
            ]
        )
    columns = ["families", "site", "where it is largest", "divergence index", "p (corrected)"]
    columns += ["smallest p possible", "pseudo-F there", "p (corrected)"]
    words = "Divergence index, between families over within them (1: no further apart)"
    return Table(f"{words}, where it is largest; position: {position}.", columns, rows)


def _furthest(top: Largest) -> list[Cell]:
    """Where, index and p; where none is beyond relabelling, that."""
    if top.row is None:
        p = at_least(top.least).removeprefix("p ") if top.tested else UNTESTED
        return [Cell("none beyond relabelling"), Cell("–", kind="number"), Cell(p, kind="number")]
    row = top.row
    return [
        Cell(_place(row)),
        Cell(number(row["value"]), _interval(row), "number"),
        Cell(_p(row), kind="number"),
    ]


def _pseudo_f(rows: pd.DataFrame, top: Largest) -> list[Cell]:
    """The pseudo-F at that place, and its p."""
    if top.row is None or rows.empty:
        return [Cell("–", kind="number")] * 2
    head = _head(top.row)
    here = rows["head"].isna() if head is None else rows["head"] == head
    found = rows[(rows["layer"] == top.row["layer"]) & here.fillna(False)]
    if found.empty:
        return [Cell("–", kind="number")] * 2
    row = found.iloc[0]
    return [Cell(number(row["value"]), kind="number"), Cell(_p(row), kind="number")]


def smallest_p(run: Run, pair: Pair) -> float:
    """The least p that relabelling two families of these sizes can give: one over the number of
    ways to share out the members, in which equal families change names freely."""
    a, b = (len(run.families[str(name)]) for name in pair)
    ways = comb(a + b, a)
    return 1 / (ways // 2 if a == b else ways)


def control_lines(run: Run, position: str = "last") -> list[str]:
    """One line per pair of families for a terminal: its largest index in the residual stream, or
    that none is beyond relabelling."""
    return [
        f"{visible(pair_words((pair[0], str(pair[1]))))}: divergence index {_said_of(top)}"
        for pair, site, top in peaks(run, position)
        if site == "resid_post"
    ]


def _said_of(top: Largest) -> str:
    row = top.row
    if row is None:
        return f"of {top.none('layer', 'what relabelling gives')}"
    value = f"{number(row['value'])} {_interval(row)}".strip()
    return f"{value} at layer {row['layer']}, {top.p}"


def _place(row: pd.Series) -> str:
    head = _head(row)
    return f"layer {row['layer']}" if head is None else str(Head(int(row["layer"]), head))


def _head(row: pd.Series) -> int | None:
    import pandas as pd

    return None if pd.isna(row["head"]) else int(row["head"])


def _interval(row: pd.Series) -> str:
    low, high = row["ci_low"], row["ci_high"]
    return f"[{number(low)}, {number(high)}]" if low == low and high == high else ""


def _p(row: pd.Series) -> str:
    p = row["p_adjusted"]
    return "–" if p != p else number(p, 2)


def null_table(run: Run, position: str = "last") -> Table:
    """Each control's pair beside the headline: expectation, states at the last layer, output."""
    manifest = run.manifest
    base, pair = run.base, run.headline
    found: list[tuple[str, Pair]] = list(run.nulls.items())
    kept = [("headline", pair), *found] if pair and found else []
    rows = []
    for name, two in kept:
        alone: Pair = (name, base)
        cells = [_state(run, two, position), _said(run, two, position)]
        if name == "headline":
            cells += [Cell("", kind="number")] * 2
        else:
            cells += [_state(run, alone, position), _said(run, alone, position)]
        words = "" if name == "headline" else EXPECTED.get(name, "")
        rows.append(
            [Cell(visible(name)), Cell(words, kind="long"), Cell(visible(pair_name(two))), *cells]
        )
    last = int(manifest["model"]["n_layers"]) - 1
    columns = ["control", "expected", "pair", f"relative L2, layer {last}", "JS [nats]"]
    columns += [f"control vs base: relative L2, layer {last}", "control vs base: JS [nats]"]
    words = "What no effect looks like: the controls beside the headline"
    return Table(f"{words}; position: {position}.", columns, rows)


def _state(run: Run, pair: Pair, position: str) -> Cell:
    frame = run.rows("relative_l2", "resid_post", pair, position)
    return value(frame[frame["layer"] == run.n_layers - 1])


def _said(run: Run, pair: Pair, position: str) -> Cell:
    return value(run.rows("js_divergence", OUTPUT, pair, position))


def withheld(run: Run) -> list[str]:
    """What this model does not allow to measure, and why; what was not asked for, where that was
    said."""
    found, asked = run.manifest.get("withheld") or {}, run.manifest.get("config", {})
    lines = [visible(f"not measured: {name} ({reason})") for name, reason in found.items()]
    if asked.get("measures"):
        lines.append(f"measured alone: {visible(', '.join(asked['measures']))}")
    elif asked.get("preset", "full") != "full":
        lines.append(f"not asked for: {visible(', '.join(run.manifest['unasked']))}")
    return lines


def checks(run: Run) -> Table:
    """Identities that must close, and how closely they did."""
    rows = []
    for name, error in (run.manifest.get("checks") or {}).items():
        bound = BOUNDS.get(name)
        kind = "" if bound is None else "pass" if error is not None and error <= bound else "fail"
        cells = [Cell(visible(_IDENTITIES.get(name, name))), Cell(number(error, 2), kind="number")]
        cells.append(Cell("–" if bound is None else f"{bound:g}", kind="number"))
        rows.append([*cells, Cell({"pass": "PASS", "fail": "FAIL"}.get(kind, "–"), kind=kind)])
    columns = ["identity", "largest relative error", "bound in float32", "verdict"]
    return Table("Identities that must hold, over all conditions and queries.", columns, rows)


def geometry(run: Run, position: str = "last") -> Table:
    """Similarity of the headline's point clouds by layer beside null and chance, and dimension."""
    pair, null = run.headline, run.null_pair
    wanted: list[tuple[str, Pair, str]] = []
    if pair is not None:
        for measure in SIMILARITIES:
            both = [p for p in (pair, null) if p is not None]
            wanted += [(measure, p, f"{MEASURES[measure].title}, {pair_name(p)}") for p in both]
            wanted.append((f"{measure}_chance", pair, f"{MEASURES[measure].title}, chance"))
        sides: list[Pair] = [(str(side), None) for side in pair]
        wanted += [
            (DIMENSIONS[0], s, f"{MEASURES[DIMENSIONS[0]].title} dimension, {s[0]}") for s in sides
        ]
    frames = [
        (title, run.rows(measure, "resid_post", two, position)) for measure, two, title in wanted
    ]
    frames = [(title, frame) for title, frame in frames if len(frame)]
    rows = [
        [
            Cell(str(layer), kind="number"),
            *(value(frame[frame["layer"] == layer]) for _, frame in frames),
        ]
        for layer in range(run.n_layers)
        if frames
    ]
    words = "Shape of the queries' states in the residual stream by layer; chance: permuted"
    columns = ["layer", *(visible(title) for title, _ in frames)]
    return Table(f"{words}; position: {position}.", columns, rows)
