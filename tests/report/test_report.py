"""The report: one file, vouched for, honest in its first line, text where text was given."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from command_line import on_a_terminal
from rich.console import Console

from interp.cli import main
from interp.plots import output
from interp.plots.gallery import RECIPES
from interp.report import text_table, write, write_head_view
from interp.runs.files import RunError
from interp.runs.heads import HeadView
from interp.runs.view import load_run

ABSENT = 9
"""Figures of what the synthetic run has not: answers, experts, split scores, contexts,
subspaces, edges and a ladder."""


def body(path: Path) -> str:
    """The page's markup, without its scripts and styles."""
    html = (path / "report.html").read_text(encoding="utf-8")
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.S)


def test_the_manifest_vouches_for_report_and_figures(folder: Path) -> None:
    files = load_run(folder).manifest["files"]
    assert "report.html" in files
    assert sum(name.startswith("figures/") for name in files) == 2 * (len(RECIPES) - ABSENT)


def test_size(folder: Path) -> None:
    assert (folder / "report.html").stat().st_size < 3_000_000


@pytest.mark.usefixtures("one_figure")
def test_first_line_is_the_verdict(folder: Path, make_folder: Callable[..., Path]) -> None:
    first = body(folder).split("<h1>")[1].split("<h2")[0]
    assert first.index("</h1>") < first.index('<div class="verdict pass"') < 400
    assert "PASS: outputs match." in body(folder)
    failed = make_folder(passed=False)
    write(failed)
    heading, verdict = body(failed).split('<div class="verdict fail"')
    assert "Here they do not make it say the same thing.</h1>" in heading
    assert "when they make it say the same thing" not in heading
    assert '<a href="#outside-queries">' in verdict[:1500]
    first = verdict[:400]
    assert "FAIL: OUTPUTS NOT MATCHED." in first
    assert "mean JS 0.310 &gt; 0.02 nats, top-1 0.500 &lt; 0.95, n = 64" in first


def test_nothing_is_fetched_and_hostile_text_is_escaped(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    markup = body(folder)
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:)", markup)
    assert html.count("<script") == html.count("</script>") == 7
    assert "&lt;img src=x onerror=window.x=1&gt;" in markup
    assert "<img" not in markup


def test_the_pages_figures_are_the_exported_ones(folder: Path) -> None:
    html = (folder / "report.html").read_text(encoding="utf-8")
    packed = re.search(r'id="figures">(.*?)</script>', html, re.S)
    assert packed
    data = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    for name, figure in data.items():
        exported = json.loads((folder / "figures" / f"{name}.json").read_text())
        assert figure["data"] == exported["data"]


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports with a single figure, for tests of files and order only."""
    monkeypatch.setattr("interp.report.writing.figures", lambda run: {"output": output(run)})


@pytest.mark.usefixtures("one_figure")
def test_writing_again_gives_the_same_files(make_folder: Callable[..., Path]) -> None:
    path = make_folder(n_layers=2)
    write(path)
    names = ["report.html", "manifest.json", "figures/output.json", "figures/output.csv"]
    before = [(path / name).read_bytes() for name in names]
    write(path)
    assert [(path / name).read_bytes() for name in names] == before


@pytest.mark.usefixtures("one_figure")
def test_pictures_of_an_earlier_report_do_not_stay(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_folder(n_layers=2)
    with monkeypatch.context() as patch:
        patch.setattr("interp.plots.exporting._pictures", lambda *_: ({"output.png": b"old"}, None))
        write(path, pictures=("png",))
    assert (path / "figures" / "output.png").exists()
    write(path)
    assert not (path / "figures" / "output.png").exists()
    load_run(path)


@pytest.mark.usefixtures("one_figure")
@pytest.mark.parametrize(
    ("words", "drawn"), [([], ["png"]), (["--svg"], ["png", "svg"])], ids=["png", "png and svg"]
)
def test_pictures_are_drawn_by_the_command_of_the_report_alone(
    words: list[str],
    drawn: list[str],
    make_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, asked = make_folder(n_layers=2), []

    def pictures(_: object, endings: Sequence[str]) -> tuple[dict[str, bytes], None]:
        asked.extend(endings)
        return {}, None

    monkeypatch.setattr("interp.plots.exporting._pictures", pictures)
    write(path)
    assert asked == []
    assert main(["report", str(path), *words]) == 0
    assert asked == drawn


@pytest.mark.usefixtures("one_figure")
def test_an_interrupted_report_can_be_written_again(
    make_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_folder(n_layers=2)
    write(path)
    with monkeypatch.context() as patch:
        patch.setattr("interp.report.writing.page", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(path)
    write(path)
    assert "report.html" in load_run(path).manifest["files"]


@pytest.mark.usefixtures("one_figure")
def test_a_probed_head_is_vouched_for_and_outlives_the_report(
    make_folder: Callable[..., Path],
) -> None:
    path = make_folder()
    for _ in range(2):
        table, files = write_head_view(path, HeadView.of(load_run(path)), pictures=())
        write(path)
    assert [file.name for file in files] == ["head_L1H2.csv", "head_L1H2.json"]
    assert "figures/head_L1H2.json" in load_run(path).manifest["files"]
    out = io.StringIO()
    Console(file=out, width=100).print(table)
    assert "</script><script>window.x=1</script>" in out.getvalue()


def test_a_changed_run_is_refused(make_folder: Callable[..., Path]) -> None:
    path = make_folder(n_layers=2)
    (path / "results.parquet").write_bytes(b"changed")
    with pytest.raises(RunError, match="results"):
        write(path)


@pytest.mark.parametrize("terminal", [True, False])
def test_terminal_table_fits_and_is_plain_elsewhere(folder: Path, terminal: bool) -> None:
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=terminal).print(text_table(load_run(folder)))
    text = out.getvalue()
    assert ("\x1b[" in text) == terminal
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("PASS prompt vs lora")
    assert "…" not in text
    assert sum(bool(re.match(r" +[0-3] +[0-9–]", line)) for line in lines) == 4


def test_terminal_table_of_a_run_without_headline(folder: Path) -> None:
    run = load_run(folder)
    run.manifest.update(headline=None, null_pair=None)
    out = io.StringIO()
    Console(file=out, width=100).print(text_table(run))
    assert out.getvalue().startswith("NOT CERTIFIED")


@pytest.mark.parametrize("width", [60, 120])
def test_a_commands_table_is_as_wide_as_the_terminal(
    make_folder: Callable[..., Path], width: int
) -> None:
    """A token of the table is longer than the narrow one is wide."""
    path = make_folder(n_layers=2, tokens=["a", "long token " * 8, "->"])
    lines = on_a_terminal(width, "head", str(path), "L1H2")
    table = [line for line in lines if not line.startswith(("figure:", "report:"))]
    assert 50 < max(map(len, table)) <= width
    assert (max(map(len, table)) > 80) == (width == 120)
