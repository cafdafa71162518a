"""What `interp ladder` found of a run: the lowest rung that suffices, by map and layer.

    of = load_run("RUN").ladder                     # NotMeasured where `interp ladder` was not run
    of.enough("base", "lora", into="source")        # layer, rung, recovery with its interval
    print("\\n".join(of.words))

A rung suffices where the whole interval of its shortfall, the recovery of full interchange less its
own, stays within the margin. Queries decide that no map was fitted on: the held-out ones where the
run has some, else the half of the matched ones that was not fitted on. Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from interp.names import Pair
from interp.runs.view import NotMeasured, Run
from interp.showing import number

if TYPE_CHECKING:
    import pandas as pd

STREAM_SITE = "resid_post"
"""Where states are mapped; a row's site is this and the rung."""

UNMAPPED, INTERCHANGED = "none", "full"
"""The rungs below and above all maps."""

Receiver = Literal["target", "source"]
"""In whose run a mapped state goes on."""

MEASURE_PREFIX = {"target": "mapped", "source": "steered"}
"""Where a mapped state goes on -> how its measures begin."""

OUTCOMES = {
    "as it is": "no map is needed",
    "nothing": "full interchange itself recovers no more than the margin",
    "matched": "both say the same already",
    "no rung": "no rung suffices",
    "unknown": "not measured",
}
"""What stands in the place of a rung where none is named."""


_NAN = float("nan")
_KEY = ("measure", "condition", "reference", "site", "position", "queries")


class Enough(NamedTuple):
    """What suffices at a layer: a rung, or one of `OUTCOMES`; the recovery of that rung (of the
    freest where none suffices) with its interval, and that of full interchange; `unmapped`: the KL
    without a map, nats per answer."""

    layer: int
    rung: str
    value: float
    ci_low: float
    ci_high: float
    full: float
    unmapped: float


