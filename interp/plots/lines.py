"""Lines with intervals against depth or any whole number, and the bands behind them.

    panels = [compared(run, "relative_l2", site, run.main_pairs, "last") for site in sites]
    draw_rows(board, [panels], style.layer_axis(run), height=250)

A marker is open where the row was tested against its control and p_adjusted is above `ALPHA`. A
pair keeps its colour and dash in every figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair, pair_name
from interp.plots import style
from interp.plots.bands import Band, band_words, control_band, null_bands, outline
from interp.plots.board import Board, LineEnd, Panel
from interp.plots.scales import Symlog
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.view import HEADLINE, NotMeasured, Run
from interp.runs.words import title
from interp.showing import number
from interp.significance import ALPHA

if TYPE_CHECKING:
    import pandas as pd

_KEPT = ("ci_low", "ci_high", "n", "p_adjusted")


class Look(NamedTuple):
    """A line's name in the legend, its colour and its dash."""

    name: str
    colour: str
    dash: str = "solid"
    symbol: str = "circle"


def line(frame: pd.DataFrame, look: Look, across: str = "layer") -> list[go.Scatter]:
    """The band of the interval, then the line; `across`: the column of whole numbers to draw it
    against."""
    at = frame[across].to_numpy(dtype=np.int16)
    numbers = {c: frame[c].to_numpy(dtype=np.float32, na_value=np.nan) for c in ("value", *_KEPT)}
    tested = np.isfinite(numbers["p_adjusted"])
    custom = np.stack([numbers[c] for c in _KEPT[: 4 if tested.any() else 3]], axis=1)
    name, row = label(look.name), frame.iloc[0]
    known = {k: row[k] for k in ("measure", "site", "position", "queries", "condition")}
    reference = row["reference"] if isinstance(row["reference"], str) else None
    hover = f"<b>{name}</b><br>{across} %{{x}}: %{{y:.4g}}<br>"
    known_ends = np.isfinite(numbers["ci_low"]).any()
    hover += "interval %{customdata[0]:.3g} to %{customdata[1]:.3g}, " if known_ends else ""
    hover += "n = %{customdata[2]:.0f}"
    hover += "<br>p (corrected) %{customdata[3]:.2g}" if tested.any() else ""
    drawn = go.Scatter(
        x=at,
        y=numbers["value"],
        customdata=custom,
        name=name,
        legendgroup=name,
        mode="lines+markers",
        line={"color": look.colour, "width": 2.2, "dash": look.dash},
        marker=_markers(look, numbers["p_adjusted"]),
        hovertemplate=hover + "<extra></extra>",
        meta={
            "fixed": {**known, "reference": reference},
            "x": across,
            "y": "value",
            "custom": list(_KEPT[: custom.shape[1]]),
        },
    )
    return [band(at, numbers["ci_low"], numbers["ci_high"], look.colour, name), drawn]


def _markers(look: Look, p: np.ndarray) -> dict[str, object]:
    if not np.isfinite(p).any():
        return {"size": 5, "color": look.colour, "symbol": look.symbol}
    open_ = np.nan_to_num(p) > ALPHA
    return {
        "size": 7 if len(p) <= 16 else 5,
        "symbol": look.symbol,
        "color": ["white" if o else look.colour for o in open_],
        "line": {"width": 1.6 if len(p) <= 16 else 1.2, "color": look.colour},
    }


def band(
    layer: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, name: str
) -> go.Scatter:
    """One polygon for each stretch of layers that has an interval."""
    xs, ys = outline(layer, low, high)
    return go.Scatter(
        x=xs,
        y=ys,
        fill="toself",
        mode="lines",
        line={"width": 0.5, "color": style.faded(colour, 0.25)},
        fillcolor=style.faded(colour, 0.18),
        legendgroup=name,
        showlegend=False,
        hoverinfo="skip",
    )


