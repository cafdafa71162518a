"""What the figures read from a run: its pairs, its verdict, and selections of its table.

    headline(run.manifest)                       # ("prompt", "lora")
    verdict(run.manifest).passed                 # True, False, or None when nothing was certified
    rows(run, "relative_l2", "resid_post", pair=("prompt", "lora"), position="last")

Only reading: nothing here draws, and nothing computes a measure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from interp.plots.text import Pair, number, pair_name
from interp.results import Run

if TYPE_CHECKING:
    import pandas as pd

Manifest = Mapping[str, Any]

HEAD_SITES = {
    "content_js": "pattern",
    "prefix_mass": "pattern",
    "entropy": "pattern",
    "content_entropy": "pattern",
    "rewiring_share": "pattern",
    "sim_am": "attn_scores",
    "sim_am_delta": "attn_scores",
    "relative_l2": "z",
    "cosine": "z",
    "delta_alignment": "z",
    "delta_norm_ratio": "z",
}
"""Where each measure of a head is found."""

NAMES = {
    "relative_l2": "relative L2 distance",
    "cosine": "cosine similarity",
    "delta_alignment": "delta alignment (cosine)",
    "delta_norm_ratio": "delta norm ratio",
    "content_js": "content JS divergence",
    "prefix_mass": "prefix mass",
    "entropy": "attention entropy",
    "content_entropy": "content entropy",
    "sim_am": "score similarity (cosine)",
    "sim_am_delta": "score-change similarity (cosine)",
    "rewiring_share": "re-wiring share",
    "js_divergence": "JS divergence",
    "top1_agreement": "top-1 agreement",
    "kl_divergence": "KL divergence",
    "rec2ftp": "Rec2FTP",
}

SIGNED = {"cosine", "delta_alignment", "sim_am", "sim_am_delta"}
"""Measures whose zero is the middle of their range."""


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
    """The control drawn beside the headline."""
    return _pair(manifest.get("null_pair"))


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


def role(pair: Pair, manifest: Manifest) -> str:
    """The pair's name with its part in the study."""
    part = {headline(manifest): " (headline)", null_pair(manifest): " (null control)"}
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
    table = run.table
    keep = (table["measure"] == measure) & (table["site"] == site) & (table["queries"] == queries)
    if position is not None:
        keep &= table["position"] == position
    if pair is not None:
        condition, reference = pair
        same = table["reference"].isna() if reference is None else table["reference"] == reference
        keep &= (table["condition"] == condition) & same
    return table[keep.fillna(False)]


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
    sides = [pair[0], pair[1], null[0] if null else None] if pair else []
    wanted = [p for side in dict.fromkeys(sides) for p in present if p[0] == side]
    return wanted or [p for p in main_pairs(manifest) if p in present][:3] or present[:3]


def certificates(manifest: Manifest, pair: Pair | None) -> list[dict[str, Any]]:
    """The certificates of a pair, matched queries first."""
    found = [
        c for c in manifest.get("certificates", []) if (c["condition"], c["reference"]) == pair
    ]
    return sorted(found, key=lambda c: c["queries"] != "matched")


def verdict(manifest: Manifest) -> Verdict:
    """The headline's certificate in one line."""
    pair = headline(manifest)
    if pair is None:
        return Verdict(None, "NOT CERTIFIED: the run names no headline pair")
    found = certificates(manifest, pair)
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
    """A certificate's numbers beside their tolerance; a number that is missing is undefined."""
    js, top = entry["mean_js"], entry["top1_agreement"]
    js_limit, top_limit = entry["tolerance_js"], entry["tolerance_top1"]
    js_sign = "≤" if js is not None and js <= js_limit else ">"
    top_sign = "≥" if top is not None and top >= top_limit else "<"
    if js is None or top is None:
        js_sign = top_sign = "against"
    return (
        f"mean JS {number(js)} {js_sign} {js_limit:g} nats, "
        f"top-1 {number(top)} {top_sign} {top_limit:g}, n = {entry['n']}"
    )


def interval(manifest: Manifest) -> str:
    """How the intervals were made, in words."""
    entry = manifest.get("interval")
    if not entry:
        return "no intervals"
    percent = f"{100 * entry['level']:g} %"
    return f"{percent} interval, {entry['method']}, {entry['replicates']} replicates"


def units(frame: pd.DataFrame) -> str:
    """` [nats]`, or nothing for a plain ratio."""
    found = [u for u in frame["units"].dropna().unique() if u not in ("", "1")]
    return f" [{found[0]}]" if found else ""