@dataclass(frozen=True)
class Laddered:
    """The rows of a ladder, and its findings."""

    run: Run
    found: Mapping[str, Any]

    @classmethod
    def of(cls, run: Run) -> Laddered:
        """The run's ladder; `NotMeasured` without one."""
        found = run.manifest.get("ladder")
        if not found:
            raise NotMeasured("this run has no ladder: make it with `interp ladder`")
        return cls(run, found)

    @property
    def maps(self) -> list[tuple[str, str, str]]:
        """(source, target, kind) of every map: `base`, `pair`, `within` a family, `nulls`."""
        return [(m["source"], m["target"], m["kind"]) for m in self.found["maps"]]

    @property
    def rungs(self) -> list[str]:
        """The maps, in the order of their freedom."""
        return [str(name) for name in self.found["rungs"][1:-1]]

    @property
    def layers(self) -> list[int]:
        """Where maps were fitted."""
        return [int(layer) for layer in self.found["layers"]]

    @property
    def positions(self) -> list[str]:
        """All tokens, and segments."""
        return [str(name) for name in self.found["positions"]]

    @property
    def margin(self) -> float:
        """How far below full interchange a rung may stay."""
        return float(self.found["margin"])

    @property
    def pair(self) -> tuple[str, str] | None:
        """The two conditions that are compared; None where there is one beside base."""
        a, b = self.found["condition"], self.found["reference"]
        return None if b is None else (a, b)

    @property
    def sides(self) -> list[str]:
        """The conditions that are compared, base aside."""
        return [name for name in (self.found["condition"], self.found["reference"]) if name]

    @property
    def deciding(self) -> str:
        """The group of queries that decides."""
        return "heldout" if self.found["n"].get("heldout") else "matched"

    def nulls_of(self, source: str, target: str) -> list[Pair]:
        """The maps with a control in the place of one of these two."""
        stands = self.found["stand_ins"].items()
        swapped = [
            (c if source == side else source, c if target == side else target) for c, side in stands
        ]
        known = {(a, b) for a, b, _ in self.maps}
        return [pair for pair in swapped if pair in known and pair != (source, target)]

    def rows(
        self,
        measure: str,
        source: str,
        target: str,
        rung: str,
        position: str = "all",
        queries: str | None = None,
    ) -> pd.DataFrame:
        """Rows of one measure of one map and rung, in layer order; of the deciding queries where
        none are named."""
        site, group = f"{STREAM_SITE}:{rung}", queries or self.deciding
        frame = self.run.rows(measure, site, (source, target), position, group)
        return frame.sort_values("layer")

    # --- what suffices ---------------------------------------------------------------------------

    @cached_property
    def _records(self) -> dict[tuple[str, ...], dict[int, dict[str, Any]]]:
        """(measure, source, target, site, position, queries) -> layer -> its row: read once, for
        hundreds of selections."""
        table = self.run.table
        kept = table[table["measure"].str.match("mapped_|steered_").fillna(False)]
        found: dict[tuple[str, ...], dict[int, dict[str, Any]]] = {}
        for row in kept.to_dict("records"):
            key = tuple(str(row[name]) for name in _KEY)
            found.setdefault(key, {})[int(row["layer"])] = row
        return found

    def enough(
        self,
        source: str,
        target: str,
        position: str = "all",
        into: Receiver = "target",
        queries: str | None = None,
    ) -> list[Enough]:
        """Layer by layer, the lowest rung that suffices; nothing where the map was not scored in
        that run or at that position. `NotMeasured` where there is no such map."""
        if (source, target) not in {(a, b) for a, b, _ in self.maps}:
            raise NotMeasured(f"this run has no map from {source} to {target} in its ladder")
        pair, place = (source, target), (position, queries or self.deciding)

        def by_layer(measure: str, rung: str) -> Mapping[int, Any]:
            key = (f"{MEASURE_PREFIX[into]}_{measure}", *pair, f"{STREAM_SITE}:{rung}", *place)
            return self._records.get(key, {})

        short = {rung: by_layer("shortfall", rung) for rung in [UNMAPPED, *self.rungs]}
        recovery = {rung: by_layer("recovery", rung) for rung in [*self.rungs, INTERCHANGED]}
        kl = by_layer("kl", UNMAPPED)
        return [self._at(layer, short, recovery, kl, into) for layer in self.layers if layer in kl]

    def _at(
        self,
        layer: int,
        short: Mapping[str, Mapping[int, Any]],
        recovery: Mapping[str, Mapping[int, Any]],
        kl: Mapping[int, Any],
        into: Receiver,
    ) -> Enough:
        unmapped = float(kl[layer]["value"])
        undefined = Enough(layer, "unknown", _NAN, _NAN, _NAN, _NAN, unmapped)
        full = recovery[INTERCHANGED][layer]["value"]
        if full != full:
            if unmapped != unmapped:
                return undefined
            return undefined._replace(rung="as it is" if into == "target" else "matched")
        if self._suffices(short[UNMAPPED][layer]):
            return undefined._replace(rung="nothing", full=full)
        fitted = [
            name for name in self.rungs
            if recovery[name][layer]["value"] == recovery[name][layer]["value"]
        ]  # fmt: skip
        enough = next((name for name in fitted if self._suffices(short[name][layer])), None)
        shown = enough or (fitted[-1] if fitted else None)
        if shown is None:
            return undefined._replace(full=full)
        row = recovery[shown][layer]
        value, low, high = (float(row[name]) for name in ("value", "ci_low", "ci_high"))
        return Enough(layer, enough or "no rung", value, low, high, float(full), unmapped)

    def _suffices(self, row: Mapping[str, Any]) -> bool:
        """Whether a shortfall, its interval included where there is one, is within the margin."""
        end = row["ci_high"] if self.found["interval"]["replicates"] else row["value"]
        return bool(end <= self.margin)

    # --- in words --------------------------------------------------------------------------------

    def ranges(
        self, source: str, target: str, position: str = "all", into: Receiver = "target"
    ) -> list[str]:
        """What suffices, by ranges of layers, with the least recovery among them."""
        return [*_ranges(self.enough(source, target, position, into))]

    @property
    def words(self) -> list[str]:
        """A sentence for every map at all tokens, and in base's own run where it was steered there;
        nulls last."""
        found = []
        for source, target, kind in self.maps:
            for into in ("target", "source"):
                layers = self.enough(source, target, into=into)
                if layers:
                    found.append(self._sentence(source, target, kind, into, layers))
        return found

    def _sentence(
        self, source: str, target: str, kind: str, into: str, layers: Sequence[Enough]
    ) -> str:
        where = f"in {target}'s run" if into == "target" else f"in {source}'s own run"
        null = " (null)" if kind == "nulls" else ""
        signed = f" Outputs: {self._signed(source, target)}." if kind in ("pair", "within") else ""
        return f"{source} → {target}{null}, {where}: {'; '.join(_ranges(layers))}.{signed}"

    def _signed(self, source: str, target: str) -> str:
        passed = self.run.verdict((source, target)).passed
        return {True: "PASS", False: "FAIL, not matched", None: "not certified"}[passed]


def _ranges(layers: Sequence[Enough]) -> Iterator[str]:
    """Neighbouring layers at which the same rung suffices, with the least recovery among them."""
    for rung, group in groupby(layers, key=lambda one: one.rung):
        some = list(group)
        yield f"{_where([one.layer for one in some])}, {_said(rung, some)}"


def _where(layers: Sequence[int]) -> str:
    """`layers 2 to 5`; each by its number where those between were not fitted."""
    first, last = layers[0], layers[-1]
    if first == last:
        return f"layer {first}"
    whole = last - first + 1 == len(layers)
    return f"layers {first} to {last}" if whole else f"layers {', '.join(map(str, layers))}"


def _said(rung: str, some: Sequence[Enough]) -> str:
    """What suffices at some layers, with the most that it may cost, or the least it recovers."""
    several = len(some) > 1
    if rung in ("as it is", "matched"):
        most = number(max(one.unmapped for one in some))
        return f"{OUTCOMES[rung]} (KL {most} nats{' at most' if several else ''})"
    if rung in ("nothing", "unknown"):
        return OUTCOMES[rung]
    least = with_interval(min(some, key=lambda one: one.value))
    numbers = f"at least {least}" if several else least
    if rung == "no rung":
        return f"{OUTCOMES[rung]} (the freest recovers {numbers})"
    return f"{rung.replace('_', ' ')} suffices (recovers {numbers})"


def with_interval(one: Enough) -> str:
    """`0.93 [0.90, 0.95]`, and of what where full interchange recovers less than all."""
    known = one.ci_low == one.ci_low
    ends = f" [{number(one.ci_low)}, {number(one.ci_high)}]" if known else ""
    full = "" if round(one.full, 3) == 1 else f" of {number(one.full)}"
    return f"{number(one.value)}{ends}{full}"
