"""The report's tables as plain rows; the page and the terminal only lay them out.

    by_layer(run).rows[0]          # [Cell("0"), Cell("0.210", "[0.180, 0.240]"), ...]

A dash stands for what was not measured, `undefined` for what has no value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from interp.names import OUTPUT, Head, Pair, pair_name
from interp.registry import MEASURES
from interp.runs.heads import HeadView
from interp.runs.largest import UNTESTED, Largest, at_least
from interp.runs.view import Run
from interp.runs.words import units
from interp.showing import number, visible
from interp.significance import ALPHA
from interp.undefined import reason

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Cell:
    """One cell: its text, an interval or remark behind it, and `pass`/`fail`/`number`/`long`;
    `link`: the address that its text leads to."""

    text: str
    extra: str = ""
    kind: str = ""
    link: str = ""


@dataclass(frozen=True)
class Table:
    """Column titles, rows of cells, and what the table shows; `stacked`: intervals below values."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]] = field(default_factory=list)
    stacked: bool = False


def condition_table(run: Run) -> Table:
    """What precedes the query or changes the weights, condition by condition."""
    right = run.table[(run.table["measure"] == "accuracy") & run.table["value"].notna()]
    answered = list(right["queries"].unique())
    grouped = any(entry.get("family") for entry in run.manifest.get("conditions", {}).values())
    rows = [
        [
            Cell(visible(name)),
            Cell(str(entry.get("kind", ""))),
            *([Cell(visible(str(entry.get("family") or "")))] if grouped else []),
            Cell(visible(str(entry.get("description", ""))), kind="long"),
            Cell(str(entry.get("n_prefix", 0)), kind="number"),
            *(_accuracy(run, name, queries) for queries in answered),
        ]
        for name, entry in run.manifest.get("conditions", {}).items()
    ]
    columns = ["condition", "kind", *(["family"] if grouped else [])]
    columns += ["what it is", "tokens before the query"]
    columns += [f"right answers, {queries}" for queries in answered]
    return Table("Conditions, in the order of every table and figure.", columns, rows)


def _accuracy(run: Run, condition: str, queries: str) -> Cell:
    """The share of queries whose answer comes first, where queries have answers."""
    rows = run.rows("accuracy", OUTPUT, (condition, None), "last", queries)
    return value(rows)


def certificate_table(run: Run) -> Table:
    """Every certificate beside its tolerance, the headline's first."""
    entries = run.manifest.get("certificates", [])
    order = run.ordered([(c["condition"], c["reference"]) for c in entries])
    ordered = sorted(entries, key=lambda c: order.index((c["condition"], c["reference"])))
    rows = [
        [
            Cell(visible(run.role((c["condition"], c["reference"])))),
            Cell(c["queries"]),
            Cell(str(c["n"]), kind="number"),
            Cell(number(c["mean_js"]), f"tolerance {c['tolerance_js']:g}", "number"),
            Cell(number(c["p95_js"]), kind="number"),
            Cell(number(c["top1_agreement"]), f"tolerance {c['tolerance_top1']:g}", "number"),
            Cell(str(len(c.get("outside", []))), kind="number"),
            Cell("PASS", kind="pass") if c["passed"] else Cell("FAIL", kind="fail"),
        ]
        for c in ordered
    ]
    columns = ["pair", "queries", "n", "mean JS [nats]", "95th percentile JS"]
    columns += ["top-1 agreement", "queries outside", "verdict"]
    return Table("Match certificates.", columns, rows)


def outside(run: Run, most: int = 20) -> Table:
    """The headline's queries outside the tolerance, largest divergence first."""
    found = [
        (c["queries"], entry) for c in run.certified(run.headline) for entry in c.get("outside", [])
    ]
    found.sort(key=lambda pair: -(pair[1]["js"] or 0.0))
    rows = [
        [
            Cell(queries),
            Cell(str(entry["query"]), kind="number"),
            Cell(number(entry["js"]), kind="number"),
            Cell(visible(entry["text"]), kind="long"),
        ]
        for queries, entry in found[:most]
    ]
    more = f"; the {most} largest of {len(found)}" if len(found) > most else ""
    words = f"Queries of the headline pair outside the tolerance{more}."
    return Table(words, ["queries", "index", "JS [nats]", "query"], rows)


def outputs(run: Run) -> Table:
    """Output measures of every pair on both sets of queries."""
    measures = ["js_divergence", "kl_divergence", "top1_agreement", "rec2ftp"]
    table = run.table
    part = table[(table["site"] == OUTPUT) & (table["position"] == "last")]
    measures = [m for m in measures if (part["measure"] == m).any()]
    known = zip(part["condition"], part["reference"], strict=True)
    rows = []
    for pair in run.ordered([(c, r) for c, r in known if isinstance(r, str)]):
        for queries in ("matched", "heldout"):
            cells = [value(run.rows(m, OUTPUT, pair, "last", queries)) for m in measures]
            if any(cell.text != "–" for cell in cells):
                name = visible(run.role(pair))
                rows.append([Cell(name), Cell(queries), *cells])
    columns = ["pair", "queries", *(_title(part, m) for m in measures)]
    return Table("Next-token outputs at the last position, with intervals.", columns, rows)


def layer_table(run: Run, position: str = "last") -> Table:
    """The headline's divergence layer by layer, its null beside it, the most divergent head of
    those that differ from the null (`head_note` says which)."""
    wanted = layer_columns(run)
    first = wanted[0][2]
    frames = [run.rows(m, site, p, position) for site, m, p in wanted]
    rows = []
    for layer, top in enumerate(_top_heads(run, position)):
        cells = [value(frame[(frame["layer"] == layer) & frame["head"].isna()]) for frame in frames]
        rows.append([Cell(str(layer), kind="number"), *cells, _top_cell(layer, top)])
    columns = ["layer", *(f"{_short(m)} {site}, {pair_name(p)}" for site, m, p in wanted)]
    columns += [f"largest content JS [nats], {pair_name(first)}"]
    words = f"Divergence by layer, position: {position}; {head_note(run, position)}."
    return Table(words, columns, rows)


