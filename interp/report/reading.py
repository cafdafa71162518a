"""Tables and sentences of what `interp read` found, for the page and for a terminal.

strongest_table(of).rows[0]          # where a pair's mean difference names the task words most
rich.print(reading_table(load_run("RUN")))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interp.errors import RunError
from interp.names import Pair, pair_name
from interp.report.steered import steering_table, steering_words
from interp.report.tables import Cell, Table, estimate, listed
from interp.runs.readings import JACOBIAN_LENS, LOGIT_LENS, PATCHSCOPE, Readings, WordLens
from interp.runs.view import NotMeasured, Run
from interp.showing import number, paragraphs, visible
from interp.significance import ALPHA

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

_LAYERS = 12
"""Most layers with a row of their own."""

_LEADS = {
    LOGIT_LENS: "On",
    JACOBIAN_LENS: "Through the Jacobian lens, on",
    PATCHSCOPE: "In a patchscope, on",
}
_STRONGEST = {
    LOGIT_LENS: "The mean difference (first condition less second) where it names the task words "
    "most, of all layers and positions",
    JACOBIAN_LENS: "The same through the Jacobian lens",
    PATCHSCOPE: "Patchscope: the mean difference in the place of the last token's state of a "
    "neutral prompt, where it names the task words most",
}


def reading_section(run: Run) -> dict[str, Any] | None:
    """What the report's section shows; None without one."""
    try:
        of = run.reading
    except NotMeasured:
        return None
    return {
        "findings": [visible(line) for line in _found_words(of)],
        "notes": [visible(str(note)) for note in of.found.get("notes") or []],
        "words": ", ".join(visible(word) for word in of.words),
        "strongest": strongest_table(of),
        "acting": [visible(line) for line in _acting_words(of)],
        "patchscope": strongest_table(of, PATCHSCOPE),
        "steering": steering_table(of),
        "fitted": visible(of.fitted),
        "jacobian": strongest_table(of, JACOBIAN_LENS),
        "tokens": [
            token_table(of, group, position, lens)
            for lens in (LOGIT_LENS, JACOBIAN_LENS)
            if lens == LOGIT_LENS or of.fitted
            for group, positions in of.groups.items()
            for position in positions
        ],
        "directions": [direction_table(of, group) for group in of.groups],
    }


def strongest_table(of: Readings, lens: WordLens = LOGIT_LENS) -> Table:
    """Every pair on every group of texts: where its mean difference names the task words most, how
    much more than its control's, and what it says there."""
    rows = []
    for group in of.groups:
        for pair in of.pairs:
            found = of.strongest(pair, group, lens)
            if found is not None:
                rows.append([Cell(group), *_strongest(of, pair, group, found, lens)])
    columns = ["texts", "difference", "layer, position", "score [SD]", "p (corrected)"]
    columns += ["over its control's"] if lens.excess else []
    columns += ["median rank"] if lens.rank else []
    return Table(f"{_STRONGEST[lens]}.", [*columns, "tokens it says most"], rows)


def _strongest(
    of: Readings, pair: Pair, group: str, found: Mapping[str, Any], lens: WordLens
) -> list[Cell]:
    layer, position = int(found["layer"]), str(found["position"])
    more, rank = (
        of.row(measure, pair, group, position, layer) if measure else None
        for measure in (lens.excess, lens.rank)
    )
    p = found["p_adjusted"]
    dash = Cell("–", kind="number")
    return [
        Cell(visible(pair_name(pair))),
        Cell(f"{layer}, {position}"),
        estimate(found),
        Cell(f"{p:.2g}" if p == p else "–", kind="number"),
        *([estimate(more) if more else dash] if lens.excess else []),
        *([Cell(number(rank["value"]), kind="number") if rank else dash] if lens.rank else []),
        Cell(listed(of.said(pair, group, layer, position, lens=lens)), kind="long"),
    ]


def token_table(of: Readings, group: str, position: str, lens: WordLens = LOGIT_LENS) -> Table:
    """What the mean difference of every pair says, layer by layer."""
    pairs = list(of.pairs)
    rows = [
        [
            Cell(str(layer), kind="number"),
            *(
                Cell(listed(of.said(p, group, layer, position, lens=lens)), kind="long")
                for p in pairs
            ),
        ]
        for layer in _layers(of)
    ]
    n = of.found["n"][group]
    by = "" if lens == LOGIT_LENS else f" through the {lens.name}"
    words = f"What mean differences say{by}, {n} {group} texts, position {position}; *: a task word"
    columns = ["layer", *(visible(pair_name(pair)) for pair in pairs)]
    return Table(f"{words}.", columns, rows)


