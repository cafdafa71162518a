"""What the figures read from a run: its pairs, its verdict, and selections of its table.

    headline(run.manifest)                       # ("prompt", "lora")
    verdict(run.manifest).passed                 # True, False, or None when nothing was certified
    rows(run, "relative_l2", "resid_post", pair=("prompt", "lora"), position="last")

Only reading: nothing here draws, and nothing computes a measure.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.certificates import Certificate
from interp.plots.text import Pair, pair_name
from interp.results import Run

if TYPE_CHECKING:
    import pandas as pd

Manifest = Mapping[str, Any]


class NotMeasured(LookupError):
    """The run has no rows for a figure; the message says which."""


@dataclass(frozen=True)
class Verdict:
    """What the match certificate says of the headline pair.

    `passed` is None without one; `warning` heads every title where outputs were not matched.
    """

    passed: bool | None
    text: str
    warning: str = ""


def headline(manifest: Manifest) -> Pair | None:
    """The pair the study is about."""
    return _pair(manifest.get("headline"))


def null_pair(manifest: Manifest) -> Pair | None:
    """The control's pair drawn beside the headline: a control in the place of one side."""
    return _pair(manifest.get("null_pair"))


def null_control(manifest: Manifest) -> str | None:
    """The condition that stands for a side of the headline in the null pair."""
    pair, null = headline(manifest) or (), null_pair(manifest) or ()
    return next((side for side in null if side not in pair), None)


def _pair(entry: Mapping[str, str] | None) -> Pair | None:
    return (entry["condition"], entry["reference"]) if entry else None


def base_name(manifest: Manifest) -> str | None:
    """The name of the condition that changes nothing."""
    kinds = {name: entry.get("kind") for name, entry in manifest.get("conditions", {}).items()}
    return next((name for name, kind in kinds.items() if kind == "base"), None)


def main_pairs(manifest: Manifest) -> list[Pair]:
    """Headline, its null, and each side of the headline against base.

    Without a headline: every condition against base.
    """
    base, pair = base_name(manifest), headline(manifest)
    if pair is None:
        return [(name, base) for name in manifest.get("conditions", {}) if name != base]
    sides = [(side, base) for side in pair if side and base and side != base]
    null = null_pair(manifest)
    found = [pair, *([null] if null else []), *sides]
    return list(dict.fromkeys(found))


def main_conditions(manifest: Manifest) -> list[str]:
    """The headline's two, base, and the null's control; all conditions without a headline."""
    pair = headline(manifest)
    if pair is None:
        return list(manifest.get("conditions", {}))
    found = [*pair, base_name(manifest), null_control(manifest)]
    return list(dict.fromkeys(name for name in found if name))


def nulls(manifest: Manifest) -> dict[str, Pair]:
    """Control -> the pair that stands for it beside the headline; the null pair alone without a
    battery."""
    found = {e["control"]: (e["condition"], e["reference"]) for e in manifest.get("nulls") or []}
    null, control = null_pair(manifest), null_control(manifest)
    return found or ({control: null} if null and control else {})


def floors(manifest: Manifest) -> list[Pair]:
    """Pairs within a family of the headline: how far apart two of a kind are."""
    return [(a, b) for a, b in manifest.get("floors") or []]


def exchanged(run: Run) -> Run:
    """The run with the two conditions of its interchange as headline, and that part's n and
    interval: so names, colours, certificate and captions are theirs. `NotMeasured` without one."""
    found, manifest = run.manifest.get("interchange"), run.manifest
    if not found:
        raise NotMeasured("this run has no interchange: make it with `interp patch`")
    count = found["interval"]["replicates"]
    pair = {name: found[name] for name in ("condition", "reference")}
    null, control = manifest.get("null_pair") or {}, null_control(manifest)
    kept = any(pair[side] == name for side, name in null.items() if name != control)
    changes = {
        "headline": pair,
        "null_pair": null if kept else None,
        "queries": {**manifest.get("queries", {}), "matched": found["n"]},
        "interval": {**manifest["interval"], "replicates": count} if count else None,
    }
    return Run(run.path, run.table, run.arrays, {**manifest, **changes})


def families(manifest: Manifest) -> dict[str, list[str]]:
    """Family -> its conditions."""
    return dict(manifest.get("families") or {})


def family_pairs(manifest: Manifest) -> list[Pair]:
    """Pairs of families as the table has them, that of the headline first."""
    found = families(manifest)
    pair = headline(manifest) or ()
    home = {name for name, members in found.items() if set(members) & set(pair)}
    pairs: list[Pair] = list(itertools.combinations(found, 2))
    return sorted(pairs, key=lambda two: -len(home & set(two)))


