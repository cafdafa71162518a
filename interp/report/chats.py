"""What conditions answer, and where along a chat they diverge: tables and lines of words.

answers(run).rows[0]            # a query, and what every condition answers
lines(run)                      # ["query: relative L2 0.11 to 0.31 ...", ...]
"""

from __future__ import annotations

from interp.names import OUTPUT, pair_name
from interp.positions import SEGMENTS
from interp.registry import MEASURES
from interp.report.tables import Cell, Table, value
from interp.runs.view import Run
from interp.runs.words import units
from interp.showing import number, visible

SHOWN = 8
"""Queries whose answers a report shows."""

_WHOLE = ("sequence_kl", "answer_agreement", "own_agreement", "own_difference")


def answers(run: Run, most: int = SHOWN) -> Table:
    """The first queries of every group and what conditions write; empty where nothing was
    written."""
    written = run.answers
    names = [n for n in run.manifest["conditions"] if n in set(written["condition"])]
    source = run.manifest.get("answers", {}).get("from")
    rows = []
    for group in run.manifest.get("queries", {}):
        asked = run.queries[run.queries["queries"] == group].set_index("query")["text"]
        here = written[(written["queries"] == group) & (written["query"] < most)]
        for query, found in here.groupby("query"):
            text = dict(zip(found["condition"], found["text"], strict=True))
            cells = [Cell(visible(str(text[name])), kind="long") for name in names]
            rows.append([Cell(group), Cell(visible(str(asked[query])), kind="long"), *cells])
    forced = f"; those of {source} are forced on all conditions for the measures" if source else ""
    words = f"What every condition answers by itself, the first {most} queries of a group{forced}."
    return Table(visible(words), ["queries", "query", *map(visible, names)], rows)


def whole(run: Run) -> Table:
    """Measures of whole answers, pair by pair."""
    table = run.table
    part = table[(table["site"] == OUTPUT) & table["measure"].isin(_WHOLE)]
    measures = [m for m in _WHOLE if (part["measure"] == m).any()]
    known = zip(part["condition"], part["reference"], strict=True)
    rows = []
    for pair in run.ordered([(c, r) for c, r in known if isinstance(r, str)]):
        for group in run.manifest.get("queries", {}):
            found = [run.rows(m, OUTPUT, pair, "answer", group) for m in measures]
            if any(len(frame) for frame in found):
                name = visible(run.role(pair))
                rows.append([Cell(name), Cell(group), *map(value, found)])
    titles = [MEASURES[m].title + units(part[part["measure"] == m]) for m in measures]
    words = "Whole answers. Forced: all conditions read the same answer. Own: what each writes."
    return Table(words, ["pair", "queries", *titles], rows)


def chat_lines(run: Run) -> list[str]:
    """The headline's residual streams segment by segment, its null beside it."""
    pair, null = run.headline, run.null_pair
    if pair is None:
        return []
    found = []
    for segment in SEGMENTS:
        spans = {p: _span(run, p, segment) for p in (pair, null) if p is not None}
        if spans[pair]:
            beside = f" ({pair_name(null)}: {spans[null]})" if null and spans.get(null) else ""
            found.append(f"{segment}: resid_post relative L2 {spans[pair]} over layers{beside}")
    return [visible(line) for line in found]


def _span(run: Run, pair: tuple[str, str | None], segment: str) -> str:
    """The smallest and largest distance over layers; empty where there is none."""
    rows = run.rows("relative_l2", "resid_post", pair, segment)["value"].dropna()
    return f"{number(rows.min())} to {number(rows.max())}" if len(rows) else ""


def chat_section(run: Run) -> dict[str, Table | None] | None:
    """The report's tables of answers; None for one without rows, and where a run has neither."""
    tables = {"answers": answers(run), "whole": whole(run)}
    kept = {name: table if table.rows else None for name, table in tables.items()}
    return kept if any(kept.values()) else None
