"""What a figure shows, in a few sentences, for those who do not see it.

alt_text(layers(run))
# "Relative L2 by layer. prompt vs lora, relative_l2, resid_post: 0.281 to 0.4, largest at layer 3."
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go

from interp.names import pair_name
from interp.showing import number, visible

_NAMES = ("measure", "site", "position", "group", "family")


def alt_text(figure: go.Figure, most: int = 8) -> str:
    """The title; of every series that is on its range and where it is largest (or the `words` it
    has for this), the first `most` of them, controls last."""
    drawn = [t for t in figure.data if t.meta and t.visible != "legendonly"]
    known = sorted(drawn, key=lambda t: getattr(t, "legendrank", None) or 1000)
    found = [words for t in known if (words := t.meta.get("words") or _series(t))]
    title = str(figure.layout.meta["title"])
    more = f" And {len(found) - most} more." if len(found) > most else ""
    return visible(" ".join([f"{title}.", *found[:most]]) + more)


def _series(trace: Any) -> str:
    """One line or map: what it is, its smallest and largest value, the place of the latter."""
    meta = trace.meta
    values = _values(trace, meta)
    if values is None or not np.isfinite(values).any():
        return ""
    fixed: Mapping[str, Any] = meta.get("fixed", {})
    names = [str(fixed[name]) for name in _NAMES if fixed.get(name)]
    if fixed.get("condition"):
        names.insert(0, pair_name((str(fixed["condition"]), fixed.get("reference"))))
    low, high = number(float(np.nanmin(values))), number(float(np.nanmax(values)))
    what = ", ".join(names) or str(trace.name or "values")
    if low == high:
        return f"{what}: {high}."
    return f"{what}: {low} to {high}{_place(trace, meta, int(np.nanargmax(values)))}."


def _values(trace: Any, meta: Mapping[str, Any]) -> np.ndarray | None:
    """All of its values, flat; None where it has none."""
    custom = list(meta.get("custom", []))
    if "value" in custom and trace.customdata is not None:
        every = _array(trace.customdata).reshape(-1, len(custom))
        return np.asarray(every[:, custom.index("value")])
    for axis in ("z", "y", "x"):
        if meta.get(axis) in ("value", "weight") and trace[axis] is not None:
            return _array(trace[axis]).astype(float).ravel()
    return None


def _array(values: Any) -> np.ndarray:
    """Numbers of a trace, also those of a figure that was read back from its file."""
    if not isinstance(values, dict):
        return np.asarray(values)
    flat = np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])
    shape = values.get("shape")
    return flat.reshape([int(n) for n in str(shape).split(",")]) if shape else flat


def _place(trace: Any, meta: Mapping[str, Any], at: int) -> str:
    """Where the value at this flat index stands, by the names of the axes."""
    if "z" in meta:
        width = _array(trace.z).shape[1]
        places = {"y": _array(trace.y)[at // width], "x": _array(trace.x)[at % width]}
    else:
        places = {a: _array(trace[a])[at] for a in "xy" if meta.get(a) not in (None, "value")}
    named = [
        f"{str(meta[axis]).replace('_', ' ')} {meta.get(f'{axis}_labels', {}).get(str(v), v)}"
        for axis, v in places.items()
        if meta.get(axis)
    ]
    return f", largest at {', '.join(named)}" if named else ""