# --- panels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinePanel:
    """What a panel draws: rows by look, first ones below, and the bands behind them.

    `unit`: its y axis in words, the measure's where None; `limits`: that axis's look, the measure's
    where empty; `across`: the column of whole numbers to draw against; `scale`: where the axis is
    not linear.
    """

    lines: list[tuple[Look, pd.DataFrame]]
    bands: list[Band] = field(default_factory=list)
    heading: str = ""
    unit: str | None = None
    limits: dict[str, Any] = field(default_factory=dict)
    across: str = "layer"
    scale: Symlog | None = None

    @property
    def frames(self) -> list[pd.DataFrame]:
        """The rows of all lines."""
        return [frame for _, frame in self.lines]

    @property
    def pairs(self) -> list[Pair]:
        """The pairs drawn."""
        found = [frame.iloc[0][["condition", "reference"]] for frame in self.frames]
        return [(str(c), r if isinstance(r, str) else None) for c, r in found]

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and largest number drawn."""
        parts = [f[["value", "ci_low", "ci_high"]].to_numpy(float) for f in self.frames]
        parts += [np.concatenate([b.low, b.high]) for b in self.bands]
        flat = np.concatenate([part.ravel() for part in parts])
        return float(np.nanmin(flat)), float(np.nanmax(flat))

    @property
    def named(self) -> list[LineEnd]:
        """Names for the ends of lines and bands (`Panel.name`); the axis is linear."""
        found = []
        for (look, frame), pair in zip(self.lines, self.pairs, strict=True):
            value, name = float(frame["value"].dropna().iloc[-1]), pair_name(pair)
            strong = look.name == name + HEADLINE
            found.append(LineEnd(value, name, look.colour, label(look.name), strong))
        return [*found, *(end for band in self.bands for end in band.ends(self.pairs))]

    def traces(self) -> list[go.Scatter]:
        """Bands, then lines."""
        drawn = [trace for band in self.bands for trace in band.traces(self.pairs)]
        for look, frame in self.lines:
            found = line(frame, look, across=self.across)
            drawn += [self.scale.drawn(one) for one in found] if self.scale else found
        return drawn


def compared(
    run: Run,
    measure: str,
    site: str,
    pairs: Sequence[Pair],
    position: str = "last",
    queries: str = "matched",
) -> LinePanel:
    """Pairs by layer, those without a single defined value left out; behind them the null bands."""
    found = by_pair(run, measure, site, pairs, position, queries)
    behind = null_bands(run, measure, site, position, queries) if found else []
    return LinePanel(found, behind)


def each_condition(
    run: Run,
    measure: str,
    site: str,
    conditions: Sequence[str],
    position: str = "last",
    queries: str = "matched",
) -> LinePanel:
    """The same for a measure of one condition: behind it the control conditions."""
    alone: list[Pair] = [(name, None) for name in conditions]
    found = by_pair(run, measure, site, alone, position, queries)
    band = control_band(run, measure, site, position, queries) if found else None
    return LinePanel(found, [band] if band else [])


def by_pair(
    run: Run, measure: str, site: str, pairs: Sequence[Pair], position: str, queries: str
) -> list[tuple[Look, pd.DataFrame]]:
    """Rows of every pair that has some, in the pair's look."""
    found = ((p, run.by_layer(measure, site, p, position, queries)) for p in pairs)
    return [(pair_look(run, pair), frame) for pair, frame in found if len(frame)]


def pair_look(run: Run, pair: Pair) -> Look:
    """A pair's line: the same in every figure of a run."""
    name = run.role(pair)
    if pair[1] is None:
        return Look(name, *style.condition_look(run, name))
    return Look(name, style.colours(run)[pair], style.dashes(run)[pair])


def draw_rows(
    board: Board,
    rows: Sequence[Sequence[LinePanel]],
    x: dict[str, Any],
    height: float,
    *,
    shared: bool = True,
    gap: float = 24,
    above: float = 0,
    shares: Sequence[float] = (),
) -> list[list[Panel]]:
    """Rows of panels on one x axis; `shared`: the panels of a row have one y axis, else each its
    own, with its own unit; the rest as in `Board.row`."""
    drawn = []
    for row in rows:
        headings = [one.heading for one in row]
        look: dict[str, Any] = {"gap": gap, "shared": shared, "above": above, "shares": shares}
        own = board.row(headings, height, x, style.axis(_unit(row)), **look)
        for panel, one in zip(own, row, strict=True):
            if not shared:
                panel.y["title"] = style.axis(_unit([one]))["title"]
            panel.y |= one.limits or limits([one] if not shared else row)
            panel.draw(one.traces())
        drawn.append(own)
    board.one_x(drawn)
    return drawn


