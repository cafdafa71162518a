"""One offline HTML file of a template's words and figures; plotly.js and the policy included.

    render("report.html.j2", {"layers": figure}, title="...")

Templates extend `base.html.j2`; `parts.html.j2` holds their tables and figures. Every string goes
through autoescape, data are packed; `Markup` wraps only our own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.io import to_json

from interp.plots.alt import alt_text
from interp.plots.frame import bare
from interp.report.bundle import packed, packed_plotly, policy, script_hash
from interp.report.glossary import defined

SCRIPTS = (
    "data.js",
    "figures.js",
    "phone.js",
    "linked.js",
    "tools.js",
    "tables.js",
    "headfigure.js",
    "heads.js",
    "maps.js",
    "report.js",
)
"""What makes the page's one script, in this order."""


def render(
    template: str,
    figures: Mapping[str, go.Figure],
    data: Mapping[str, bytes] | None = None,
    **words: Any,
) -> str:
    """The page; the template finds titles, captions, heights and alternative texts of the figures
    in `figures`. `data`: what scripts read besides, by the id of its element."""
    plain = {name: bare(figure) for name, figure in figures.items()}
    parts = (
        f"{json.dumps(name)}:{to_json(figure, validate=False)}" for name, figure in plain.items()
    )
    held = {"figures": ("{" + ",".join(parts) + "}").encode(), **(data or {})}
    script, plotly = "\n".join(["(() => {", *map(_part, SCRIPTS), "})();"]), packed_plotly()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FunctionLoader(_part)
    )
    environment.filters["defined"] = defined
    return environment.get_template(template).render(
        **words,
        figures={name: _described(figures[name], one) for name, one in plain.items()},
        policy=Markup(policy([plotly.source_hash, script_hash(script)])),
        css=Markup(_part("report.css")),
        data={name: Markup(packed(content)) for name, content in held.items()},
        plotly=Markup(plotly.payload),
        script=Markup(script),
    )


def _described(figure: go.Figure, plain: Mapping[str, Any]) -> dict[str, Any]:
    """What the template says around a drawing: of its caption what is its own, and what it shares
    with others (`provenance`)."""
    meta = dict(figure.layout.meta)
    shared = meta.get("provenance", "")
    return meta | {
        "height": round(plain["layout"]["height"]),
        "provenance": shared,
        "note": meta["caption"].removesuffix(shared).strip(),
        "alt": alt_text(figure),
    }


def _part(name: str) -> str:
    return files("interp.report").joinpath(name).read_text(encoding="utf-8")
