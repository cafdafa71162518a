"""The report in a real browser: offline, under its policy, with every figure drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from interp.plots.exporting import find_browser
from interp.plots.gallery import RECIPES

ABSENT = 6
"""Figures of what the synthetic run has not: answers, experts, split scores, contexts."""

sync_api = pytest.importorskip("playwright.sync_api")
BROWSER = find_browser()
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH")


@dataclass
class Visit:
    """An open page and all that it said, asked for or was refused."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def visit(folder: Path) -> Iterator[Visit]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_context(offline=True, viewport={"width": 1200, "height": 900}).new_page()
        seen = Visit(page)
        page.on("console", lambda message: seen.errors.append(message.text))
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.add_init_script(
            "window.refused = []; document.addEventListener('securitypolicyviolation',"
            " (event) => window.refused.push(event.violatedDirective));"
        )
        page.goto((folder / "report.html").as_uri())
        for box in page.query_selector_all(".drawing"):
            box.scroll_into_view_if_needed()
            name = box.get_attribute("data-figure")
            page.wait_for_selector(f"[data-figure={name}] .main-svg")
        yield seen
        browser.close()


def test_all_figures_are_drawn(visit: Visit) -> None:
    drawn = "[...document.querySelectorAll('.drawing')].filter(b => b.querySelector('.main-svg'))"
    assert visit.page.evaluate(f"{drawn}.length") == len(RECIPES) - ABSENT


def test_figures_wait_until_they_are_seen(visit: Visit) -> None:
    page = visit.page.context.new_page()
    page.goto(visit.page.url)
    page.query_selector(".drawing").scroll_into_view_if_needed()
    page.wait_for_selector(".drawing .main-svg")
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") < len(RECIPES)
    page.close()


def test_no_errors_no_violations_no_requests(visit: Visit) -> None:
    assert visit.errors == []
    assert visit.page.evaluate("window.refused") == []
    assert [url for url in visit.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert len([url for url in visit.requests if url.startswith("file:")]) == 1


def test_the_policy_refuses_other_scripts(folder: Path, visit: Visit) -> None:
    page = visit.page.context.new_page()
    page.goto((folder / "report.html").as_uri())
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.y = 1';"
        "document.head.append(s); document.body.insertAdjacentHTML('beforeend',"
        " '<img src=x onerror=\"window.y = 1\">');"
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.y") is None
    page.close()


def test_hostile_text_is_inert_and_shown(visit: Visit) -> None:
    assert visit.page.evaluate("window.x") is None
    ticks = "[...document.querySelectorAll('[data-figure=head_view] .ytick text')]"
    shown = visit.page.evaluate(f"{ticks}.map(t => t.textContent)")
    for token in ("</script><scr…", "$x$", "%{z}", "&lt;", "<b>", "␣the", "שלום", "🦜", "␀"):
        assert token in shown
    assert (
        visit.page.evaluate("document.querySelectorAll('.drawing a[href], main img').length") == 0
    )
    assert "javascript:alert(1)" in visit.page.text_content("#outside-queries")


def test_the_menu_changes_the_query_and_its_ticks(visit: Visit) -> None:
    page = visit.page
    page.evaluate(
        "(() => { const box = document.querySelector('[data-figure=head_view]');"
        " const [traces, layout, at] = box.layout.updatemenus[0].buttons[1].args;"
        " return Plotly.update(box, traces, layout, at); })()"
    )
    first = "document.querySelector('[data-figure=head_view]').layout.xaxis.ticktext.length"
    assert page.evaluate(first) == 7


def test_hover_names_tokens_literally(visit: Visit) -> None:
    page = visit.page
    page.evaluate(
        "(() => { const box = document.querySelector('[data-figure=head_view]');"
        " const [traces, layout, at] = box.layout.updatemenus[0].buttons[0].args;"
        " return Plotly.update(box, traces, layout, at).then(() => box.scrollIntoView()); })()"
    )
    x, y = page.evaluate(
        "(() => { const box = document.querySelector('[data-figure=head_view]');"
        " const {xaxis, yaxis} = box._fullLayout, at = box.getBoundingClientRect();"
        " return [at.x + xaxis._offset + xaxis.d2p(4), at.y + yaxis._offset + yaxis.d2p(8)]; })()"
    )
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    page.wait_for_selector("[data-figure=head_view] .hovertext", timeout=5000)
    hover = page.text_content("[data-figure=head_view] .hoverlayer")
    assert "to %{z}" in hover
    assert "at ␣the" in hover
