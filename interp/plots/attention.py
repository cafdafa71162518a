"""Attention patterns of one head as a notebook has read them, under every condition side by side.

acts = lab.run(["big ->"], sites=["pattern"])
attention(acts, "L3H2").show()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.errors import ConfigError
from interp.names import Head, short_name
from interp.plots import style
from interp.plots.head_layout import layout_for
from interp.plots.heads import draw_patterns
from interp.runs.heads import HeadView

if TYPE_CHECKING:
    import xarray as xr


def attention(acts: xr.Dataset, head: str | Head, query: int = 0) -> go.Figure:
    """One head's attention on one query under every condition, on one scale.

    `acts` is of `Lab.run`, with the site `pattern`; `head` is written `L3H2`. A `ConfigError` names
    what there is where the patterns, the head or the query are not in it.
    """
    view = _view(acts, Head.parse(head) if isinstance(head, str) else head, query)
    figure = go.Figure()
    grid = layout_for(len(view.conditions), len(view.tokens[0]), strip=0)
    draw_patterns(figure, view, grid)
    words = (
        "Rows: query tokens; columns: all attention before the query (prefix), then the query's "
        f"own tokens. Model: {short_name(str(acts.attrs.get('model', 'unnamed')))}. Compared: "
        f"{', '.join(view.conditions)}. n = 1 query, without interval. Not certified: their "
        "outputs may differ."
    )
    return style.dress(
        figure,
        title=f"Attention of head {view.head} under each condition",
        words=words,
        plot=round(grid.span[1]),
        left=round(grid.left),
        right=90,
        below=4,
    )


def _view(acts: xr.Dataset, head: Head, query: int) -> HeadView:
    """What these activations hold of a head; what was selected before counts as all there is."""
    if "pattern" not in acts or not {"layer", "key", "position"} <= {*map(str, acts.coords)}:
        raise ConfigError('no patterns in here: read them with lab.run(..., sites=["pattern"])')
    whole: Any = acts
    for dim in ("condition", "query", "layer"):
        whole = whole if dim in whole.dims else whole.expand_dims(dim)
    layers, queries = whole["layer"].values.tolist(), whole["query"].values.tolist()
    n_heads = whole.sizes.get("head", 0)
    if head.layer not in layers or head.head >= n_heads:
        where = ", ".join(map(str, layers))
        raise ConfigError(f"no head {head}: there are heads 0 to {n_heads - 1} in layers {where}")
    if query not in queries:
        raise ConfigError(f"no query {query}: there are {', '.join(map(str, queries))}")
    one = whole.sel(query=query)
    patterns = one["pattern"].sel(layer=head.layer).isel(head=head.head)
    length = int(one["n_tokens"])
    tokens = [str(token) for token in one["token"].values.ravel()[-length:]]
    keys = [0, *range(-length, 0)]
    cells = patterns.sel(key=keys).isel(position=slice(-length, None))
    cells = cells.transpose("condition", "position", "key").values[:, None]
    return HeadView(
        head=head,
        conditions=[str(name) for name in whole["condition"].values],
        pairs=[],
        tokens=[tokens],
        patterns=np.asarray(cells, dtype=np.float32),
        content_js=np.empty((0, 1)),
        attended=[],
    )
