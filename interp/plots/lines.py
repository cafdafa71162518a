"""Lines with intervals against depth or any whole number, and the bands behind them.

    panels = [compared(run, "relative_l2", site, run.main_pairs, "last") for site in sites]
    draw_rows(board, run, [panels], style.layer_axis(run), height=250)

A marker is open where the row was tested against its control and p_adjusted is above `ALPHA`. A
pair keeps its colour and dash in every figure. A band runs from the smallest to the largest value
of its pairs in each layer; its pairs at both ends are in the figure's numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair, pair_name
from interp.plots import style
from interp.plots.board import Board, Panel
from interp.plots.scales import Symlog
from interp.plots.style import label
from interp.registry import MEASURES
from interp.runs.view import NotMeasured, Run
from interp.runs.words import title
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


def layer_rows(
    run: Run, measure: str, site: str, pair: Pair, position: str, queries: str = "matched"
) -> pd.DataFrame:
    """A pair's rows of whole layers, in layer order; empty where no value is defined."""
    frame = run.rows(measure, site, pair, position, queries)
    frame = frame[frame["head"].isna() & frame["layer"].notna()].sort_values("layer")
    return frame if frame["value"].notna().any() else frame.iloc[:0]


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
    hover += "interval %{customdata[0]:.3g} to %{customdata[1]:.3g}, n = %{customdata[2]:.0f}"
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


