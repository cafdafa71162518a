"""What README and documentation promise of themselves."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from documentation.pages import PAGES, ROOT, named
from pydantic import BaseModel

from interp import errors
from interp.cli import COMMANDS
from interp.conditions import CONDITION_KINDS
from interp.config import FILE_ONLY, Distillation, Experiment
from interp.experiments import QUESTIONS
from interp.patching.settings import Patching
from interp.plots.gallery import RECIPES
from interp.report.comparing import COMPARED
from interp.validation.architectures import named_architectures
from recipes import handbook

DOCS = ROOT / "docs"
BEYOND_RUNS = {"scorecard", "equivalence_strength", "reachability", "head_L5H3"}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_file(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and not target.startswith("http")]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_the_russian_readme_has_the_numbers_of_the_english_pages() -> None:
    russian = (ROOT / "README.ru.md").read_text(encoding="utf-8")
    numbers = {number.replace(",", ".") for number in re.findall(r"\d+,\d+", russian)}
    pages = [
        ROOT / "README.md",
        DOCS / "findings" / "hypothesis.md",
        DOCS / "findings" / "organism.md",
    ]
    english = " ".join(page.read_text(encoding="utf-8") for page in pages)
    assert len(numbers) > 30
    assert numbers - set(re.findall(r"\d+\.\d+", english)) == set()


def test_every_figure_of_a_report_is_explained() -> None:
    headings = re.findall(r"^### (.*)$", (DOCS / "figures.md").read_text(encoding="utf-8"), re.M)
    explained = set(re.findall(r"`(\w+)`", " ".join(headings)))
    assert {*RECIPES, *COMPARED, *BEYOND_RUNS} == explained


def test_every_figure_of_the_gallery_is_shown() -> None:
    text = (DOCS / "findings" / "gallery.md").read_text(encoding="utf-8")
    drawn = {path.stem for path in (ROOT / "figures").glob("*.png")}
    assert drawn == set(re.findall(r"figures/(\w+)\.png", text))


def test_pages_count_the_architectures_of_the_table() -> None:
    counted = r"\(?(\d+)\s+architectures\s+(?:are\s+(?:tested|measured)|with)"
    texts = [page.read_text(encoding="utf-8") for page in (*PAGES, ROOT / "CHANGELOG.md")]
    said = [int(number) for text in texts for number in re.findall(counted, text)]
    assert len(said) == 4
    assert set(said) == {len(named_architectures(()))}


# --- tables that are read from the code ----------------------------------------------------------


@pytest.mark.parametrize("model", [Experiment, Distillation, Patching])
def test_the_table_of_flags_has_every_setting(model: type[BaseModel]) -> None:
    text = handbook.flags()
    for name in set(model.model_fields) - FILE_ONLY - {"run"}:
        assert f"`--{name.replace('_', '-')}`" in text


def test_the_table_of_flags_has_every_command_and_no_path_of_this_machine() -> None:
    text = handbook.flags()
    named_commands = [name for name in COMMANDS if name != "experiment"]
    for name in [*named_commands, "experiment all", *(f"experiment {one}" for one in QUESTIONS)]:
        assert f"## interp {name}\n" in text
    assert str(ROOT) not in text
    assert "| `RUN` |" in text
    assert "One of `float32`, `bfloat16`, `float16`." in text


def test_the_table_of_conditions_has_every_kind_in_words() -> None:
    lines = handbook.conditions().splitlines()[2:]
    assert [re.match(r"\| `(\w+)`", line)[1] for line in lines] == list(CONDITION_KINDS)
    assert all(len(line.split("|")[3].split()) > 3 for line in lines)


def test_places_are_filled_and_outward_links_lose_their_target() -> None:
    source = ["```{columns}\n```\n[a](../x.md) [b](../../y.md) [n](../../figures/z.csv)"]
    handbook.filled(None, "reference/run", source)
    assert "| `p_adjusted` | float64 |" in source[0]
    assert source[0].endswith("[a](../x.md) b {download}`n <../../figures/z.csv>`")


def test_the_notebooks_are_shown_cell_by_cell() -> None:
    text = handbook.notebooks()
    assert text.count("```python") >= 20
    assert [line for line in text.splitlines() if line.startswith("## ") and "map" in line]
    assert 'lab.patch(texts, source="lora", target="base")' in text


# --- errors --------------------------------------------------------------------------------------

CLASSES = {
    name
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, errors.InterpError)
} | {"NotMeasured"}


@functools.cache
def raised() -> dict[str, str]:
    """Every message that the library can raise, `…` for what differs, and a file that raises it."""
    found = {}
    for path in sorted((ROOT / "interp").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        helpers = {n.name: n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") in CLASSES):
                continue
            for message in messages(node.args[0], helpers) if node.args else ():
                if letters(message) >= 6:  # the rest passes another's line on
                    found[message] = named(path)
    return found


def messages(node: ast.expr, helpers: Mapping[str, ast.FunctionDef]) -> Iterator[str]:
    """What an expression can say; of a function of its module, what that returns."""
    match node:
        case ast.Constant(str(text)):
            yield text
        case ast.JoinedStr(values):
            yield "".join(v.value if isinstance(v, ast.Constant) else "…" for v in values)
        case ast.IfExp(body=body, orelse=orelse):
            yield from messages(body, helpers)
            yield from messages(orelse, helpers)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            for first in messages(left, helpers):
                yield from (first + rest for rest in messages(right, helpers))
        case ast.Call(func=ast.Name(name)) if name in helpers:
            for inner in ast.walk(helpers[name]):
                if isinstance(inner, ast.Return) and inner.value is not None:
                    yield from messages(inner.value, {})
        case _:
            yield "…"


def letters(message: str) -> int:
    """How many there are."""
    return len(re.sub("[^A-Za-z]", "", message))


@functools.cache
def rows() -> list[str]:
    """The messages that the page of errors explains."""
    text = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (``.*?``|`[^`]*`) \| .+ \| .+ \|$", text, re.MULTILINE)
    return [cell.strip("`").strip() for cell in cells]


def explains(row: str, message: str) -> bool:
    """Word for word, or of figures that a run cannot draw by the same beginning."""
    return row == message or (row == "this run has no …" and message.startswith(row[:-1]))


def test_every_error_has_a_cause_and_a_cure() -> None:
    missing = [
        f"{file}: {message}"
        for message, file in raised().items()
        if not any(explains(row, message) for row in rows())
    ]
    assert not missing, "docs/reference/errors.md has no row for\n" + "\n".join(missing)


def test_no_error_is_explained_that_is_never_raised() -> None:
    said = raised()
    full = [row for row in rows() if letters(row) >= 6]
    idle = [row for row in full if not any(explains(row, message) for message in said)]
    assert not idle, "docs/reference/errors.md explains what nobody raises\n" + "\n".join(idle)
    assert len(rows()) == len(set(rows()))
