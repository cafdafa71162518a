"""What `interp ladder` found, as tables and lines: which map suffices at which layer.

ladder_section(load_run("RUN"))             # of the page; None without a ladder
rich.print(ladder_table(load_run("RUN")))   # for a terminal
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interp.errors import RunError
from interp.report.tables import Cell, Table
from interp.report.terminal import verdict_style
from interp.runs.ladder import OUTCOMES, Enough, Laddered, Receiver
from interp.runs.view import NotMeasured, Run
from interp.showing import Paragraph, number, paragraphs, visible

if TYPE_CHECKING:
    from rich.console import RenderableType

_RECEIVERS: tuple[Receiver, ...] = ("target", "source")
_SHORT = {"as it is": "no map needed", "nothing": "nothing to carry", "matched": "matched already"}


def ladder_section(run: Run) -> dict[str, Any] | None:
    """What the report's section shows; None without one."""
    try:
        of = run.ladder
    except NotMeasured:
        return None
    pair = of.pair
    other = pair is not None and set(pair) != set(run.headline or ())
    return {
        "words": [visible(str(line)) for line in of.found["words"]],
        "certificate": visible(run.verdict(pair).text) if pair else "",
        "other": other,
        "notes": [visible(str(note)) for note in of.found.get("notes") or []],
        "layers": sufficient_rungs(of),
        "segments": rungs_by_segment(of),
        "variance": variance_table(of),
    }


def _maps(of: Laddered) -> list[tuple[str, str, str, Receiver]]:
    """(source, target, kind, receiver) of every map as it was scored at all tokens."""
    return [
        (a, b, kind, into)
        for a, b, kind in of.maps
        for into in _RECEIVERS
        if of.enough(a, b, into=into)
    ]


def _heading(source: str, target: str, into: Receiver) -> str:
    run = target if into == "target" else source
    return visible(f"{source} → {target}, in {run}'s run")


def sufficient_rungs(of: Laddered) -> Table:
    """Per map and layer the lowest rung that suffices, at all tokens."""
    maps = _maps(of)
    found = {one: {e.layer: e for e in of.enough(one[0], one[1], into=one[3])} for one in maps}
    rows = [
        [Cell(str(layer), kind="number"), *(_cell(found[one].get(layer)) for one in maps)]
        for layer in of.layers
    ]
    n, group = of.found["n"][of.deciding], of.deciding
    words = (
        f"The lowest rung that suffices, and what it recovers of the KL; n = {n} {group} queries "
        f"that no map was fitted on, margin {of.margin:g} of full interchange."
    )
    columns = ["layer", *(_heading(a, b, into) for a, b, _, into in maps)]
    return Table(words, columns, rows, stacked=True)


def _cell(one: Enough | None) -> Cell:
    if one is None:
        return Cell("–")
    if one.value != one.value:
        return Cell(_SHORT.get(one.rung, OUTCOMES.get(one.rung, one.rung)))
    ends = f"[{number(one.ci_low)}, {number(one.ci_high)}]" if one.ci_low == one.ci_low else ""
    full = "" if round(one.full, 3) == 1 else f" of {number(one.full)}"
    return Cell(f"{one.rung.replace('_', ' ')}: {number(one.value)}{full}", ends)


def rungs_by_segment(of: Laddered) -> Table:
    """The same of each segment's tokens, in the target's run, as ranges of layers."""
    rows = []
    for source, target, _ in of.maps:
        for position in of.positions[1:]:
            ranges = of.ranges(source, target, position)
            if ranges:
                name = Cell(visible(f"{source} → {target}"))
                rows.append([name, Cell(position), Cell("; ".join(ranges), kind="long")])
    words = (
        "The same of maps of one segment's tokens, which alone are replaced in the target's run."
    )
    return Table(words, ["map", "segment", "what suffices"], rows)


def variance_table(of: Laddered) -> Table:
    """Per map and rung the share of the states' difference that is explained: median over layers,
    with its range."""
    rows = []
    for source, target, _ in of.maps:
        cells = [Cell(visible(f"{source} → {target}"))]
        for rung in of.rungs:
            found = of.rows("mapped_variance", source, target, rung)["value"].dropna()
            if found.empty:
                cells.append(Cell("–", kind="number"))
                continue
            ends = f"[{number(found.min(), 2)}, {number(found.max(), 2)}]"
            cells.append(Cell(number(found.median(), 2), ends, "number"))
        rows.append(cells)
    words = (
        "Share of the squared difference of the states that a map explains on the same queries, "
    )
    words += "median over layers [least, most]; below 0 a map is farther off than none."
    columns = ["map", *(rung.replace("_", " ") for rung in of.rungs)]
    return Table(words, columns, rows, stacked=True)


def ladder_table(run: Run) -> RenderableType:
    """Certificate, then a sentence for every map; RunError where the run has no ladder."""
    from rich.console import Group
    from rich.text import Text

    try:
        of = run.ladder
    except NotMeasured as error:
        raise RunError(f"{run.path} has no ladder: make one with `interp ladder {run.path}`") from (
            error
        )
    signed = run.verdict(of.pair)
    n, group = of.found["n"], of.deciding
    legend = (
        f"a → b: a's residual stream mapped to b's, in one layer, maps fitted on {n['fitted']} "
        f"queries; recovers: the part of the KL to b that goes with it, on {n[group]} {group} "
        f"queries; suffices: within {of.margin:g} of full interchange, interval included."
    )
    lines = [*map(str, of.found["words"]), *map(str, of.found.get("notes") or [])]
    return Group(
        Paragraph(signed.text, verdict_style(signed)),
        Text(""),
        *paragraphs(lines),
        Paragraph(legend, "dim"),
        Text(""),
    )
