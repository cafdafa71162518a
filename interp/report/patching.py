"""Tables of what `interp patch` found; the page and the terminal only lay them out.

    by_layer(run).rows[0]        # damage, its controls and recovery at layer 0
    run.interchange              # its findings; NotMeasured where a run has none

In every table `a → b` reads: a's values in b's run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from interp.names import Head
from interp.report.tables import Cell, Table, estimate, value
from interp.runs.largest import UNTESTED
from interp.runs.patched import Patched
from interp.runs.words import SITES
from interp.showing import number, visible


def arrow(source: str, target: str) -> str:
    """A move, as it is written everywhere."""
    return visible(f"{source} → {target}")


class Column(NamedTuple):
    """What a column of the table by layer holds."""

    title: str
    measure: str
    source: str
    target: str


def columns(of: Patched) -> list[Column]:
    """Damage in both directions, what base's state and a random difference do, recovery, and damage
    over that of base's state.

    The controls are those of `a → b`.
    """
    a, b, base = of.a, of.b, of.base
    return [
        Column(f"damage [nats], {arrow(a, b)}", "damage", a, b),
        Column(f"damage [nats], {arrow(b, a)}", "damage", b, a),
        Column(f"control: {arrow(base, b)}", "damage", base, b),
        Column(f"control: random difference in {visible(b)}", "damage_random_difference", a, b),
        Column(f"recovery, {arrow(a, base)}", "recovery", a, base),
        Column(f"recovery, {arrow(b, base)}", "recovery", b, base),
        Column(f"relative damage, {arrow(a, b)}", "relative_damage", a, b),
        Column(f"relative damage, {arrow(b, a)}", "relative_damage", b, a),
    ]


def interchange_table(of: Patched) -> Table:
    """The residual stream exchanged as a whole, layer by layer."""
    wanted = columns(of)
    rows = [
        [
            Cell(str(layer), kind="number"),
            *(value(of.whole(c.measure, c.source, c.target, layer)) for c in wanted),
        ]
        for layer in of.layers
    ]
    words = "The residual stream of all tokens exchanged, layer by layer"
    n, most = of.found["n"], of.tolerance
    words += f"; n = {n} matched queries; equivalent: damage ≤ {most:g} nats"
    words += " per answer, summed over its tokens." if "segments" in of.found else "."
    return Table(words, ["layer", *(c.title for c in wanted)], rows, stacked=True)


_PARTS = {"k": "keys", "v": "values", "kv": "both"}
"""What of a context is exchanged -> what it is called."""


def contexts(of: Patched) -> Table:
    """What precedes the query, exchanged in all layers at once."""
    rows = []
    for source, target in (of.pair, of.pair[::-1]):
        for site, name in _PARTS.items():
            frames = [
                of.rows(measure, source, target, site, "context")
                for measure in ("damage", "damage_random_difference", "recovery")
            ]
            damage, control, won = (frame[frame["layer"].isna()] for frame in frames)
            if len(damage):
                cells = [value(damage), value(control), value(won)]
                rows.append([Cell(arrow(source, target)), Cell(name), *cells])
    words = "Keys and values of what precedes the query, exchanged in all layers"
    columns = ["move", "exchanged", "damage [nats]", "control: random difference", "recovery"]
    return Table(f"{words}; n = {of.found['n']} matched queries.", columns, rows)


def no_op(of: Patched) -> str:
    """The check of the instrument, in words."""
    changed = f"{of.found['no_op']:g}"
    return visible(f"Putting {of.base}'s own states back into its run changes logits by {changed}.")


def best_layers(of: Patched) -> Table:
    """The layer that was best on one half of the queries, scored on the other half."""
    rows = [
        [
            Cell(arrow(best["condition"], best["reference"])),
            Cell(str(best["layer"]), kind="number"),
            Cell(str(best["measure"])),
            estimate(best),
            Cell(str(best["n"]), kind="number"),
        ]
        for best in of.found.get("best_layers") or []
    ]
    words = "Best layer before the last, chosen on one half of the queries and scored on the other."
    return Table(words, ["move", "layer", "measure", "value", "n"], rows)


def segment_table(of: Patched) -> Table:
    """What each segment's states bring into base, at the best layer of each."""
    rows = [
        [
            Cell(arrow(best["condition"], best["reference"])),
            Cell(str(best["position"])),
            Cell(str(best["layer"]), kind="number"),
            estimate(best),
            Cell(str(best["n"]), kind="number"),
        ]
        for best in of.found.get("segments") or []
    ]
    words = "Recovery by the states of one segment, at the best layer before the last, chosen on "
    words += "one half of the queries and scored on the other."
    return Table(words, ["move", "segment", "layer", "recovery", "n"], rows)


# --- heads ---------------------------------------------------------------------------------------


