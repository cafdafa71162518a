"""The report in a real browser: offline, under its policy, read as a reader reads it."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from report.browsing import READY, Visit, drawn, until, visited

from interp.names import Head
from interp.plots.exporting import find_browser
from interp.plots.gallery import RECIPES
from interp.runs.samples import Samples
from interp.runs.view import load_run

ABSENT = 9
"""Figures of what the synthetic run has not: answers, experts, split scores, contexts,
subspaces, edges and a ladder."""

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome on PATH")


@pytest.fixture(scope="module")
def visit(browser: Any, address: str) -> Iterator[Visit]:
    seen = visited(browser, address)
    yield seen
    seen.page.context.close()


def test_figures_wait_until_they_are_seen_and_all_can_be(visit: Visit) -> None:
    page = visit.page
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") < len(RECIPES)
    for box in page.query_selector_all("main .drawing"):
        drawn(page, box.get_attribute("data-figure"))
    count = "[...document.querySelectorAll('main .drawing .main-svg:first-of-type')].length"
    assert page.evaluate(count) == len(RECIPES) - ABSENT + 1  # and that of the reader's choice


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


def test_a_click_on_a_cell_opens_its_head(visit: Visit, folder: Path) -> None:
    page = visit.page
    box = page.query_selector("[data-figure=heads_content_js]")
    box.scroll_into_view_if_needed()
    at = page.evaluate(
        "(() => { const box = document.querySelector('[data-figure=heads_content_js]');"
        " const {xaxis, yaxis} = box._fullLayout, at = box.getBoundingClientRect();"
        " return [at.x + xaxis._offset + xaxis.d2p(2), at.y + yaxis._offset + yaxis.d2p(3)]; })()"
    )
    page.mouse.move(*at)
    page.wait_for_selector("[data-figure=heads_content_js] .hovertext")
    page.mouse.click(*at)
    page.wait_for_selector("#onehead[open] .main-svg")
    assert page.text_content("#head-name") == "Head L3H2"
    shown = page.evaluate("document.getElementById('head-drawing').data.map(t => t.z)")
    kept = Samples.of(load_run(folder))
    assert kept is not None
    for z, name in zip(shown, kept.contexts, strict=True):
        weights = np.array(z, dtype=float)
        np.testing.assert_allclose(
            np.nan_to_num(weights), kept.pattern(Head(3, 2), name, 0), atol=1e-6
        )
    assert "content_js" in page.text_content("#head-numbers")


def test_conditions_differ_and_a_cell_says_both_tokens_and_weights(visit: Visit) -> None:
    page = visit.page
    page.select_option("#onehead [name=minus]", "base")
    until(page, "document.getElementById('head-drawing').data.length === 3")
    assert "minus=base" in page.url
    assert page.evaluate("document.getElementById('head-drawing').data[0].customdata[3][4]")[
        :2
    ] == [
        "$x$",
        "$x$",
    ]
    x, y = page.evaluate(
        "(() => { const box = document.getElementById('head-drawing');"
        " box.scrollIntoView(); const {xaxis, yaxis} = box._fullLayout;"
        " const at = box.getBoundingClientRect();"
        " return [at.x + xaxis._offset + xaxis.d2p(4), at.y + yaxis._offset + yaxis.d2p(5)]; })()"
    )
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    page.wait_for_selector("#head-drawing .hovertext")
    words = page.text_content("#head-drawing .hoverlayer")
    assert re.search(r"from &lt;.*to %\{z\}.*prompt 0\.\d+.*base 0\.\d+", words, re.S)


def test_keys_step_through_heads_and_close(visit: Visit) -> None:
    page = visit.page
    page.focus("#onehead [data-close]")
    page.keyboard.press("ArrowLeft")
    until(page, "document.getElementById('head-name').textContent === 'Head L3H1'")
    assert "#L3H1?" in page.url
    page.keyboard.press("Escape")
    page.wait_for_selector("#onehead", state="hidden")


def test_an_address_survives_a_reload(visit: Visit, address: str) -> None:
    page = visit.page
    for part in ("L1H2?query=1&minus=lora", "explore?measure=relative_l2+resid_post+layers"):
        page.goto(f"{address}#{part}")
        page.reload()
        page.wait_for_selector(READY)
        if part.startswith("L"):
            page.wait_for_selector("#onehead[open] .main-svg")
            assert page.input_value("#onehead [name=query]") == "1"
            assert page.input_value("#onehead [name=minus]") == "lora"
        else:
            page.wait_for_selector("#chart .main-svg")
            assert page.evaluate("document.getElementById('chart').data.at(-1).type") == "scatter"
    page.goto(f"{address}#layers?pair=prompt vs lora")
    until(
        page,
        "document.querySelector('[data-figure=layers]').data"
        "?.some((trace) => trace.visible === 'legendonly')",
    )


def test_a_line_is_turned_off_and_on_by_its_name(visit: Visit) -> None:
    page, box = visit.page, "[data-figure=information]"
    drawn(page, "information")
    name = page.locator(f"{box} .annotation", has_text="lora vs base").first
    group = "data.filter((trace) => trace.legendgroup === 'lora vs base')"
    off = f"document.querySelector('{box}').{group}.every((t) => t.visible === 'legendonly')"
    assert page.evaluate(off) is False
    for there in (True, False):
        name.click()
        until(page, f"({off}) === {'true' if there else 'false'}")
        faint = name.evaluate("(node) => Number(getComputedStyle(node).opacity)")
        assert (faint < 0.5) == there


def test_a_figures_numbers_are_saved_as_they_are_in_the_table(visit: Visit, folder: Path) -> None:
    page = visit.page
    figure = page.query_selector("#figure-heads_content_js")
    figure.query_selector(".tools summary").click()
    with page.expect_download() as saved:
        figure.query_selector("[data-tool=csv]").click()
    saved_rows = pd.read_csv(io.StringIO(Path(saved.value.path()).read_text("utf-8")))
    exported = pd.read_csv(folder / "figures" / "heads_content_js.csv")
    assert len(saved_rows) == len(exported) > 20
    keys = ["measure", "condition", "reference", "layer", "head"]
    table = load_run(folder).table
    table = table[(table["site"] == "pattern") & (table["queries"] == "matched")]
    both = saved_rows.merge(table[table["position"] == "last"], on=keys, suffixes=("", "_table"))
    assert len(both) == len(saved_rows)
    np.testing.assert_allclose(both["value"], both["value_table"].astype(float), rtol=1e-5)
    for kind, start in (("svg", b"<svg"), ("png", b"\x89PNG")):
        with page.expect_download() as saved:
            figure.query_selector(f"[data-tool={kind}]").click()
        assert Path(saved.value.path()).read_bytes().startswith(start)
    figure.query_selector("[data-tool=cite]").click()
    until(page, "document.getElementById('announced').textContent.includes('sha256')")
    cited = page.text_content("#announced")
    for part in ("95 % interval", "n = 64", "Seed 3", "PASS", "sha256"):
        assert part in cited
    assert cited.count("Seed 3") == 1


def test_long_tables_are_searched_and_sorted(visit: Visit) -> None:
    page = visit.page
    page.evaluate("document.querySelectorAll('details.fold').forEach(d => { d.open = true; })")
    table = page.query_selector("#table-conditions")
    table.query_selector("input[type=search]").fill("lora")
    shown = "[...document.querySelectorAll('#table-conditions tbody tr')].filter(r => !r.hidden)"
    names = page.evaluate(f"{shown}.map(r => r.textContent)")
    assert (
        0 < len(names) < page.evaluate("document.querySelectorAll('#table-conditions tr').length")
    )
    assert all("lora" in name for name in names)
    table.query_selector("input[type=search]").fill("")
    table.query_selector("th:nth-child(1) button").click()
    first = page.evaluate(f"{shown}.map(r => r.cells[0].textContent)")
    assert first == sorted(first)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert table.query_selector("th:nth-child(2)").get_attribute("aria-sort") == "ascending"
    stops = "[...document.querySelectorAll('#table-conditions .sort')].filter(b => b.tabIndex >= 0)"
    assert page.evaluate(f"{stops}.length") == 1


def test_no_button_leaves_the_page(browser: Any, address: str) -> None:
    seen = visited(browser, address)
    page, blocked = seen.page, []
    page.context.route("**/*", lambda route: (blocked.append(route.request.url), route.abort()))
    popups: list[Any] = []
    page.context.on("page", lambda opened: popups.append(opened))
    page.evaluate("location.hash = '#L1H1'")
    page.wait_for_selector("#onehead[open] .main-svg")
    dialog = page.evaluate(_CLICK_ALL, "#onehead button:not([data-close])")
    page.keyboard.press("Escape")
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for box in page.query_selector_all("main .drawing"):
        drawn(page, box.get_attribute("data-figure"))
    clicked = page.evaluate(_CLICK_ALL, "main button, .drawing [data-title], .modebar-btn")
    page.wait_for_timeout(300)
    assert dialog > 10
    assert clicked > 100
    assert page.evaluate("document.querySelectorAll('.modebar-btn').length") == 0
    assert [u for u in blocked if not u.startswith(("data:", "blob:"))] == []
    assert popups == []
    assert seen.outside() == []
    page.context.close()


_CLICK_ALL = """async (selector) => {
  const buttons = [...document.querySelectorAll(selector)];
  for (const button of buttons) { button.click(); await new Promise((go) => setTimeout(go)); }
  return buttons.length;
}"""


def test_dark_and_print(browser: Any, address: str) -> None:
    seen = visited(browser, address, color_scheme="dark")
    page = seen.page
    drawn(page, "layers")
    paper = page.evaluate("document.querySelector('[data-figure=layers]').layout.paper_bgcolor")
    assert paper == "#15191e"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 25, 30)"
    page.emulate_media(media="print", color_scheme="light")
    for hidden in ("nav", ".tools", ".pickers", ".skip"):
        assert not page.is_visible(hidden)
    assert seen.errors == []
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_has_no_serious_finding(browser: Any, address: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    seen = visited(browser, address, color_scheme=scheme)
    page = seen.page
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    if scheme == "dark":
        page.evaluate("location.hash = '#L1H1'")
        page.wait_for_selector("#onehead[open] .main-svg")
    found = axe.Axe().run(page).response["violations"]
    serious = [
        (one["id"], [node["target"] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
    page.context.close()


def test_the_keyboard_skips_to_the_content_and_stops_seldom(browser: Any, address: str) -> None:
    seen = visited(browser, address)
    page = seen.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    stops = page.evaluate(
        "[...document.querySelectorAll('a[href], button, summary, input, select, [tabindex]')]"
        ".filter(e => e.tabIndex >= 0 && e.checkVisibility()).length"
    )
    assert stops < 160  # of 84 figures and tables: the head of a table is one
    page.context.close()


def test_no_errors_no_violations_no_requests(visit: Visit) -> None:
    assert visit.errors == []
    assert visit.page.evaluate("window.refused") == []
    assert [url for url in visit.requests if not url.startswith(("file:", "data:", "blob:"))] == []


def test_the_policy_refuses_other_scripts(browser: Any, address: str) -> None:
    page = visited(browser, address).page
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.y = 1';"
        "document.head.append(s); document.body.insertAdjacentHTML('beforeend',"
        " '<img src=x onerror=\"window.y = 1\">');"
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.y") is None
    page.context.close()
