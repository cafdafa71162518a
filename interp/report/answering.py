"""The first screen: the sentences that answer the question, and what each condition says.

    answers_in_brief(run)[0].words      # "States differ most at layer 3: ..."
    says(run).rows[0]                   # a query, and the token that each condition puts first

Every sentence names the figure or section that it is read from.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from interp.names import Head, pair_name
from interp.report.tables import Cell, Table
from interp.runs.largest import UNTESTED
from interp.runs.samples import Samples
from interp.runs.view import NotMeasured, Run
from interp.showing import number, visible


class Sentence(NamedTuple):
    """What it answers, the answer, and the id of what it is read from (`""`: nothing)."""

    question: str
    words: str
    target: str


def answers_in_brief(run: Run) -> list[Sentence]:
    """Where states diverge, whether it matters, by which heads, how sure that is."""
    patched = bool(run.manifest.get("interchange"))
    found = [
        Sentence("Where?", _where(run), "figure-layers"),
        Sentence("Does it matter?", _matters(run), "patching" if patched else ""),
        Sentence("By which heads?", _heads(run), "heads"),
        Sentence("How sure?", _sure(run), "controls" if run.nulls else "provenance"),
    ]
    return [Sentence(s.question, visible(s.words), s.target) for s in found if s.words]


def _where(run: Run) -> str:
    """The layer at which the headline's residual streams differ most, its null beside it."""
    pair, null = run.headline, run.null_pair
    if pair is None:
        return "The run names no headline pair; figures compare every condition with base."
    rows = run.by_layer("relative_l2", "resid_post", pair, "last")
    top = run.largest(rows)
    if rows.empty:
        return ""
    if top.row is None:
        return f"Of the residual streams, {top.none('layer')}: no layer is named."
    row = top.row
    ends = f"{number(rows['value'].min())} to {number(rows['value'].max())} over layers"
    among = row["value"] < rows["value"].max()
    words = "Of the layers that differ from the null, states differ" if among else "States differ"
    words += (
        f" most at layer {row['layer']}: relative L2 of the residual streams of "
        f"{pair_name(pair)} is {number(row['value'])}{_interval(row)} there ({ends}; {top.p})"
    )
    beside = run.by_layer("relative_l2", "resid_post", null, "last") if null else rows.iloc[:0]
    same = beside[beside["layer"] == row["layer"]]
    if null and len(same):
        words += f". The null control {pair_name(null)}: {number(same.iloc[0]['value'])}"
    return f"{words}."


def _interval(row: dict[str, float]) -> str:
    low, high = row["ci_low"], row["ci_high"]
    return f" [{number(low)}, {number(high)}]" if low == low and high == high else ""


def _matters(run: Run) -> str:
    """The verdict of the interchange."""
    try:
        return str(run.interchange.found["verdict"])
    except NotMeasured:
        return "Not tested in this run: interp patch RUN adds it."


def _heads(run: Run, most: int = 4) -> str:
    """The heads that attend most differently, of those that differ from their null."""
    pair = run.headline
    rows = run.rows("content_js", "pattern", pair, "last", heads=True)
    if pair is None or rows.empty:
        return ""
    top = run.largest(rows)
    if top.row is None:
        return f"Of single heads' attention, {top.none('head')}."
    standing = run.standing(rows)
    named = [
        f"{Head(int(row['layer']), int(row['head']))} ({number(row['value'])} nats)"
        for row in standing.nlargest(most, "value").to_dict("records")
    ]
    if not top.tested:
        return f"Largest content JS ({UNTESTED}): {', '.join(named)}."
    share = f"{len(standing)} of {len(rows)} heads divide their attention differently"
    return f"{share} (p ≤ 0.05); largest content JS: {', '.join(named)}."


def _sure(run: Run) -> str:
    """Queries, intervals, controls, and what the certificate says of held-out queries."""
    counts = ", ".join(f"{n} {name}" for name, n in run.manifest.get("queries", {}).items())
    few = min([*run.manifest.get("queries", {}).values(), 99]) < 20
    words = f"{counts} queries; {run.interval}; seed {run.manifest.get('seed', '?')}"
    count = len(run.nulls)
    words += f"; {count} null control{'s' * (count > 1)}" if count else "; no null control"
    return f"{words}.{' So few queries say little beyond themselves.' if few else ''}"


# --- what conditions say -------------------------------------------------------------------------


def says(run: Run, conditions: Sequence[str], most: int) -> Table:
    """Tokens of the largest probability after each query, condition by condition; no rows where a
    run keeps none."""
    kept = Samples.of(run)
    names = [name for name in conditions if kept and name in kept.says]
    if kept is None or not names:
        return Table("", [])
    rows = [
        [
            Cell(visible(query.text), kind="long"),
            *([Cell(visible(query.answer))] if any(q.answer for q in kept.queries) else []),
            *(_said(kept.says[name][at]) for name in names),
        ]
        for at, query in enumerate(kept.queries[:most])
    ]
    columns = ["query", *(["answer"] if len(rows[0]) > 1 + len(names) else [])]
    words = "The token that each condition puts first, its probability, and the next ones."
    return Table(words, [*columns, *map(visible, names)], rows, stacked=True)


def _said(top: Sequence[tuple[str, float]]) -> Cell:
    (first, p), *others = top
    after = ", ".join(f"{visible(token)} {number(q, 2)}" for token, q in others[:2])
    return Cell(f"{visible(first)} {number(p, 2)}", after)


# --- what to do where outputs differ -------------------------------------------------------------


def next_steps(run: Run) -> list[tuple[str, str]]:
    """Where the certificate fails: what to do, and the command that does it (or nothing)."""
    if run.verdict().passed is not False:
        return []
    return [
        ("See which queries differ: a few of one kind can be left out.", ""),
        *_matching(run),
        (
            "Or look at what differs inside all the same: compare with the controls, and claim "
            "nothing about states that say the same.",
            "",
        ),
    ]


def _matching(run: Run) -> Iterator[tuple[str, str]]:
    config = run.manifest.get("config", {})
    model = f"--model {shlex.quote(str(config.get('model')))}" if config.get("model") else ""
    asked = f"--queries {shlex.quote(str(config.get('queries', 'QUERIES.jsonl')))}"
    files = config.get("prompt_file") or config.get("system_file") or []
    given = [files] if isinstance(files, str) else files
    flag = "--prompt-file" if config.get("prompt_file") else "--system-file"
    chat = " --chat" if config.get("chat") else ""
    prompt = f"{flag} {shlex.quote(str(given[0]))}" if given else "--prompt-file PROMPT.txt"
    between = config.get("separator", "\n")
    prompt += f" --separator {shlex.quote(between)}" if between != "\n" else ""
    yield (
        "Train a LoRA that says what the prompt makes the model say, and compare that one:",
        shlex.join(
            shlex.split(f"interp match distil {model} {prompt} {asked}{chat} --out ADAPTER")
        ),
    )
    yield "Or look for a prompt that says what the LoRA says:", "interp match invert --help"