def head_table(of: Patched) -> Table:
    """The strongest heads: what is lost without them, what is won by them alone."""
    named = [
        head
        for entry in of.found.get("heads") or []
        for under in entry["under"].values()
        for head in under
    ]
    wanted = [("damage", of.base, c) for c in of.pair] + [("recovery", c, of.base) for c in of.pair]
    frames = [of.rows(measure, s, t, site="z") for measure, s, t in wanted]
    rows = []
    for name in dict.fromkeys(named):
        head = Head.parse(name)
        here = [f[(f["layer"] == head.layer) & (f["head"] == head.head)] for f in frames]
        rows.append([Cell(name), *map(value, here)])
    titles = [f"lost without it [nats], {visible(c)}" for c in of.pair]
    titles += [f"won by it alone, {visible(c)}" for c in of.pair]
    words = f"The strongest heads ({UNTESTED} one by one) by what is lost and by what is won"
    return Table(f"{words} under either condition.", ["head", *titles], rows, stacked=True)


def head_overlap_table(of: Patched) -> Table:
    """Whether the same heads carry the behaviour under both conditions."""
    rows = [
        [
            Cell(str(entry["by"])),
            *(Cell(", ".join(entry["under"].get(c, [])), kind="long") for c in of.pair),
            Cell(number(entry["share"], 2), kind="number"),
            Cell(number(entry["p"], 2), kind="number"),
            Cell(number(entry["rank_correlation"], 2), kind="number"),
            Cell(number(entry["rank_p"], 2), kind="number"),
        ]
        for entry in of.found.get("heads") or []
        if entry["share"] is not None
    ]
    titles = ["ranked by", *(f"strongest under {visible(c)}" for c in of.pair)]
    titles += ["share in common", "p of the share", "rank correlation, all heads", "p of it"]
    words = f"Do the same heads carry it? p: heads permuted within their layers; heads: {UNTESTED}."
    return Table(words, titles, rows)


def greedy(of: Patched) -> Table:
    """Heads added one after the other until the behaviour is there."""
    found = of.found.get("greedy") or []
    most = max((len(entry["heads"]) for entry in found), default=0)
    rows = []
    for k in range(most):
        cells = [Cell(str(k + 1), kind="number")]
        for entry in found:
            cells += _step(entry, k)
        rows.append(cells)
    if found:
        every = [(Cell("all heads"), Cell(number(e["all_heads"]), kind="number")) for e in found]
        rows.append([Cell("", kind="number"), *(cell for two in every for cell in two)])
    titles = ["heads"]
    for entry in found:
        titles += ["added", f"recovery, {arrow(entry['source'], entry['target'])}"]
    words = "Heads patched together, chosen one by one on one half of the queries"
    goal = f"; goal: {found[0]['goal']:g} of the behaviour" if found else ""
    return Table(f"{words}, scored on the other{goal}.", titles, rows)


def _step(entry: Mapping[str, Any], k: int) -> list[Cell]:
    if k >= len(entry["heads"]):
        return [Cell(""), Cell("", kind="number")]
    here = {name: entry[name][k] for name in ("recovery", "ci_low", "ci_high")}
    return [Cell(str(entry["heads"][k])), estimate(here, "recovery")]


def function_vectors(of: Patched) -> Table:
    """The summed mean outputs of a condition's strongest heads, added to base's last token."""
    rows = []
    for entry in of.found.get("function_vectors") or []:
        frames = [
            of.rows(f"function_vector_{name}", entry["condition"], of.base, position="last")
            for name in ("recovery", "null", "random")
        ]
        known = frames[0][frames[0]["value"].notna()]
        if known.empty:
            continue
        layer = int(known.loc[known["value"].idxmax(), "layer"])
        cells = [value(frame[frame["layer"] == layer]) for frame in frames]
        heads = Cell(", ".join(entry["heads"]), kind="long")
        rows.append(
            [Cell(visible(entry["condition"])), heads, Cell(str(layer), kind="number"), *cells]
        )
    columns = ["condition", "heads", "layer of most recovery", "recovery"]
    columns += ["base's own mean outputs", "random vector of the same norm"]
    words = f"Function vectors, at the layer where they do most ({UNTESTED})."
    return Table(words, columns, rows, stacked=True)


class Agreement(NamedTuple):
    """How well a first-order estimate ranks the measured cells of a site, by move."""

    site: str
    by: str
    cells: int
    spearman: Mapping[tuple[str, str], float | None]


def agreements(of: Patched) -> list[Agreement]:
    """One per site and kind of cell, in the order of the findings."""
    found: dict[tuple[str, str], Agreement] = {}
    for entry in of.found.get("attribution") or []:
        place = (entry["site"], entry["by"])
        name = SITES.get(entry["site"], visible(entry["site"]))
        one = found.setdefault(place, Agreement(name, entry["by"], entry["cells"], {}))
        move = (entry["source"], entry["target"])
        found[place] = one._replace(spearman={**one.spearman, move: entry["spearman"]})
    return list(found.values())


def attribution_table(of: Patched) -> Table:
    """How well the first-order estimate ranks what the interchange measured."""
    found = agreements(of)
    moves = list(dict.fromkeys(move for one in found for move in one.spearman))
    rows = [
        [
            Cell(f"{one.site} by {one.by}"),
            Cell(str(one.cells), kind="number"),
            *(
                Cell(number(one.spearman[m], 2) if m in one.spearman else "–", kind="number")
                for m in moves
            ),
        ]
        for one in found
    ]
    words = "Rank correlation (Spearman) of the estimated and the measured change of the answer's"
    columns = ["site", "cells", *(arrow(*move) for move in moves)]
    return Table(f"{words} log-odds.", columns, rows, stacked=True)
