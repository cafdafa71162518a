"""Which measures a run computes: groups by name, presets, and what each group needs.

    chosen(["content_js", "pinned-inputs"])     # {"content_js", "rewiring_share", ...}
    computed(chosen(["content_js"]))            # {"patterns"}: the groups that are computed

A group is what is computed, or left out, together (`interp.capabilities` withholds the same ones).
Torch-free.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from interp.errors import ConfigError
from interp.registry import MEASURES, SECTIONS, Measure

_WHOLE = {
    "Output": "output",
    "States": "states",
    "Geometry of queries": "geometry",
    "Families": "families",
}
"""Sections of the documentation whose measures are one group."""

_ELSEWHERE = {
    "Interchange and ablation": "interp patch",
    "Subspaces": "interp subspace",
    "Edges": "interp edges",
    "Equivalence ladder": "interp ladder",
    "Weights": "interp weights",
    "Readings of differences": "interp read",
    "A LoRA's own variables": "interp read",
}
"""Sections that other commands measure."""

GROUP_OF: dict[str, str] = {
    name: measure.group or _WHOLE[section]
    for section, measures in SECTIONS.items()
    if section not in _ELSEWHERE
    for name, measure in measures.items()
}
"""Every measure of `interp diverge` -> its group, in the order in which a reader meets them."""

ALL_GROUPS = tuple(dict.fromkeys(GROUP_OF.values()))

NEEDS = {
    "scores": ("patterns",),
    "pinned inputs": ("patterns",),
    "change decomposition": ("pinned inputs",),
    "score split": ("scores", "pinned inputs"),
}
"""What compares, or splits, what another group reads."""

_PINNED = ("pinned inputs", "change decomposition", "score split")

PRESETS = {
    "quick": frozenset(ALL_GROUPS) - {*_PINNED, "geometry"},
    "full": frozenset(ALL_GROUPS) - {"score split"},
}
"""Preset -> its groups."""


def measures_of(groups: Collection[str]) -> frozenset[str]:
    """The measures of these groups."""
    return frozenset(name for name, group in GROUP_OF.items() if group in groups)


def chosen(names: Iterable[str]) -> frozenset[str]:
    """The measures that names of measures and groups stand for; a `ConfigError` that says the
    nearest name of one that there is not."""
    found: set[str] = set()
    for name in names:
        found |= {name} if name in GROUP_OF else measures_of({_group(name)})
    return frozenset(found)


def _group(name: str) -> str:
    """A group by its name, whose words may be joined by - or _."""
    group = name.strip().lower().replace("-", " ").replace("_", " ")
    if group in ALL_GROUPS:
        return group
    for section, command in _ELSEWHERE.items():
        if name in SECTIONS[section]:
            raise ConfigError(f"{name} is measured of a finished run: {command} RUN")
    known = [*(one.replace(" ", "-") for one in ALL_GROUPS), *GROUP_OF]
    near = difflib.get_close_matches(name.strip().lower(), known, 1)
    raise ConfigError(
        f"no measure or group {name!r}"
        + (
            f"; did you mean {near[0]}?"
            if near
            else f": groups are {', '.join(known[: len(ALL_GROUPS)])}"
        )
    )


def known_measure(name: str) -> Measure:
    """The record of a measure; a `ConfigError` that says the nearest name of one that there is
    not."""
    if name in MEASURES:
        return MEASURES[name]
    near = difflib.get_close_matches(name.strip().lower(), MEASURES, 1, 0.5)
    raise ConfigError(
        f"no measure {name!r}; "
        + (f"did you mean {near[0]}?" if near else "interp.registry.MEASURES names all")
    )


def computed(measures: Iterable[str]) -> frozenset[str]:
    """The groups that are computed for these measures: theirs, and what these need."""
    groups, found = {GROUP_OF[name] for name in measures}, set[str]()
    while groups:
        found |= groups
        groups = {needed for group in groups for needed in NEEDS.get(group, ())} - found
    return frozenset(found)


def measure_of(row: str) -> str:
    """The measure that a row of a table is of: its chance level and its calibrated value too."""
    return row.removesuffix("_chance").removesuffix("_calibrated")