def ordered(manifest: Manifest, present: Iterable[Pair]) -> list[Pair]:
    """These pairs with the main ones first, then the nulls and the floors."""
    found = list(dict.fromkeys(present))
    known = [*main_pairs(manifest), *nulls(manifest).values(), *floors(manifest)]
    first = [pair for pair in dict.fromkeys(known) if pair in found]
    return [*first, *(pair for pair in found if pair not in first)]


def role(pair: Pair, manifest: Manifest) -> str:
    """The pair's name with its part in the study."""
    part = dict.fromkeys(floors(manifest), " (within family)")
    part |= dict.fromkeys(nulls(manifest).values(), " (control)")
    if null := null_pair(manifest):
        part[null] = " (null control)"
    if first := headline(manifest):
        part[first] = " (headline)"
    return pair_name(pair) + part.get(pair, "")


def rows(
    run: Run,
    measure: str,
    site: str,
    pair: Pair | None = None,
    position: str | None = None,
    queries: str = "matched",
) -> pd.DataFrame:
    """Rows of one measure at one site, narrowed as far as given."""
    table = _split(run.table).get((measure, site))
    if table is None:
        return run.table.iloc[:0]
    keep = table["queries"] == queries
    if position is not None:
        keep &= table["position"] == position
    if pair is not None:
        condition, reference = pair
        same = table["reference"].isna() if reference is None else table["reference"] == reference
        keep &= (table["condition"] == condition) & same
    return table[keep.fillna(False)]


_SPLITS: dict[int, tuple[weakref.ref[Any], dict[tuple[str, str], Any]]] = {}


def _split(table: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """The table by measure and site, made once per table: figures ask for hundreds of selections,
    and a run with families has some hundred thousand rows."""
    kept = _SPLITS.get(id(table))
    if kept is not None and kept[0]() is table:
        return kept[1]
    grouped = table.groupby(["measure", "site"], sort=False)
    parts = {(str(m), str(s)): part for (m, s), part in grouped}
    _SPLITS[id(table)] = (weakref.ref(table), parts)
    weakref.finalize(table, _SPLITS.pop, id(table), None)
    return parts


def compared(frame: pd.DataFrame, manifest: Manifest) -> list[Pair]:
    """The pairs of these rows to set side by side: headline and null, else the sides alone."""
    found = frame[["condition", "reference"]].drop_duplicates()
    present: list[Pair] = [
        (str(c), None if r is None or r != r else str(r))
        for c, r in found.astype(object).where(found.notna(), None).itertuples(index=False)
    ]
    pair, null = headline(manifest), null_pair(manifest)
    if pair is not None and pair in present:
        return [p for p in (pair, null) if p in present]
    sides = [*pair, null_control(manifest)] if pair else []
    wanted = [p for side in dict.fromkeys(sides) for p in present if p[0] == side]
    return wanted or [p for p in main_pairs(manifest) if p in present][:3] or present[:3]


def certificates(manifest: Manifest, pair: Pair | None) -> list[dict[str, Any]]:
    """The certificates of a pair, matched queries first."""
    found = [
        c for c in manifest.get("certificates", []) if (c["condition"], c["reference"]) == pair
    ]
    return sorted(found, key=lambda c: c["queries"] != "matched")


def verdict(manifest: Manifest, pair: Pair | None = None) -> Verdict:
    """The certificate of a pair, the headline without one, in one line."""
    pair = pair or headline(manifest)
    if pair is None:
        return Verdict(None, "NOT CERTIFIED: the run names no headline pair")
    found = certificates(manifest, pair) or certificates(manifest, (str(pair[1]), pair[0]))
    if not found:
        return Verdict(None, f"NOT CERTIFIED: no match certificate for {pair_name(pair)}")
    failed = [str(entry["queries"]) for entry in found if not entry["passed"]]
    parts = "; ".join(
        f"{entry['queries']}{'' if entry['passed'] else ' FAIL'}: {numbers(entry)}"
        for entry in found
    )
    where = "" if len(failed) == len(found) else f" ON {' AND '.join(failed).upper()}"
    return Verdict(
        not failed,
        f"{'FAIL' if failed else 'PASS'} {pair_name(pair)}, {parts}",
        f"OUTPUTS NOT MATCHED{where}" if failed else "",
    )


def numbers(entry: Mapping[str, Any]) -> str:
    """A certificate's numbers beside their tolerance."""
    return Certificate.of(entry).numbers


def interval(manifest: Manifest) -> str:
    """How the intervals were made, in words."""
    entry = manifest.get("interval")
    if not entry:
        return "no intervals"
    percent = f"{100 * entry['level']:g} %"
    return f"{percent} interval, {entry['method']}, {entry['replicates']} replicates"