def layer_columns(run: Run) -> list[tuple[str, str, Pair]]:
    """(site, measure, pair) of each column between the layer and its most divergent head."""
    pair, null = run.headline, run.null_pair
    shown = [p for p in (pair, null) if p is not None] or run.main_pairs[:2]
    wanted = [("resid_post", "relative_l2", p) for p in shown]
    wanted += [("attn_out", "relative_l2", shown[0]), ("mlp_out", "relative_l2", shown[0])]
    return [*wanted, ("resid_post", "delta_alignment", shown[0])]


def _short(measure: str) -> str:
    return {"relative_l2": "relative L2", "delta_alignment": "delta alignment"}[measure]


def _title(part: pd.DataFrame, measure: str) -> str:
    return MEASURES[measure].title + units(part[part["measure"] == measure])


def _top_heads(run: Run, position: str) -> list[Largest]:
    """The largest content JS of every layer's heads."""
    pair = layer_columns(run)[0][2]
    heads = run.rows("content_js", "pattern", pair, position)
    heads = heads[heads["head"].notna()]
    layers = range(run.n_layers)
    return [run.largest(heads[heads["layer"] == layer]) for layer in layers]


def _top_cell(layer: int, top: Largest) -> Cell:
    if top.row is None:
        return Cell("–", kind="number")
    head = Head(layer, int(top.row["head"]))
    p = f" {top.p.replace(' ', '')}" if top.tested else ""
    return Cell(number(top.row["value"]), f"{head}{p}", "number")


def head_note(run: Run, position: str = "last") -> str:
    """How the heads of `by_layer` are chosen, and why a layer has none."""
    found = _top_heads(run, position)
    if not any(top.tested for top in found):
        return f"largest content JS: {UNTESTED} (no control)"
    words = f"largest content JS: of the heads that differ from the null, p ≤ {ALPHA:g}"
    missing = [top.least for top in found if top.tested and top.row is None]
    if not missing:
        return words
    return f"{words}; –: no head of the layer does, {at_least(min(missing)).replace(' ', '')}"


def top_heads(run: Run, most: int = 10, position: str = "last") -> Table:
    """The heads whose content patterns diverge most between the headline's two sides, of those that
    differ from their null; the caption says so where none does, or none was tested."""
    pair, null = run.headline, run.null_pair
    shown = [p for p in (pair, null) if p is not None]
    frames = [run.rows("content_js", "pattern", p, position) for p in shown]
    if not frames or frames[0].empty:
        return Table("", ["head"])
    top = run.largest(frames[0])
    what = f"content JS of {pair_name(shown[0])}"
    if top.row is None:
        return Table(f"Of {what}, {top.none('head')}.", ["head"])
    rows = []
    best = run.standing(frames[0]).nlargest(most, "value")
    for row in best.to_dict("records"):
        same = [f[(f["layer"] == row["layer"]) & (f["head"] == row["head"])] for f in frames]
        p = Cell(f"{row['p_adjusted']:.2g}" if top.tested else UNTESTED, kind="number")
        head = str(Head(int(row["layer"]), int(row["head"])))
        rows.append([Cell(head, link=f"#{head}"), value(same[0]), p, *map(value, same[1:])])
    columns = ["head", f"content JS [nats], {pair_name(shown[0])}", "p (corrected)"]
    columns += [f"content JS [nats], {pair_name(p)}" for p in shown[1:]]
    of = f"that differ from their null (p ≤ {ALPHA:g})" if top.tested else f"({UNTESTED})"
    return Table(f"Heads {of} with the largest {what}.", columns, rows)


def value(frame: pd.DataFrame) -> Cell:
    """A value with its interval; a dash where the run has no such row."""
    return Cell("–", kind="number") if frame.empty else estimate(frame.iloc[0])


def estimate(row: Mapping[Any, Any] | pd.Series, name: str = "value") -> Cell:
    """A number with its interval, where it has one; None and NaN are undefined."""
    low, high = row["ci_low"], row["ci_high"]
    known = low is not None and high is not None and low == low and high == high
    if row[name] is None or row[name] != row[name]:
        why = reason(str(row["measure"]), row.get("n")) if "measure" in row else ""
        return Cell(number(None), f"({why})" if why else "", "number")
    return Cell(number(row[name]), f"[{number(low)}, {number(high)}]" if known else "", "number")


def attended_table(view: HeadView, rows: Sequence[Mapping[str, Any]]) -> Table:
    """The tokens that a head attends to most."""
    cells = [
        [
            Cell(visible(row["condition"])),
            Cell(visible(row["token"]), kind="long"),
            Cell(row["where"]),
            Cell("" if row["position"] is None else str(row["position"]), kind="number"),
            Cell(number(row["mass"]), kind="number"),
        ]
        for row in rows
    ]
    weight = "mean attention" if "mean" in view.over else "attention"
    columns = ["condition", "token", "where", "position", weight]
    words = f"What {view.head} attends to most from the last query token, {view.over}."
    return Table(words, columns, cells)


def listed(tokens: pd.DataFrame, most: int = 6) -> str:
    """Ranked tokens in order, made visible; task words are marked with a star."""
    shown = tokens.head(most).to_dict("records")
    return "  ".join(visible(str(t["token"])) + ("*" if t["task"] else "") for t in shown)
