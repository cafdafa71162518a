"""Tables and sentences of what `interp read` found, for the page and for a terminal.

strongest_table(of).rows[0]          # where a pair's mean difference names the task words most
rich.print(reading_table(load_run("RUN")))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from interp.errors import RunError
from interp.names import Pair, pair_name
from interp.report.tables import Cell, Table, estimate
from interp.runs.readings import WORD_EXCESS, WORD_RANK, WORD_SCORE, Readings
from interp.runs.view import NotMeasured, Run
from interp.showing import number, paragraphs, visible
from interp.significance import ALPHA

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

_LAYERS, _TOKENS = 12, 6
"""Most layers with a row of their own, and most tokens in a cell."""


def reading_section(run: Run) -> dict[str, Any] | None:
    """What the report's section shows; None without one."""
    try:
        of = run.reading
    except NotMeasured:
        return None
    return {
        "findings": [visible(line) for line in reading_words(of)],
        "notes": [visible(str(note)) for note in of.found.get("notes") or []],
        "words": ", ".join(visible(word) for word in of.words),
        "strongest": strongest_table(of),
        "tokens": [
            token_table(of, group, position)
            for group, positions in of.groups.items()
            for position in positions
        ],
        "directions": [direction_table(of, group) for group in of.groups],
    }


def strongest_table(of: Readings) -> Table:
    """Every pair on every group of texts: where its mean difference names the task words most, how
    much more than its control's, and what it says there."""
    rows = []
    for group in of.groups:
        for pair in of.pairs:
            found = of.strongest(pair, group)
            if found is not None:
                rows.append([Cell(group), *_strongest(of, pair, group, found)])
    columns = ["texts", "difference", "layer, position", "score [SD]", "p (corrected)"]
    columns += ["over its control's", "median rank", "tokens it says most"]
    words = (
        "The mean difference (first condition less second) where it names the task words most, of "
        "all layers and positions"
    )
    return Table(f"{words}.", columns, rows)


def _strongest(of: Readings, pair: Pair, group: str, found: Mapping[str, Any]) -> list[Cell]:
    place = (pair, group, str(found["position"]), int(found["layer"]))
    more, rank = (of.row(measure, *place) for measure in (WORD_EXCESS, WORD_RANK))
    p = found["p_adjusted"]
    return [
        Cell(visible(pair_name(pair))),
        Cell(f"{found['layer']}, {found['position']}"),
        estimate(found),
        Cell(f"{p:.2g}" if p == p else "–", kind="number"),
        estimate(more) if more else Cell("–", kind="number"),
        Cell(number(rank["value"]) if rank else "–", kind="number"),
        Cell(listed(of.said(pair, group, place[3], place[2])), kind="long"),
    ]


def listed(tokens: pd.DataFrame, most: int = _TOKENS) -> str:
    """Tokens in order, made visible; task words are marked with a star."""
    shown = tokens.head(most).to_dict("records")
    return "  ".join(visible(str(t["token"])) + ("*" if t["task"] else "") for t in shown)


def token_table(of: Readings, group: str, position: str) -> Table:
    """What the mean difference of every pair says, layer by layer."""
    pairs = list(of.pairs)
    rows = [
        [
            Cell(str(layer), kind="number"),
            *(Cell(listed(of.said(p, group, layer, position)), kind="long") for p in pairs),
        ]
        for layer in _layers(of)
    ]
    n = of.found["n"][group]
    words = f"What mean differences say, {n} {group} texts, position {position}; *: a task word"
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


def reading_words(of: Readings) -> list[str]:
    """What the numbers say, a sentence per group of texts and side."""
    if not of.words:
        return []
    return [
        _sentence(of, pair, group)
        for group in of.groups
        for pair in of.own
        if pair[1] == of.run.base
    ]


def _sentence(of: Readings, pair: Pair, group: str) -> str:
    found = of.strongest(pair, group)
    where = f"On {of.found['n'][group]} {group} texts the mean difference of {pair_name(pair)}"
    if found is None:
        return f"{where} says nothing: it is no more than rounding."
    tested = found["p_adjusted"] == found["p_adjusted"]
    names = not tested or found["p_adjusted"] <= ALPHA
    place = f"layer {found['layer']}, position {found['position']}"
    score = estimate(found)
    p = f", p = {found['p_adjusted']:.2g}" if tested else ""
    verb = (
        "names the task words" if names and found["value"] > 0 else "does not name the task words"
    )
    return (
        f"{where} {verb}: their largest score is {score.text} SD {score.extra} ({place}{p})"
        f"{_beside(of, pair, group, found)}."
    )


def _beside(of: Readings, pair: Pair, group: str, found: Mapping[str, Any]) -> str:
    """The same of every control against base, and whether the first one's is surpassed."""
    place = (group, str(found["position"]), int(found["layer"]))
    said = []
    for control in of.against_base:
        row = None if control in of.own else of.row(WORD_SCORE, control, *place)
        if row is not None:
            said.append(f"{pair_name(control)}'s {number(row['value'])}")
    more = of.row(WORD_EXCESS, pair, *place)
    if more is not None and more["ci_low"] == more["ci_low"]:
        over = more["ci_low"] > 0
        cell = estimate(more)
        said.append(f"{'more' if over else 'not more'} than its control's by {cell.text} "
                    f"{cell.extra}")  # fmt: skip
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
        texts, pair, where, score, p, _, _, tokens = row
        cells = (texts.text, pair.text, where.text, f"{score.text} {score.extra}", p.text)
        grid.add_row(*map(Text, (*cells, tokens.text)))
    lines = [*reading_words(of), *map(str, of.found.get("notes") or [])]
    return Group(grid, Text(""), *paragraphs(lines), Text(""))