def _layers(of: Readings) -> list[int]:
    """The layers that were read, at most so many, the last one among them."""
    known = sorted({int(layer) for layer in of.tokens["layer"].dropna()})
    return known[:: -max(1, -(-len(known) // _LAYERS))][::-1]


def direction_table(of: Readings, group: str) -> Table:
    """Both ends of the leading directions of every pair's differences, where its mean names the
    task words most (without words: in the last layer)."""
    rows = []
    for pair in of.pairs:
        found = of.strongest(pair, group) or {"layer": _layers(of)[-1], "position": "last"}
        place = (pair, group, int(found["layer"]), str(found["position"]))
        for vector, own in _directions(of, *place):
            share = f"{100 * float(own['share'].iloc[0]):.0f} %"
            name = Cell(visible(pair_name(pair)))
            where = Cell(f"{found['layer']}, {found['position']}")
            rows.append([name, where, Cell(vector), Cell(share, kind="number"),
                         Cell(listed(own), kind="long")])  # fmt: skip
    words = f"Leading directions of the differences over {group} texts, about their mean"
    columns = ["difference", "layer, position", "direction", "share of variance", "tokens"]
    return Table(f"{words}.", columns, rows)


def _directions(
    of: Readings, pair: Pair, group: str, layer: int, position: str
) -> list[tuple[str, pd.DataFrame]]:
    known = of.tokens["vector"].dropna().unique()
    names = sorted(str(name) for name in known if str(name).startswith("direction "))
    found = [(n, of.said(pair, group, layer, position, n)) for n in names]
    return [(name, frame) for name, frame in found if len(frame)]


# --- sentences -----------------------------------------------------------------------------------


def reading_words(of: Readings, lens: WordLens = LOGIT_LENS) -> list[str]:
    """What the numbers say, a sentence per group of texts and side."""
    if not of.words or not of.read_by(lens):
        return []
    return [
        _sentence(of, pair, group, lens)
        for group in of.groups
        for pair in of.own
        if pair[1] == of.run.base
    ]


def _found_words(of: Readings) -> list[str]:
    """What lenses read in the vectors."""
    return [*reading_words(of), *reading_words(of, JACOBIAN_LENS)]


def _acting_words(of: Readings) -> list[str]:
    """What the vectors do: written into a neutral prompt, and added while base writes."""
    return [*reading_words(of, PATCHSCOPE), *steering_words(of)]


def _sentence(of: Readings, pair: Pair, group: str, lens: WordLens) -> str:
    found, n = of.strongest(pair, group, lens), of.found["n"][group]
    where = f"{_LEADS[lens]} {n} {group} texts the mean difference of {pair_name(pair)}"
    if found is None:
        return f"{where} says nothing: it is no more than rounding."
    tested = found["p_adjusted"] == found["p_adjusted"]
    names = not tested or found["p_adjusted"] <= ALPHA
    place = f"layer {found['layer']}, position {found['position']}"
    cell = estimate(found)
    score = f"{cell.text} SD {cell.extra}".strip()
    p = f", p = {found['p_adjusted']:.2g}" if tested else ""
    verb = (
        "names the task words" if names and found["value"] > 0 else "does not name the task words"
    )
    return (
        f"{where} {verb}: their largest score is {score} ({place}{p})"
        f"{_beside(of, pair, group, found, lens)}."
    )


def _beside(of: Readings, pair: Pair, group: str, found: Mapping[str, Any], lens: WordLens) -> str:
    """The same of every control against base; whether that of its own is surpassed, or all are
    where none has an interval."""
    place = (group, str(found["position"]), int(found["layer"]))
    rows = {
        control: of.row(lens.score, control, *place)
        for control in of.against_base
        if control not in of.own
    }
    known = {c: row["value"] for c, row in rows.items() if row and row["value"] == row["value"]}
    said = [f"{pair_name(control)}'s {number(value)}" for control, value in known.items()]
    more = of.row(lens.excess, pair, *place) if lens.excess else None
    if more is not None and more["ci_low"] == more["ci_low"]:
        over = more["ci_low"] > 0
        cell = estimate(more)
        said.append(f"{'more' if over else 'not more'} than its control's by {cell.text} "
                    f"{cell.extra}")  # fmt: skip
    elif known and not lens.excess:
        below = all(value < found["value"] for value in known.values())
        said.append("all below it" if below else "not all below it")
    return f"; there {', '.join(said)}" if said else ""


def reading_table(run: Run) -> RenderableType:
    """A row per pair and group of texts, then a line per finding; RunError where the run was not
    read."""
    from rich import box
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    try:
        of = run.reading
    except NotMeasured as error:
        raise RunError(f"{run.path} was not read: use `interp read {run.path}`") from error
    grid = Grid(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for title in ("texts", "difference", "layer,\nposition", "score [SD]", "p", "says most"):
        grid.add_column(Text(title), overflow="fold")
    for row in strongest_table(of).rows:
        texts, pair, where, score, p, *_, tokens = row
        cells = (texts.text, pair.text, where.text, f"{score.text} {score.extra}", p.text)
        grid.add_row(*map(Text, (*cells, tokens.text)))
    lines = [*_found_words(of), *_acting_words(of), *map(str, of.found.get("notes") or [])]
    return Group(grid, Text(""), *paragraphs(lines), Text(""))
