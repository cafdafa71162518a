"""Every figure on a phone: panels one under another, wide enough to read, no words over words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report.browsing import Visit, drawn, visited

from interp import Experiment, diverge
from interp.config import bundled_families
from interp.plots.exporting import find_browser
from interp.report import write

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome on PATH")

WIDTH = 400
LOOK = Path(__file__).with_name("words.js").read_text("utf-8")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of the demo's run on a few of its queries, with all of its conditions."""
    few: dict[str, Any] = {"limit": 6, "bootstrap": 20, "permutations": 19}
    fields = bundled_families(tmp_path_factory.mktemp("demo") / "run")
    return write(diverge(Experiment(**fields, **few))).as_uri()


@pytest.fixture(scope="module", params=["synthetic", "demo"])
def phone(request: pytest.FixtureRequest, browser: Any, address: str) -> Iterator[Visit]:
    where = address if request.param == "synthetic" else request.getfixturevalue("demo")
    seen = visited(browser, where, viewport={"width": WIDTH, "height": 800}, has_touch=True)
    yield seen
    seen.page.context.close()


def test_every_figure_stands_on_a_phone(phone: Visit) -> None:
    page, faults, count = phone.page, [], 0
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTH
    for box in page.query_selector_all("main .drawing"):
        name = box.get_attribute("data-figure")
        drawn(page, name)
        page.wait_for_timeout(150)
        found = page.evaluate(LOOK, f"main [data-figure={name}]")
        count += len(found["panels"])
        faults += [f"{name}: panel of {wide} px" for wide in found["panels"] if wide < 200]
        faults += [f"{name}: {words}" for words in found["crossing"]]
        faults += [f"{name}: outside the page: {words}" for words in found["outside"]]
        assert found["lefts"] == 1, f"{name}: panels are not one under another"
        assert found["headings"] == found["shown"], f"{name}: a heading is not shown"
    assert faults == []
    assert count > 60
    assert phone.errors == []
