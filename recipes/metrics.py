"""Write the tables of measures into the documentation, from their records.

python recipes/metrics.py         # docs/reference/metrics.md
"""

from __future__ import annotations

from math import inf, log
from pathlib import Path

from interp.registry import SECTIONS, Measure

PAGE = Path(__file__).resolve().parents[1] / "docs" / "reference" / "metrics.md"
HEADINGS = ("measure", "units", "range", "definition", "source")


def table(section: str) -> str:
    """The measures of a section, a line each."""
    lines = [
        HEADINGS,
        ("---",) * len(HEADINGS),
        *(row(*item) for item in SECTIONS[section].items()),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def row(name: str, measure: Measure) -> tuple[str, ...]:
    """The cells of one measure; a bar would end a cell."""
    definition = measure.definition.replace("|", "\\|")
    return f"`{name}`", measure.units, interval(*measure.range), definition, measure.source


def interval(low: float, high: float) -> str:
    """Both ends in words, e.g. `[0, ln 2]`; an end that is not reached has a round bracket."""
    known = {-inf: "−∞", inf: "∞", log(2): "ln 2", 2**0.5: "√2"}
    ends = [known.get(end, f"{end:g}".replace("-", "−")) for end in (low, high)]
    return f"{'(' if low == -inf else '['}{ends[0]}, {ends[1]}{')' if high == inf else ']'}"


def page(text: str) -> str:
    """The page with every section's table between its marks."""
    for section in SECTIONS:
        begin, end = f"<!-- {section} -->\n", f"<!-- end of {section} -->\n"
        before, mark, rest = text.partition(begin)
        if not mark:
            raise ValueError(f"{PAGE.name} has no place for {section}: {begin.strip()}")
        text = f"{before}{begin}{table(section)}{end}{rest.partition(end)[2]}"
    return text


def main() -> None:
    """Replace what stands between the marks."""
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
