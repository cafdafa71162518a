"""Several runs in one page, on shared scales.

    write_comparison([Path("A"), Path("B")], Path("compare.html"))

The page is one offline file like a run's report; the runs stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from interp.errors import ConfigError
from interp.names import Head, pair_name
from interp.plots.several import Runs, several_heads, several_layers
from interp.report.answering import answers_in_brief
from interp.report.glossary import glossary
from interp.report.html import render
from interp.report.tables import Cell, Table, estimate
from interp.runs.files import write_atomic
from interp.runs.view import NotMeasured, load_run
from interp.showing import number, visible

COMPARED: dict[str, Callable[[Runs], go.Figure]] = {
    "several_layers": several_layers,
    "several_heads": several_heads,
    "several_head_outputs": lambda runs: several_heads(runs, "relative_l2"),
    "several_rewiring": lambda runs: several_heads(runs, "rewiring_share"),
}
"""Figures of several runs; those that none of them has rows for are left out."""


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write the page; a `ConfigError` for fewer than two runs."""
    if len(folders) < 2:
        raise ConfigError("give at least two runs: interp compare RUN_A RUN_B")
    runs = {name: load_run(folder) for name, folder in zip(_names(folders), folders, strict=True)}
    figures = {}
    for name, recipe in COMPARED.items():
        try:
            figures[name] = recipe(runs)
        except NotMeasured:
            continue
    measured = {str(m) for run in runs.values() for m in run.table["measure"].unique()}
    page = render("compare.html.j2", figures, **_words(runs), glossary=glossary(measured))
    write_atomic(out, page.encode())
    return out


def _names(folders: Sequence[Path]) -> list[str]:
    """A run's name: its folder's, with as many folders above it as tell it from the others."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return list(map(visible, names))
    raise ConfigError("one run is given twice; give each once")


def _words(runs: Runs) -> dict[str, Any]:
    return {
        "title": f"{len(runs)} runs compared",
        "summary": headlines(runs),
        "answers": {name: answers_in_brief(run) for name, run in runs.items()},
        "failed": False,
        "unmatched": [
            visible(
                f"{name}: the outputs of {pair_name(run.headline)} do not match (FAIL). What "
                "differs inside may only follow from what differs outside."
            )
            for name, run in runs.items()
            if run.headline and run.verdict().passed is False
        ],
        "cite_words": "; ".join(
            visible(f"{name}: {run.verdict().text}; {run.interval}; seed {run.manifest['seed']}")
            for name, run in runs.items()
        ),
    }


def headlines(runs: Runs) -> Table:
    """A row per run: what it compares, its certificate, where its states and its heads differ."""
    rows = []
    for name, run in runs.items():
        pair, verdict = run.headline, run.verdict()
        model = run.manifest.get("model", {})
        states = run.largest(run.by_layer("relative_l2", "resid_post", pair, "last") if pair
                             else run.table.iloc[:0])  # fmt: skip
        frame = run.rows("content_js", "pattern", pair, "last", heads=True)
        heads = run.largest(frame if pair else frame.iloc[:0])
        kind = {True: "pass", False: "fail", None: ""}[verdict.passed]
        found = [(c["queries"], number(c["mean_js"])) for c in run.certified(pair)]
        rows.append(
            [
                Cell(name),
                Cell(visible(str(model.get("name", "?"))), f"{run.n_layers} × {run.n_heads}"),
                Cell(visible(pair_name(pair)) if pair else "–"),
                Cell({"pass": "PASS", "fail": "FAIL"}.get(kind, "NOT CERTIFIED"),
                     "; ".join(f"{queries} JS {js}" for queries, js in found), kind),
                *_largest(states.row, "layer"),
                *_largest(heads.row, "head"),
                Cell(str(run.manifest.get("queries", {}).get("matched", "?")), kind="number"),
            ]
        )  # fmt: skip
    columns = ["run", "model", "pair", "match certificate", "largest relative L2", "at"]
    columns += ["largest content JS [nats]", "head", "n"]
    return Table("The headline of every run.", columns, rows, stacked=True)


def _largest(row: Any, what: str) -> list[Cell]:
    if row is None:
        return [Cell("–", kind="number"), Cell("–")]
    layer = int(row["layer"])
    place = f"layer {layer}" if what == "layer" else str(Head(layer, int(row["head"])))
    return [estimate(row), Cell(place)]