def outline(layer: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The polygons between two lines, one for each stretch where both are known."""
    xs: list[float] = []
    ys: list[float] = []
    known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
    for run in np.split(known, np.flatnonzero(np.diff(known) > 1) + 1):
        if len(run) == 1:  # a single layer has no width of its own
            at, half = float(layer[run[0]]), 0.2
            xs += [at - half, at + half, at + half, at - half, at - half, np.nan]
            ys += [low[run[0]], low[run[0]], high[run[0]], high[run[0]], low[run[0]], np.nan]
        elif len(run):
            xs += [*layer[run], *layer[run][::-1], layer[run][0], np.nan]
            ys += [*low[run], *high[run][::-1], low[run][0], np.nan]
    return np.array(xs, dtype=np.float32), np.array(ys, dtype=np.float32)


# --- bands ---------------------------------------------------------------------------------------

_CONTROLS: dict[str, Any] = {"fillcolor": "rgba(110,110,110,0.17)"}
_FLOORS: dict[str, Any] = {
    "fillcolor": "rgba(230,159,0,0.16)",
    "fillpattern": {
        "shape": "/",
        "size": 6,
        "solidity": 0.25,
        "fgcolor": "rgba(176,118,0,0.75)",
        "bgcolor": "rgba(230,159,0,0.12)",
    },
}
_CHANCE: dict[str, Any] = {
    "fillcolor": "rgba(86,180,233,0.16)",
    "fillpattern": {
        "shape": "\\",
        "size": 6,
        "solidity": 0.25,
        "fgcolor": "rgba(40,110,160,0.75)",
        "bgcolor": "rgba(86,180,233,0.14)",
    },
}
_LOOKS = {"controls": _CONTROLS, "floors": _FLOORS, "chance": _CHANCE}


@dataclass(frozen=True)
class Band:
    """Smallest and largest value of several pairs by layer, and which pairs they are."""

    name: str
    kind: str
    fixed: dict[str, str]
    layer: np.ndarray
    low: np.ndarray
    high: np.ndarray
    lowest: list[str]
    highest: list[str]
    members: dict[Pair, np.ndarray]

    def traces(self) -> list[go.Scatter]:
        """The band and, for controls, a thread for each of them; to be drawn before the lines."""
        return [self.trace(), *([self._threads()] if self.kind == "controls" else [])]

    def _threads(self) -> go.Scatter:
        """One thin line per pair, so that the band's width does not hide where each one is."""
        gap = [np.nan]
        values = np.concatenate([part for v in self.members.values() for part in (v, gap)])
        steps = len(self.layer) + 1
        names = [pair_name(p) for p in self.members for _ in range(steps)]
        return go.Scatter(
            x=np.tile(np.append(self.layer, self.layer[-1]), len(self.members)).astype(np.int16),
            y=values.astype(np.float32),
            mode="lines",
            line={"width": 0.9, "color": "rgba(110,110,110,0.55)"},
            text=[label(name) for name in names],
            legendgroup=self.kind,
            showlegend=False,
            hovertemplate="<b>%{text}</b><br>layer %{x}: %{y:.4g}<extra>control</extra>",
            meta={
                "fixed": {**self.fixed, "band": self.name},
                "columns": {
                    "condition": [p[0] for p in self.members for _ in range(steps)],
                    "reference": [p[1] for p in self.members for _ in range(steps)],
                },
                "x": "layer",
                "y": "value",
                "gaps": True,
            },
        )

    def trace(self) -> go.Scatter:
        """The band, to be drawn before the lines."""
        xs, ys = outline(self.layer, self.low, self.high)
        return go.Scatter(
            x=xs,
            y=ys,
            fill="toself",
            mode="lines",
            line={"width": 0},
            name=label(self.name),
            legendgroup=self.kind,
            hoveron="fills",
            hoverinfo="name",
            meta={
                "fixed": {**self.fixed, "band": self.name},
                "table": {
                    "layer": self.layer.tolist(),
                    "low": self.low.tolist(),
                    "high": self.high.tolist(),
                    "lowest": self.lowest,
                    "highest": self.highest,
                },
            },
            **_LOOKS[self.kind],
        )


def null_bands(
    run: Run, measure: str, site: str, position: str = "last", queries: str = "matched"
) -> list[Band]:
    """The controls' band and the families' floor, as far as the run has their rows."""
    groups: list[tuple[str, str, Iterable[Pair]]] = [
        ("controls", controls_name(run), run.nulls.values()),
        ("floors", "within families", run.floors),
    ]
    found = [
        envelope(run, (kind, name), pairs, measure, site, position, queries)
        for kind, name, pairs in groups
    ]
    return [band for band in found if band is not None]


def control_band(
    run: Run, measure: str, site: str, position: str = "last", queries: str = "matched"
) -> Band | None:
    """The band of the control conditions themselves, for a measure of one condition."""
    pairs: list[Pair] = [(name, None) for name in run.nulls]
    return envelope(run, ("controls", "controls"), pairs, measure, site, position, queries)


def controls_name(run: Run) -> str:
    """What the controls' band is called: with the side of the headline that most of them face."""
    pair, null = run.headline or (), list(run.nulls.values())
    faced = [side for side in reversed(pair) for two in null if side in two]
    return f"controls vs {max(faced, key=faced.count)}" if faced else "controls"


def band_words(run: Run, bands: Sequence[Band]) -> str:
    """The caption's sentence on the bands drawn."""
    kinds = {band.kind for band in bands}
    parts = []
    if "controls" in kinds:
        found = run.nulls
        names = ", ".join(found)
        parts.append(f"Grey: smallest to largest of {len(found)} controls ({names}), a thread each")
    if "floors" in kinds:
        parts.append(f"Hatched: the same for {len(run.floors)} pairs within families")
    return ". ".join(parts)


def envelope(
    run: Run,
    names: tuple[str, str],
    pairs: Iterable[Pair],
    measure: str,
    site: str,
    position: str,
    queries: str,
    intervals: bool = False,
) -> Band | None:
    """Smallest and largest value over pairs by layer (`intervals`: ends of the intervals); None
    where no pair has rows."""
    frames = {p: layer_rows(run, measure, site, p, position, queries) for p in pairs}
    known = [p for p, frame in frames.items() if len(frame)]
    if not known:
        return None
    layers = sorted({int(x) for p in known for x in frames[p]["layer"]})
    lows, highs = (np.full((len(known), len(layers)), np.nan) for _ in range(2))
    for i, p in enumerate(known):
        at = [layers.index(int(x)) for x in frames[p]["layer"]]
        for ends, column in ((lows, "ci_low"), (highs, "ci_high")):
            ends[i, at] = frames[p][column if intervals else "value"].to_numpy(dtype=float)
    kept = np.isfinite(lows).any(axis=0) & np.isfinite(highs).any(axis=0)
    if not kept.any():
        return None
    lows, highs, layer = lows[:, kept], highs[:, kept], np.array(layers)[kept]
    low, high = np.nanargmin(lows, axis=0), np.nanargmax(highs, axis=0)
    across = np.arange(len(layer))
    kind, name = names
    return Band(
        name,
        kind,
        {"measure": measure, "site": site, "position": position, "queries": queries},
        layer,
        lows[low, across],
        highs[high, across],
        [pair_name(known[i]) for i in low],
        [pair_name(known[i]) for i in high],
        dict(zip(known, lows, strict=True)),
    )


# --- panels --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinePanel:
    """What a panel draws: rows by look, first ones below, and the bands behind them.

    `unit`: its y axis in words, the measure's where None; `limits`: that axis's look, by the measure where it is empty;
    `across`: the column of whole numbers to draw against; `scale`: where the axis is not linear.
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

    def traces(self) -> list[go.Scatter]:
        """Bands, then lines."""
        drawn = [trace for band in self.bands for trace in band.traces()]
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
    heading: str = "",
) -> LinePanel:
    """Pairs by layer, those without a single defined value left out; behind them the null bands."""
    found = by_pair(run, measure, site, pairs, position, queries)
    behind = null_bands(run, measure, site, position, queries) if found else []
    return LinePanel(found, behind, heading)


def single(
    run: Run,
    measure: str,
    site: str,
    conditions: Sequence[str],
    position: str = "last",
    queries: str = "matched",
    heading: str = "",
) -> LinePanel:
    """The same for a measure of one condition: behind it the control conditions."""
    alone: list[Pair] = [(name, None) for name in conditions]
    found = by_pair(run, measure, site, alone, position, queries)
    band = control_band(run, measure, site, position, queries) if found else None
    return LinePanel(found, [band] if band else [], heading)


def by_pair(
    run: Run, measure: str, site: str, pairs: Sequence[Pair], position: str, queries: str
) -> list[tuple[Look, pd.DataFrame]]:
    """Rows of every pair that has some, in the pair's look."""
    found = ((p, layer_rows(run, measure, site, p, position, queries)) for p in pairs)
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
) -> list[list[Panel]]:
    """Rows of panels on one x axis; `shared`: the panels of a row have one y axis, else each its
    own, with its own unit."""
    drawn = []
    for row in rows:
        headings = [one.heading for one in row]
        own = board.row(headings, height, x, style.axis(_unit(row)), gap=gap, shared=shared)
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
