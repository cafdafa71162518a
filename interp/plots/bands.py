"""What no effect looks like, behind the lines: the controls' pairs, and pairs within a family.

    for band in null_bands(run, "relative_l2", "resid_post", "last"):
        panel.draw(band.traces())

A band runs from the smallest to the largest value of its pairs in each layer; its pairs at both
ends are in the figure's numbers. Controls are lines of their own: as a band the farthest would hide
all others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from interp.names import Pair, pair_name
from interp.plots.board import LineEnd
from interp.plots.style import label
from interp.runs.view import Run

if TYPE_CHECKING:
    import pandas as pd

CONTROL = "#7A7A7A"
"""The colour of controls."""

OFF = "untrained"
"""The control that is farther than anything learnt: its line is off at first."""

_DASHES = ("solid", "dot", "dash", "longdash", "dashdot", "longdashdot", "4px,2px,1px,2px")
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
_LOOKS = {"floors": _FLOORS, "chance": _CHANCE}
_RIM = {"floors": "#B07600", "chance": "#286EA0"}
"""Colours of what leads from a band to its name."""


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

    @property
    def frame(self) -> pd.DataFrame:
        """Its ends as those of an interval, by layer."""
        import pandas as pd

        ends = {"value": (self.low + self.high) / 2, "ci_low": self.low, "ci_high": self.high}
        return pd.DataFrame({"layer": self.layer, **ends})

    def traces(self, drawn: Collection[Pair] = ()) -> list[go.Scatter]:
        """The band, or a line for each control that is not `drawn` by itself; to be drawn before
        the lines."""
        if self.kind != "controls":
            return [self.trace()]
        known = [(pair, own) for pair, own in self.members.items() if pair not in drawn]
        return [self._line(at, pair, own) for at, (pair, own) in enumerate(known)]

    def ends(self, drawn: Collection[Pair] = ()) -> list[LineEnd]:
        """Names for the ends of what `traces` draws, but for what is off at first."""
        if self.kind != "controls":
            middle = float((self.low[-1] + self.high[-1]) / 2)
            return [LineEnd(middle, self.name, _RIM[self.kind], self.kind)]
        known = {p: own[np.isfinite(own)] for p, own in self.members.items() if p not in drawn}
        return [
            LineEnd(float(own[-1]), pair_name(pair), CONTROL, _control_name(pair), quiet=True)
            for pair, own in known.items()
            if len(own) and OFF not in pair
        ]

    def _line(self, at: int, pair: Pair, values: np.ndarray) -> go.Scatter:
        """A control by itself: what stretches the axis is off until the legend turns it on."""
        name = _control_name(pair)
        return go.Scatter(
            x=self.layer.astype(np.int16),
            y=values.astype(np.float32),
            mode="lines",
            line={"width": 1.2, "color": CONTROL, "dash": _DASHES[at % len(_DASHES)]},
            name=name,
            legendgroup=name,
            legendrank=2000,
            visible="legendonly" if OFF in pair else True,
            hovertemplate=f"<b>{name}</b><br>layer %{{x}}: %{{y:.4g}}<extra></extra>",
            meta={
                "fixed": {
                    **self.fixed,
                    "band": self.name,
                    "condition": pair[0],
                    "reference": pair[1],
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


def _control_name(pair: Pair) -> str:
    """A control's name in the legend, and its group."""
    return label(f"control: {pair_name(pair)}")


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
        found = [name for name, pair in run.nulls.items() if pair != run.null_pair]
        off = f"; {OFF} is off until the legend turns it on" if OFF in found else ""
        what = "the control" if len(found) == 1 else f"a line for each of {len(found)} controls"
        parts += [f"Grey: {what} ({', '.join(found)}){off}"] if found else []
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
    frames = {p: run.by_layer(measure, site, p, position, queries) for p in pairs}
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
    kind, name = names
    far = np.array([kind == "controls" and OFF in pair for pair in known])
    seen = far[:, None] & (~far.all() & np.isfinite(lows[~far]).all(axis=0))
    low = np.nanargmin(np.where(seen, np.nan, lows), axis=0)
    high = np.nanargmax(np.where(seen, np.nan, highs), axis=0)
    across = np.arange(len(layer))
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