def _unit(row: Sequence[LinePanel]) -> str:
    """What the y axis of a row is called: the measure with its unit where a panel has no words."""
    if row[0].unit is not None:
        return row[0].unit
    frame = next(frame for panel in row for frame in panel.frames)
    return title(str(frame["measure"].iloc[0]), frame)


def limits(row: Sequence[LinePanel]) -> dict[str, Any]:
    """Signed measures keep zero in the middle, the others start there."""
    known = [panel for panel in row if panel.lines]
    measure = str(known[0].frames[0]["measure"].iloc[0])
    if MEASURES[measure].rounding == "cosine":
        return {"range": [-1.05, 1.05], **style.ZERO}
    low, high = (f(panel.ends[i] for panel in known) for i, f in enumerate((min, max)))
    if MEASURES[measure].signed or low < 0:
        room = 0.06 * (high - low)
        return {"range": [min(low, 0) - room, max(high, 0) + room], **style.ZERO}
    return {"range": [0, 1.08 * high or 1]}


def measured(panels: Iterable[LinePanel], what: str) -> list[LinePanel]:
    """The panels that have a line; `NotMeasured` where none has."""
    kept = [panel for panel in panels if panel.lines]
    if not kept:
        raise NotMeasured(f"this run has no {what}")
    return kept


# --- words ---------------------------------------------------------------------------------------


def tested(frames: list[pd.DataFrame]) -> bool:
    """Whether any of these rows carries a corrected p-value."""
    return any(frame["p_adjusted"].notna().any() for frame in frames)


def test_words(run: Run) -> str:
    """For a caption whose lines have tested pairs."""
    count = run.manifest.get("tests", {}).get("permutations")
    times = f"{count} " if count else ""
    return (
        f"Open markers: p > {ALPHA:g} against the pair's control ({times}paired sign flips over "
        "queries, corrected over the map), filled: below it"
    )


def span(frame: pd.DataFrame) -> str:
    """The smallest and the largest value in words."""
    low, high = (number(float(frame["value"].agg(end)), 2) for end in ("min", "max"))
    return low if low == high else f"{low} to {high}"


def lies_beside(
    own: pd.DataFrame,
    other: pd.DataFrame,
    name: str,
    sides: tuple[str, str] = ("below", "above"),
) -> str:
    """Where rows by layer lie beside others in most layers: below, above, or level, which are two
    whose intervals meet (a value that has none is its own)."""
    two = _ends(own).join(_ends(other), rsuffix="_other", how="inner").dropna()
    below = int((two["high"] < two["low_other"]).sum())
    above = int((two["low"] > two["high_other"]).sum())
    counts = {sides[0]: below, sides[1]: above, "level with": len(two) - below - above}
    side, count = max(counts.items(), key=lambda found: found[1])
    many = f"all {len(two)}" if count == len(two) else f"{count} of {len(two)}"
    return f"{side} {name} in {many} layers"


def _ends(frame: pd.DataFrame) -> pd.DataFrame:
    """Both ends of the interval by layer."""
    import pandas as pd

    ends = {end: frame[f"ci_{end}"].fillna(frame["value"]) for end in ("low", "high")}
    return pd.DataFrame({name: own.to_numpy(float) for name, own in ends.items()}, frame["layer"])


def where(position: str) -> str:
    """A position in words."""
    named = {"last": "last query token", "mean": "mean over query tokens"}
    return named.get(position, f"query token {position}")


def line_notes(run: Run, panels: Sequence[LinePanel], position: str) -> list[str]:
    """A caption's first sentences: intervals, bands, tests, position."""
    shown = tested([frame for panel in panels for frame in panel.frames])
    return [
        "Narrow bands around lines are intervals",
        band_words(run, [band for panel in panels for band in panel.bands]),
        test_words(run) if shown else "",
        f"Position: {position}",
    ]
