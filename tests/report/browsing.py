"""A page of a report in a real browser, and all that it says, asks for or is refused.

seen = visited(browser, address, viewport={"width": 400, "height": 800})
until(seen.page, "document.getElementById('head-name').textContent === 'Head L3H1'")
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

READY = "html[data-ready]"
PATIENCE = 60_000


@dataclass
class Visit:
    """An open page and all that it said, asked for or was refused."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def outside(self) -> list[str]:
        """What it asked for besides itself."""
        inside = ("data:", "blob:")
        files = [url for url in self.requests if url.startswith("file:")]
        return [u for u in self.requests if not u.startswith(inside) and u not in files[:1]]


def visited(browser: Any, address: str, **options: Any) -> Visit:
    """The page in a context of its own, ready to be read."""
    shape = {"viewport": {"width": 1200, "height": 900}, **options}
    page = browser.new_context(offline=True, accept_downloads=True, **shape).new_page()
    page.set_default_timeout(PATIENCE)
    seen = Visit(page)
    page.on("console", lambda message: seen.errors.append(message.text))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.context.on("request", lambda request: seen.requests.append(request.url))
    page.add_init_script(
        "window.refused = []; document.addEventListener('securitypolicyviolation',"
        " (event) => window.refused.push(event.violatedDirective));"
    )
    page.goto(address)
    page.wait_for_selector(READY)
    return seen


def until(page: Any, expression: str) -> None:
    """Wait until an expression holds; one that waits inside the page would need eval."""
    for _ in range(PATIENCE // 50):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never so: {expression}")


def drawn(page: Any, name: str) -> None:
    """Scroll to a figure and wait until it stands."""
    page.query_selector(f"[data-figure={name}]").scroll_into_view_if_needed()
    page.wait_for_selector(f"[data-figure={name}] .main-svg")
