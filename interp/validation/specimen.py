"""One model under a prompt and under adapters whose places are known, opened for its checks.

specimen = open_specimen("path/to/model", Path("scratch"), adapter="path/to/lora")
specimen.planted["q.0"]                # the place of the adapter of this condition
specimen.observed["prompt"].pinned     # see `interp.observe`
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from interp.capabilities import find
from interp.conditions import Base, Condition, Lora, Prompt
from interp.measures.plan import Observed
from interp.observe import observe
from interp.queries import Encoded, Query, encode
from interp.readout import LastStates
from interp.subject import Batch, Subject, load
from interp.validation.planted import FIRST, PlantedPlace, places_of, plant

_PROMPT = Prompt(text="hot is the opposite of cold.")
_TEXTS = ("up is the opposite of", "a river is wide; a hill is high", "the")

_HUB = ("revision", "trust_remote_code", "gguf_file")

_ADAPTER, BOTH = "adapter", "both"
"""Conditions of the user's own LoRA, alone and after the prompt (without one: a planted one's)."""


@dataclass(frozen=True)
class Specimen:
    """A parity-checked subject with its queries; `planted`: condition -> place of its adapter."""

    subject: Subject
    queries: Sequence[Encoded]
    planted: dict[str, PlantedPlace]

    @cached_property
    def batch(self) -> Batch:
        return Batch.of(self.queries, self.subject.device)

    @cached_property
    def caches(self) -> dict[str, Any]:
        settings = self.subject.settings
        return {name: self.subject.prefill(setting) for name, setting in settings.items()}

    @cached_property
    def runs(self) -> tuple[dict[str, Observed], dict[str, LastStates]]:
        return observe(self.subject, self.batch, self.caches, "base", self.withheld)

    @cached_property
    def withheld(self) -> dict[str, str]:
        """What this model does not allow to measure, and why."""
        return find(self.subject, self.queries)

    @property
    def observed(self) -> dict[str, Observed]:
        return self.runs[0]

    @property
    def last(self) -> dict[str, LastStates]:
        return self.runs[1]


def open_specimen(model: str, folder: Path, adapter: str | None = None, **options: Any) -> Specimen:
    """Plant one adapter per part and per part's head in the middle block, load, check parity."""
    hub = {key: options[key] for key in _HUB if key in options}
    planted = _chosen(places_of(model, **hub))
    adapters = {
        name: plant(model, folder / name, {place: 1.0}, seed)
        for seed, (name, place) in enumerate(planted.items())
    }
    conditions: dict[str, Condition] = {"base": Base(), "prompt": _PROMPT}
    conditions |= {name: Lora(path) for name, path in adapters.items()}
    own = adapter or next(iter(adapters.values()))
    if adapter is not None:
        conditions[_ADAPTER] = Lora(own)
    conditions[BOTH] = _PROMPT + Lora(own)
    subject = load(model, conditions, _TEXTS[:1], **options)
    return Specimen(subject, encode(map(Query, _TEXTS), subject.tokenizer), planted)


def _chosen(places: Sequence[PlantedPlace]) -> dict[str, PlantedPlace]:
    """In the middle block: every part whole, and one head of each; condition -> place. What it
    lacks is planted in the nearest block that has it."""
    middle = max(place.layer for place in places) // 2
    own: dict[str, list[PlantedPlace]] = {}
    for place in sorted(places, key=lambda place: abs(place.layer - middle)):
        its = own.setdefault(place.part, [])
        if not its or its[0].layer == place.layer:
            its.append(place)
    whole = {part: own[part][0] for part in FIRST if part in own}
    slices = [own[part][-1] for part in whole if own[part][-1].head is not None]
    return whole | {f"{place.part}.{place.head}": place for place in slices}
