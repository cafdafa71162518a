"""A layer or head under the pointer is marked in the other figures, and nothing is laid out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from report.browsing import Visit, drawn, until, visited

from interp.plots.exporting import find_browser

pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium or Chrome on PATH")

LINES, MAP, OTHER = "layers", "heads_content_js", "heads_relative_l2"


@pytest.fixture(scope="module")
def visit(browser: Any, address: str) -> Iterator[Visit]:
    """A screen so high that lines by layer and maps of heads are on it together."""
    seen = visited(browser, address, viewport={"width": 1200, "height": 9000})
    for name in (LINES, MAP, OTHER):
        drawn(seen.page, name)
    seen.page.evaluate("document.getElementById('figure-layers').scrollIntoView()")
    yield seen
    seen.page.context.close()


def place(visit: Visit, name: str, panel: int, x: float, y: float) -> tuple[float, float]:
    """Where on the screen a panel shows a point of its axes, from its frame and its range."""
    frame, ends = visit.page.evaluate(
        "([name, panel]) => { const box = document.querySelector(`[data-figure=${name}]`);"
        " const end = panel ? String(panel + 1) : '';"
        " const area = box.querySelector(`.x${end}y${end} > .nsewdrag`) "
        " ?? box.querySelectorAll('.nsewdrag')[panel];"
        " const {left, top, width, height} = area.getBoundingClientRect();"
        " const layout = box.layout;"
        " return [[left, top, width, height],"
        " [layout[`xaxis${end}`].range, layout[`yaxis${end}`].range]]; }",
        [name, panel],
    )
    (left, top, width, height), ((x0, x1), (y0, y1)) = frame, ends
    return left + width * (x - x0) / (x1 - x0), top + height * (y1 - y) / (y1 - y0)


def marks(visit: Visit, name: str) -> list[dict[str, float]]:
    """Marks of a figure that are seen: their centres and sizes."""
    return visit.page.evaluate(
        "(name) => [...document.querySelectorAll(`[data-figure=${name}] .mark`)]"
        ".filter((mark) => mark.checkVisibility({visibilityProperty: true}))"
        ".map((mark) => mark.getBoundingClientRect())"
        ".map(({x, y, width, height}) =>"
        " ({x: x + width / 2, y: y + height / 2, width, height}))",
        name,
    )


def pointed(visit: Visit, name: str, panel: int, x: float, y: float) -> None:
    """The pointer at a point of a panel, until plotly says what is there; figures that are drawn
    meanwhile move the others."""
    for _ in range(100):
        at = place(visit, name, panel, x, y)
        visit.page.mouse.move(at[0] - 3, at[1] - 2)
        visit.page.mouse.move(*at)
        visit.page.wait_for_timeout(200)
        if visit.page.query_selector(f"[data-figure={name}] .hovertext"):
            return
    raise AssertionError(f"nothing is said of {x}, {y} in {name}")


def test_a_layer_of_lines_is_marked_in_the_maps(visit: Visit) -> None:
    value = visit.page.evaluate(
        "document.querySelector('[data-figure=layers]').data"
        ".find((trace) => trace.xaxis === 'x' && trace.meta?.x === 'layer'"
        " && trace.visible !== 'legendonly').y[2]"
    )
    pointed(visit, LINES, 0, 2, value)
    for name in (MAP, OTHER):
        found = marks(visit, name)
        assert len(found) == 2, "a row in either panel"
        for panel, mark in enumerate(found):
            _, y = place(visit, name, panel, 0, 2)
            top, bottom = (place(visit, name, panel, 0, layer)[1] for layer in (2.5, 1.5))
            assert mark["y"] == pytest.approx(y, abs=1.5)
            assert mark["height"] == pytest.approx(bottom - top, abs=1.5)


def test_a_head_of_a_map_is_marked_in_maps_and_its_layer_in_lines(visit: Visit) -> None:
    pointed(visit, MAP, 0, 1, 3)
    for panel, mark in enumerate(marks(visit, OTHER)):
        assert (mark["x"], mark["y"]) == pytest.approx(place(visit, OTHER, panel, 1, 3), abs=1.5)
    lines = marks(visit, LINES)
    panels = visit.page.evaluate(
        "document.querySelectorAll('[data-figure=layers] .nsewdrag').length"
    )
    assert len(lines) == panels >= 4
    assert lines[0]["x"] == pytest.approx(place(visit, LINES, 0, 3, 0)[0], abs=1.5)


def test_marks_go_with_the_pointer(visit: Visit) -> None:
    pointed(visit, MAP, 0, 1, 3)
    visit.page.mouse.move(5, 5)
    until(visit.page, "document.querySelector('.hovertext') === null")
    assert [marks(visit, name) for name in (LINES, MAP, OTHER)] == [[], [], []]


def test_a_hundred_moves_lay_nothing_out(visit: Visit) -> None:
    """Plotly's own label aside: its event is sent without it."""
    page = visit.page
    devtools = page.context.new_cdp_session(page)
    devtools.send("Performance.enable")

    def counted() -> dict[str, float]:
        found = devtools.send("Performance.getMetrics")["metrics"]
        return {one["name"]: one["value"] for one in found}

    page.mouse.move(5, 5)
    page.wait_for_timeout(300)
    before = counted()
    moved = page.evaluate(
        """async () => {
          const box = document.querySelector("[data-figure=layers]"), seen = new Set();
          const data = box.data.find((trace) => trace.meta?.x === "layer");
          const other = document.querySelector("[data-figure=heads_content_js] .mark");
          let drawn = 0;
          box.on("plotly_afterplot", () => { drawn += 1; });
          for (let at = 0; at < 100; at += 1) {
            const point = { data, x: at % 4, y: 0, pointNumber: at % 4 };
            box.emit("plotly_hover", { points: [point] });
            seen.add(other.style.transform);
            await new Promise((go) => requestAnimationFrame(go));
          }
          return [seen.size, drawn];
        }"""
    )
    after = counted()
    assert moved == [4, 0]
    assert after["RecalcStyleCount"] - before["RecalcStyleCount"] >= 50
    assert after["LayoutCount"] - before["LayoutCount"] <= 2


def test_nothing_was_refused_or_wrong(visit: Visit) -> None:
    assert visit.errors == []
