"""Attribution, the first-order estimate of a patch, beside what patching really does.

    attribution(run).show()
    attribution_heads(run).show()

Attribution is cheap and holds near the state it starts from; where it leaves the diagonal, the
network's saturation speaks (a softmax, a norm), and the exact patch is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from interp.plots import style
from interp.plots.exchanges import sides, state_in
from interp.plots.text import label
from interp.runs.view import NotMeasured, Run
from interp.runs.words import SITES

if TYPE_CHECKING:
    import pandas as pd

Move = tuple[str, str]
"""(source, target): whose state is put into whose run."""

ESTIMATE, EXACT = "attribution", "answer_change"
_KEYS = ["condition", "reference", "site", "layer", "head", "position"]
_LOOKS = {
    "resid_pre": ("#8C6BB1", "triangle-down"),
    "resid_mid": ("#CC79A7", "triangle-up"),
    "resid_post": ("#0072B2", "circle"),
    "attn_out": ("#E69F00", "square"),
    "mlp_out": ("#009E73", "diamond"),
    "z": ("#D55E00", "circle"),
    "pattern": ("#56B4E9", "cross"),
}
_OTHER = ("#9A9A9A", "x")
_COLUMNS, _PANEL, _GAP = 3, 262, 74


def attribution(run: Run, queries: str = "matched") -> go.Figure:
    """First-order against exact change of the answer's log-odds, one panel per direction.

    Raises `NotMeasured` without attributions of places that were patched.
    """
    run = run.exchanged()
    frame = paired(run, queries)
    moves = directions(run, frame)
    if not moves:
        raise NotMeasured("this run has no attributions beside exact patches")
    rows, columns = -(-len(moves) // _COLUMNS), min(_COLUMNS, len(moves))
    plot = rows * _PANEL + (rows - 1) * _GAP
    figure = make_subplots(
        rows,
        columns,
        horizontal_spacing=0.075,
        vertical_spacing=_GAP / plot if rows > 1 else 0,
        subplot_titles=[state_in(*move) for move in moves],
    )
    figure.update_annotations(font={"size": 13})
    named: set[str] = set()
    for number_, move in enumerate(moves):
        row, column = number_ // _COLUMNS + 1, number_ % _COLUMNS + 1
        part = _of(frame, move)
        _panel(figure, part, row, column, named)
        _agreement(figure, run, move, part, row, column)
    for column in range(1, columns + 1):
        lowest = max(r for r in range(1, rows + 1) if (r - 1) * _COLUMNS + column <= len(moves))
        figure.update_xaxes(title_text="exact change [nats]", row=lowest, col=column)
    figure.update_yaxes(title_text="first-order estimate [nats]", col=1)
    return style.finish(
        figure,
        run,
        title="Attribution against exact patches: change of the answer's log-odds",
        pairs=[],
        queries=queries,
        note="One mark per place whose value was replaced (all tokens, a segment, or one token); "
        "on the diagonal the estimate is exact. ρ: Spearman's rank correlation over the places. "
        "Every panel has its own scale, the same on both axes",
        plot=plot,
        legend=True,
        left=72,
    )


def paired(run: Run, queries: str = "matched") -> pd.DataFrame:
    """Places that have both: `value` with its interval is exact, `estimate` first-order."""
    table = run.table[run.table["queries"] == queries]
    exact = table[(table["measure"] == EXACT) & table["value"].notna()]
    first = table[(table["measure"] == ESTIMATE) & table["value"].notna()]
    ends = {"value": "estimate", "ci_low": "estimate_low", "ci_high": "estimate_high"}
    first = first[[*_KEYS, *ends]].rename(columns=ends)
    return exact.merge(first, on=_KEYS, how="inner")


def directions(run: Run, frame: pd.DataFrame) -> list[Move]:
    """(source, target) of these rows: between the two, into base, and from base."""
    a, b, base = sides(run)
    usual = [(a, b), (b, a), (a, base), (b, base), (base, a), (base, b)]
    pairs = frame[["condition", "reference"]].drop_duplicates().astype(str)
    found = list(pairs.itertuples(index=False, name=None))
    return [*(m for m in usual if m in found), *(m for m in found if m not in usual)]


def _of(frame: pd.DataFrame, move: Move) -> pd.DataFrame:
    return frame[(frame["condition"] == move[0]) & (frame["reference"] == move[1])]


def _panel(figure: go.Figure, frame: pd.DataFrame, row: int, column: int, named: set[str]) -> None:
    numbers = frame[["value", "estimate"]].to_numpy(float)
    low, high = min(float(numbers.min()), 0.0), max(float(numbers.max()), 0.0)
    room = 0.06 * (high - low or 1.0)
    ends = [low - room, high + room]
    diagonal = {"mode": "lines", "line": {"color": style.INK, "width": 1}, "hoverinfo": "skip"}
    figure.add_trace(go.Scatter(x=ends, y=ends, showlegend=False, **diagonal), row=row, col=column)
    for site in frame["site"].value_counts().index:  # the most numerous lie below
        trace = _marks(frame[frame["site"] == site], str(site))
        known = list(_LOOKS)
        trace.legendrank = 1000 + (known.index(site) if site in known else len(known))
        trace.showlegend = site not in named
        named.add(str(site))
        figure.add_trace(trace, row=row, col=column)
    zero = {"zeroline": True, "zerolinecolor": "#9A9A9A", "zerolinewidth": 1, "nticks": 6}
    figure.update_xaxes(style.axis(None, range=ends, **zero), row=row, col=column)
    figure.update_yaxes(style.axis(None, range=ends, **zero), row=row, col=column)


def _marks(frame: pd.DataFrame, site: str) -> go.Scatter:
    colour, symbol = _LOOKS.get(site, _OTHER)
    columns = ("ci_low", "ci_high", "estimate_low", "estimate_high", "n")
    custom = np.stack([frame[c].to_numpy(float, na_value=np.nan) for c in columns], axis=1)
    places = {name: _plain(frame[name]) for name in _KEYS if name != "site"}
    names = [
        f"{site}, layer {layer}" + ("" if head is None else f", head {head}") + f", position {at}"
        for layer, head, at in zip(places["layer"], places["head"], places["position"], strict=True)
    ]
    return go.Scatter(
        x=frame["value"].to_numpy(np.float32),
        y=frame["estimate"].to_numpy(np.float32),
        mode="markers",
        name=f"{SITES.get(site, site)} ({site})",
        legendgroup=site,
        marker={
            "size": 5 if len(frame) > 100 else 7,
            "color": colour,
            "symbol": symbol,
            "opacity": 0.75,
            "line": {"width": 0.5, "color": "white"},
        },
        text=[label(name) for name in names],
        customdata=custom.astype(np.float32),
        hovertemplate="<b>%{text}</b><br>exact %{x:.4g}, interval %{customdata[0]:.3g} to "
        "%{customdata[1]:.3g}<br>first order %{y:.4g}, interval %{customdata[2]:.3g} to "
        "%{customdata[3]:.3g}<br>n = %{customdata[4]:.0f}<extra></extra>",
        meta={
            "fixed": {"site": site},
            "columns": places,
            "x": EXACT,
            "y": ESTIMATE,
            "custom": [f"{EXACT}_low", f"{EXACT}_high", f"{ESTIMATE}_low", f"{ESTIMATE}_high", "n"],
        },
    )


def _plain(column: pd.Series) -> list[Any]:
    return column.astype(object).where(column.notna(), None).tolist()


def _agreement(
    figure: go.Figure, run: Run, move: Move, frame: pd.DataFrame, row: int, column: int
) -> None:
    """The rank correlations of a direction, in the emptier of the two corners off the diagonal."""
    found = [
        e
        for e in run.manifest["interchange"].get("attribution") or []
        if (e["source"], e["target"]) == move
    ]
    lines = [f'<span style="color:{_colour(e["site"])}">{_correlation(e)}</span>' for e in found]
    below = (frame["estimate"] < frame["value"]).mean() < 0.5
    corner = ("right", "bottom") if below else ("left", "top")
    figure.add_annotation(
        text="<br>".join(lines),
        xref="x domain",
        yref="y domain",
        x=float(below),
        y=float(not below),
        xanchor=corner[0],
        yanchor=corner[1],
        align=corner[0],
        showarrow=False,
        font={"size": 10},
        row=row,
        col=column,
    )


def _correlation(entry: dict[str, Any]) -> str:
    value = entry["spearman"]
    words = "undefined" if value is None else f"{value:.2f}".replace("-", "−")
    return label(f"{entry['site']} by {entry['by']}: ρ {words}")


def _colour(site: str) -> str:
    return _LOOKS.get(site, _OTHER)[0]
