"""Experiments' findings as a scorecard: one offline HTML file, and a table for the terminal.

    write_scorecard(Path("runs/weak_points"), ["generalisation", "golden_zone"])
    rich.print(scorecard_table([read_finding(folder) for folder in folders]))

Reads what `conclude` left in OUT/NAME; writes OUT/report.html and OUT/figures/scorecard.*.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from interp.errors import RunError
from interp.finding import Finding, read_finding
from interp.plots import export
from interp.plots.frame import bare
from interp.plots.scorecard import LOOKS, allowed, decision, groups, heading, numbers, scorecard
from interp.report.experiments import FINDINGS_TABLE
from interp.report.html import render
from interp.report.tables import Cell, Table
from interp.runs.files import FIGURES, REPORT, write_atomic
from interp.showing import number, visible
from interp.untrusted import read_json

if TYPE_CHECKING:
    import pandas as pd
    import rich.table

NAME = "scorecard"
TARGETS = ("adapter", "fine_tuned", "prompt_file")
"""Settings that name what is emulated."""
MEANS = {
    "holds": "The hypothesis holds here",
    "fails": "The hypothesis fails here",
    "undecided": "Undecided here",
}
_ANSWERS = {"holds": "It holds at", "fails": "It fails at", "undecided": "It is undecided at"}


def write_scorecard(out: Path, names: Sequence[str], notes: Sequence[str] = ()) -> Path:
    """The scorecard of the experiments in OUT/NAME; `notes` stand above it. Returns the report."""
    found = {name: read_finding(out / name) for name in names}
    findings = [finding for some in groups(list(found.values())).values() for finding in some]
    folders = {finding.name: out / name for name, finding in found.items()}
    drawn = {NAME: scorecard(findings, provenance(findings))}
    sections = [_section(finding, folders[finding.name], drawn) for finding in findings]
    page = render(
        "scorecard.html.j2",
        drawn,
        title=f"Can a prompt emulate a LoRA? {_counted(len(findings))} on {_models(findings)}",
        summary=[
            {
                "hypothesis": hypothesis,
                "sign": LOOKS[hypothesis][2],
                "head": f"{answer}:",
                "findings": [s for s in sections if s["hypothesis"] == hypothesis],
            }
            for hypothesis, answer in _ANSWERS.items()
        ],
        notes=[visible(note) for note in notes],
        claims=claims(findings),
        findings=sections,
        failed=False,
    )
    export({NAME: drawn[NAME]}, out / FIGURES, pictures=("png",))
    write_atomic(out / REPORT, page.encode())
    return out / REPORT


def scorecard_table(findings: Sequence[Finding]) -> rich.table.Table:
    """What each finding means for the hypothesis, and the number that decides."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    colours = {"holds": "blue", "fails": "red", "undecided": "yellow"}
    title = Text(f"Can a prompt emulate a LoRA? {_models(findings)}")
    grid = Grid(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    grid.add_column("hypothesis", no_wrap=True)
    grid.add_column("experiment, and the number that decides")
    for some in groups(findings).values():
        for finding in some:
            sign = f"{LOOKS[finding.hypothesis][2]} {finding.hypothesis}"
            words = f"{heading(finding)}: {finding.contrast.what}\n{numbers(finding)}"
            style = f"bold {colours[finding.hypothesis]}"
            grid.add_row(Text(sign, style=style), Text(visible_lines(words)))
    return grid


def visible_lines(text: str) -> str:
    """The text with everything but line breaks shown."""
    return "\n".join(map(visible, text.split("\n")))


def claims(findings: Sequence[Finding]) -> Table:
    """Claim by claim: the number that decides, and what it means."""
    rows = [
        [
            Cell(visible(heading(finding))),
            Cell(visible(finding.claim), kind="long"),
            Cell(finding.contrast.estimate, allowed(finding), "number"),
            Cell(str(finding.n), kind="number"),
            Cell(f"{LOOKS[finding.hypothesis][2]} {finding.hypothesis}"),
        ]
        for finding in findings
    ]
    columns = ["experiment", "claim", "number [interval]", "n", "hypothesis here"]
    return Table("The claims, and the numbers that decide them.", columns, rows, stacked=True)


def provenance(findings: Sequence[Finding]) -> str:
    """Model, target and seed, as far as all findings share them."""
    kept = [found.settings.get(key) for found in findings for key in TARGETS]
    targets = ", ".join(sorted({visible(Path(target).name) for target in kept if target}))
    seeds = ", ".join(sorted({str(found.settings.get("seed", "?")) for found in findings}))
    parts = [f"Target: {targets}"] if targets else []
    return (
        ". ".join([f"Model: {_models(findings)}", *parts, "95 % intervals", f"Seed {seeds}"]) + "."
    )


def _counted(n: int) -> str:
    return f"{n} experiment{'s' if n > 1 else ''}"


def _models(findings: Sequence[Finding]) -> str:
    """The model of most findings, and others with what was found on them."""
    (most, _), *others = Counter(finding.model for finding in findings).most_common()
    where = {
        model: ", ".join(heading(finding) for finding in findings if finding.model == model)
        for model, _ in others
    }
    return visible("; ".join([most, *(f"{model} ({of})" for model, of in where.items())]))


def _section(finding: Finding, folder: Path, drawn: dict[str, go.Figure]) -> dict[str, Any]:
    """What the page says of one finding; its figures are added to those drawn."""
    decided = f"{folder.name}-decision"
    figures = {f"{folder.name}-{name}": fig for name, fig in _figures(finding, folder).items()}
    drawn |= {decided: decision(finding), **figures}
    return {
        "id": folder.name,
        "heading": visible(heading(finding)),
        "hypothesis": finding.hypothesis,
        "sign": LOOKS[finding.hypothesis][2],
        "head": f"{MEANS[finding.hypothesis]}.",
        "claim": visible(finding.claim),
        "sentence": visible(finding.sentence),
        "number": visible(finding.number),
        "decision": decided,
        "figures": list(figures),
        "table": _table(folder / FINDINGS_TABLE),
        "settings": json.dumps(dict(finding.settings), indent=2, ensure_ascii=False),
    }


def _figures(finding: Finding, folder: Path) -> dict[str, go.Figure]:
    """The experiment's figures, the finding's first."""
    files = sorted((folder / FIGURES).glob("*.json"), key=lambda f: (f.stem != finding.figure, f))
    try:
        found = {file.stem: go.Figure(read_json(file.read_bytes())) for file in files}
        for figure in found.values():
            bare(figure)
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise RunError(f"{folder / FIGURES}: a figure is damaged; run it again") from error
    return found


def _table(file: Path) -> Table:
    """The experiment's table, an interval beside its value."""
    import pandas as pd

    try:
        frame = pd.read_csv(file).dropna(axis=1, how="all")
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file}: the table is missing or damaged; run the experiment again"
        ) from error
    ends = [column for column in ("ci_low", "ci_high") if column in frame]
    columns = [column for column in frame if column not in ends or len(ends) < 2]
    rows = [[_cell(row, column, len(ends) == 2) for column in columns] for row in _rows(frame)]
    return Table("All numbers.", [visible(str(column)) for column in columns], rows)


def _rows(frame: pd.DataFrame) -> list[Mapping[str, Any]]:
    return frame.to_dict("records")


def _cell(row: Mapping[str, Any], column: str, known: bool) -> Cell:
    value = row[column]
    if isinstance(value, str):
        return Cell(visible(value))
    if value != value:
        return Cell("–", kind="number")
    shown = str(value) if isinstance(value, int) else number(value)
    known = known and column == "value" and row["ci_low"] == row["ci_low"]
    ends = f"[{number(row['ci_low'])}, {number(row['ci_high'])}]" if known else ""
    return Cell(shown, ends, "number")
