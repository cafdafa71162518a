"""One offline HTML file of a template's words and figures; plotly.js and the policy included.

    render("report.html.j2", {"layers": figure}, title="...")

Templates extend `base.html.j2`; `parts.html.j2` holds their tables and figures. Every string goes
through autoescape or `escaped_json`; `Markup` wraps only our own.
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

from interp.plots.frame import bare
from interp.report.bundle import escaped_json, packed_plotly, policy, script_hash


def render(template: str, figures: Mapping[str, go.Figure], **words: Any) -> str:
    """The page; the template finds titles, captions and heights of the figures in `figures`."""
    plain = {name: bare(figure) for name, figure in figures.items()}
    parts = (
        f"{json.dumps(name)}:{to_json(figure, validate=False)}" for name, figure in plain.items()
    )
    script, plotly = _part("report.js"), packed_plotly()
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FunctionLoader(_part)
    )
    return environment.get_template(template).render(
        **words,
        figures={
            name: {**figures[name].layout.meta, "height": round(figure["layout"]["height"])}
            for name, figure in plain.items()
        },
        policy=Markup(policy([plotly.source_hash, script_hash(script)])),
        css=Markup(_part("report.css")),
        data=Markup(escaped_json("{" + ",".join(parts) + "}")),
        plotly=Markup(plotly.payload),
        script=Markup(script),
    )


def _part(name: str) -> str:
    return files("interp.report").joinpath(name).read_text(encoding="utf-8")
