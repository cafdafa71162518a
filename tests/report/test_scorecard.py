"""The scorecard: every finding on the right side, its numbers drawn, one offline file."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report import synthetic_findings as synthetic
from report.synthetic_findings import FINDINGS
from rich.console import Console

from interp.errors import RunError
from interp.finding import Finding
from interp.plots import exporting
from interp.plots.alt import alt_text
from interp.plots.scorecard import LOOKS, decision, heading, scorecard
from interp.plots.tidy import tidy
from interp.report.scorecard import claims, provenance, scorecard_table, write_scorecard

BY_NAME = {found.name: found for found in FINDINGS}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of experiments with their scorecard."""
    folder = tmp_path_factory.mktemp("weak_points")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "find_browser", lambda: None)
        write_scorecard(folder, synthetic.write(folder), ["golden <i>zone</i> failed: why"])
    return folder


@pytest.fixture(scope="module")
def html(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def body(html: str) -> str:
    return re.sub(r"<(script|style)\b.*?</\1>", "", html, flags=re.S)


def summary(body: str) -> dict[str, list[str]]:
    """Hypothesis -> ids of the experiments that the first lines list under it."""
    lines = re.findall(r'<li class="(\w+)">(.*?)</li>', body)
    return {name: re.findall(r'href="#(\w+)"', line) for name, line in lines}


def test_the_first_lines_say_where_the_hypothesis_holds_fails_or_is_open(body: str) -> None:
    assert summary(body) == {
        "holds": ["context_distortion", "golden_zone"],
        "fails": ["generalisation", "prompt_library"],
        "undecided": ["beyond_tokens", "internal_state"],
    }


def test_every_section_has_its_verdict_number_sentence_table_and_settings(body: str) -> None:
    sections = dict(re.findall(r'<h2 id="(\w+)">(.*?)(?=<h2|</main>)', body, re.S))
    assert list(sections) == [
        *("generalisation", "beyond_tokens", "context_distortion", "internal_state"),
        *("golden_zone", "prompt_library"),
    ]
    for name, text in sections.items():
        found = BY_NAME[name]
        assert f'<div class="verdict {found.hypothesis}">' in text
        assert "supported" not in text
        shown = unescape(text)
        for words in (found.claim, found.sentence, found.number, '"seed": 0', "16 rows"):
            assert words in shown


def test_the_findings_own_figure_comes_first(body: str) -> None:
    drawn = re.findall(r'data-figure="golden_zone-(\w+)"', body)
    assert drawn == ["decision", "golden_zone", "a"]


def test_every_drawing_has_its_figure_and_every_figure_its_place(html: str, body: str) -> None:
    packed = re.search(r'id="figures">(.*?)</script>', html, re.S)[1]
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    places = re.findall(r'data-figure="([\w-]+)"', body)
    assert sorted(places) == sorted(data)
    assert len(data) == 1 + 3 * len(FINDINGS)


def test_it_is_one_offline_file_in_which_text_stays_text(html: str, body: str) -> None:
    assert not re.search(r"(?:src|href)=[\"'](?!#|data:)", body)
    assert html.count("<script") == html.count("</script>") == 3
    assert "window.x=1&lt;/script&gt;" in body
    assert "golden &lt;i&gt;zone&lt;/i&gt; failed: why" in body


def test_writing_again_gives_the_same_bytes(
    out: Path, html: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "find_browser", lambda: None)
    names = [found.name for found in FINDINGS]
    write_scorecard(out, names[::-1], ["golden <i>zone</i> failed: why"])
    assert (out / "report.html").read_text(encoding="utf-8") == html


def test_the_figures_numbers_lie_beside_it(out: Path) -> None:
    numbers = pd.read_csv(out / "figures" / "scorecard.csv").set_index("name")
    assert set(numbers.index) == set(BY_NAME)
    for name, found in BY_NAME.items():
        row, contrast = numbers.loc[name], found.contrast
        assert (row["verdict"], row["n"]) == (found.verdict, found.n)
        for column in ("value", "ci_low", "ci_high", "threshold"):
            assert row[column] == pytest.approx(getattr(contrast, column), nan_ok=True)


@pytest.mark.parametrize("found", FINDINGS, ids=lambda found: found.name)
def test_dots_lie_on_the_side_of_what_is_allowed_that_decides(found: Finding) -> None:
    figure = scorecard([found], "")
    trace, line = figure.data[0], figure.layout.shapes[0].x0
    colour, symbol, _ = LOOKS[found.hypothesis]
    assert (trace.marker.color, trace.marker.symbol) == (colour, symbol)
    ends = (trace.x[0] - trace.error_x.arrayminus[0], trace.x[0] + trace.error_x.array[0])
    assert (ends[0] > line) == (found.hypothesis == "fails")
    assert (ends[1] < line) == (found.hypothesis == "holds")


def test_all_rows_share_one_scale_that_holds_every_interval() -> None:
    figure = scorecard(FINDINGS, "")
    low, high = figure.layout.xaxis.range
    assert list(figure.layout.xaxis2.range) == [low, high]
    assert figure.layout.xaxis2.matches == "x"
    places = {trace.meta["fixed"]["name"]: trace for trace in figure.data}
    for found in FINDINGS:
        trace = places[found.name]
        if found.contrast.interval is None:
            assert np.isnan(trace.x[0])
            continue
        assert low < trace.x[0] - trace.error_x.arrayminus[0]
        assert trace.x[0] + trace.error_x.array[0] < high
    ticks = dict(zip(figure.layout.xaxis2.ticktext, figure.layout.xaxis2.tickvals, strict=True))
    assert ticks["1×"] == figure.layout.shapes[0].x0


def test_the_title_counts_and_no_row_says_no_twice() -> None:
    figure = scorecard(FINDINGS, "")
    title = figure.layout.meta["title"]
    assert "Of 6 experiments: it does in 2, falls short in 2, 2 open" in title
    shown = " ".join(note.text for note in figure.layout.annotations)
    assert "not supported" not in shown
    assert "allowed: at most 0.1" in shown
    assert "allowed: at least 0.1" in shown
    words = alt_text(figure)
    assert all(heading(found) in words for found in FINDINGS)


@pytest.mark.parametrize("found", FINDINGS, ids=lambda found: found.name)
def test_a_decision_shows_value_interval_and_threshold_in_its_own_units(found: Finding) -> None:
    figure, contrast = decision(found), found.contrast
    low, high = figure.layout.xaxis.range
    assert low < contrast.threshold < high
    assert figure.layout.shapes[0].x0 == contrast.threshold
    if contrast.interval:
        assert figure.data[0].x[0] == contrast.value
        assert low < contrast.interval[0] < contrast.interval[1] < high
        assert figure.data[0].error_x.array[0] == pytest.approx(contrast.ci_high - contrast.value)
    assert len(tidy(figure)) == 1


@pytest.mark.parametrize("findings", [FINDINGS, [FINDINGS[0]], [FINDINGS[2]]])
def test_the_figure_names_each_row_once(findings: list[Finding]) -> None:
    words = [note.text for note in scorecard(findings, "Model: tiny.").layout.annotations]
    for found in findings:
        assert sum(f"<b>{heading(found)}</b>" in text for text in words) == 1
    weak = {found.point in range(1, 6) for found in findings}
    assert ("<b>Claimed weak points of prompts</b>" in words) == (True in weak)
    assert ("<b>Where a prompt should do</b>" in words) == (False in weak)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_terminal_table_fits_and_says_it_all(width: int) -> None:
    screen = io.StringIO()
    Console(file=screen, width=width).print(scorecard_table(FINDINGS))
    text = screen.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    flat = " ".join(text.split())
    for found in FINDINGS:
        assert f"{heading(found)}: " in flat
        assert found.contrast.estimate in flat
    assert text.count("holds") == text.count("fails") == 2


def test_claims_without_a_known_interval_are_undefined_not_zero() -> None:
    rows = {row[0].text: row for row in claims(FINDINGS).rows}
    assert rows["2 Beyond tokens"][2].text == "undefined"
    assert rows["2 Beyond tokens"][4].text == "■ undecided"


def test_the_caption_names_model_target_and_seed() -> None:
    two = [FINDINGS[0], replace(FINDINGS[1], settings={"prompt_file": "/x/p.txt", "seed": 1})]
    assert provenance(two) == "Model: tiny. Target: lora_0, p.txt. 95 % intervals. Seed 0, 1."
    three = [*two, replace(FINDINGS[2], model="toy")]
    assert provenance(three).startswith("Model: tiny; toy (1 Generalisation). Target: ")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("finding.json", "{", "is damaged"),
        ("table.csv", "", "table is missing or damaged"),
        ("figures/golden_zone.json", '{"data": 1}', "figure is damaged"),
        ("figures/golden_zone.json", '{"data": []}', "figure is damaged"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, file: str, text: str, message: str) -> None:
    names = synthetic.write(tmp_path, [BY_NAME["golden_zone"]])
    (tmp_path / "golden_zone" / file).write_text(text)
    with pytest.raises(RunError, match=message) as caught:
        write_scorecard(tmp_path, names)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.skipif(exporting.find_browser() is None, reason="no Chromium or Chrome on PATH")
@pytest.mark.parametrize("width", [800, 1100])
def test_a_browser_draws_all_of_it_under_its_policy(out: Path, width: int) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    said: list[str] = []
    with sync_api.sync_playwright() as playwright:
        path = exporting.find_browser()
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        context = browser.new_context(offline=True, viewport={"width": width, "height": 900})
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((out / "report.html").as_uri())
        for box in page.query_selector_all(".drawing"):
            box.scroll_into_view_if_needed()
            name = box.get_attribute("data-figure")
            page.wait_for_selector(f"[data-figure={name}] .main-svg")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("window.x") is None
        browser.close()
    assert said == []
