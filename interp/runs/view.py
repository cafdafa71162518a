"""A run as its readers see it: its pairs, its verdict, selections of its table.

    run = interp.load_run("RUN")
    run.headline                                 # ("prompt", "lora")
    run.verdict().passed                         # True, False, or None when nothing was certified
    run.rows("relative_l2", "resid_post", run.headline, "last")
    run.arrays["gram_resid_post"].sel(queries="matched")

Only reading: nothing here draws, and nothing computes a measure. Torch-free.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.certificates import Certificate
from interp.errors import RunError
from interp.names import Pair, pair_name
from interp.runs import files
from interp.runs.largest import Largest, largest, standing
from interp.showing import HtmlTable, html_page

if TYPE_CHECKING:  # pandas and xarray take most of a second to import: only when a run is opened
    import pandas as pd
    import xarray as xr

    from interp.runs.edges import FoundEdges
    from interp.runs.ladder import Laddered
    from interp.runs.patched import Patched
    from interp.runs.readings import Readings
    from interp.runs.subspaces import FoundSubspaces
    from interp.runs.weights import Weighed


HEADLINE = " (headline)"
"""What `Run.role` adds to the name of the headline."""


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


@dataclass(frozen=True)
class Run:
    """A verified run: `table` (pandas), `arrays` (xarray, by name), `manifest`, and its folder.

    A pair is (condition, reference); the reference is None for a measure of one condition.
    """

    path: Path
    table: pd.DataFrame
    arrays: dict[str, xr.DataArray]
    manifest: dict[str, Any]

    # --- its conditions and pairs ----------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return int(self.manifest["model"]["n_layers"])

    @property
    def n_heads(self) -> int:
        """Heads of a layer."""
        return int(self.manifest["model"]["n_heads"])

    @property
    def conditions(self) -> dict[str, dict[str, Any]]:
        """Condition -> what the manifest says of it: kind, description, tokens before the query."""
        return dict(self.manifest.get("conditions", {}))

    @property
    def base(self) -> str | None:
        """The name of the condition that changes nothing."""
        return next((c for c, own in self.conditions.items() if own.get("kind") == "base"), None)

    @property
    def headline(self) -> Pair | None:
        """The pair the study is about."""
        return self._pair("headline")

    @property
    def null_pair(self) -> Pair | None:
        """The control's pair drawn beside the headline: a control in the place of one side."""
        return self._pair("null_pair")

    def _pair(self, entry: str) -> Pair | None:
        found = self.manifest.get(entry)
        return (found["condition"], found["reference"]) if found else None

    @property
    def null_control(self) -> str | None:
        """The condition that stands for a side of the headline in the null pair."""
        pair = self.headline or ()
        return next((side for side in self.null_pair or () if side not in pair), None)

    @property
    def beside_null(self) -> list[Pair]:
        """The headline, and its null where there is one."""
        return [pair for pair in (self.headline, self.null_pair) if pair is not None]

    @property
    def main_pairs(self) -> list[Pair]:
        """Headline, its null, and each side of the headline against base.

        Without a headline: every condition against base.
        """
        base, pair = self.base, self.headline
        if pair is None:
            return [(name, base) for name in self.conditions if name != base]
        sides = [(side, base) for side in pair if side and base and side != base]
        return list(dict.fromkeys([*self.beside_null, *sides]))

    @property
    def main_conditions(self) -> list[str]:
        """The headline's two, base, and the null's control; all conditions without a headline."""
        if self.headline is None:
            return list(self.conditions)
        found = [*self.headline, self.base, self.null_control]
        return list(dict.fromkeys(name for name in found if name))

    @property
    def nulls(self) -> dict[str, Pair]:
        """Control -> the pair that stands for it beside the headline; the null pair alone without
        further null controls."""
        entries = self.manifest.get("nulls") or []
        found = {e["control"]: (e["condition"], e["reference"]) for e in entries}
        null, control = self.null_pair, self.null_control
        return found or ({control: null} if null and control else {})

    @property
    def floors(self) -> list[Pair]:
        """Pairs within a family of the headline: how far apart two of a kind are."""
        return [(a, b) for a, b in self.manifest.get("floors") or []]

    @property
    def families(self) -> dict[str, list[str]]:
        """Family -> its conditions."""
        return dict(self.manifest.get("families") or {})

    @property
    def family_pairs(self) -> list[Pair]:
        """Pairs of families as the table has them, that of the headline first."""
        pair, found = self.headline or (), self.families
        home = {name for name, members in found.items() if set(members) & set(pair)}
        pairs: list[Pair] = list(itertools.combinations(found, 2))
        return sorted(pairs, key=lambda two: -len(home & set(two)))

    def ordered(self, present: Iterable[Pair]) -> list[Pair]:
        """These pairs with the main ones first, then the nulls and the floors."""
        found = list(dict.fromkeys(present))
        known = [*self.main_pairs, *self.nulls.values(), *self.floors]
        first = [pair for pair in dict.fromkeys(known) if pair in found]
        return [*first, *(pair for pair in found if pair not in first)]

    def role(self, pair: Pair) -> str:
        """The pair's name with its part in the study."""
        part = dict.fromkeys(self.floors, " (within family)")
        part |= dict.fromkeys(self.nulls.values(), " (control)")
        if null := self.null_pair:
            part[null] = " (null control)"
        if first := self.headline:
            part[first] = HEADLINE
        return pair_name(pair) + part.get(pair, "")

    # --- its numbers -----------------------------------------------------------------------------

    def rows(
        self,
        measure: str,
        site: str,
        pair: Pair | None = None,
        position: str | None = None,
        queries: str = "matched",
        heads: bool | None = None,
    ) -> pd.DataFrame:
        """Rows of one measure at one site, narrowed as far as given; `heads`: those of single heads
        alone, or those of whole layers alone."""
        table = self._parts.get((measure, site))
        if table is None:
            return self.table.iloc[:0]
        keep = table["queries"] == queries
        if position is not None:
            keep &= table["position"] == position
        if pair is not None:
            keep &= _is_of(table, pair)
        if heads is not None:
            keep &= table["head"].notna() == heads
        return table[keep.fillna(False)]

    def by_layer(
        self, measure: str, site: str, pair: Pair, position: str, queries: str = "matched"
    ) -> pd.DataFrame:
        """A pair's rows of whole layers, in layer order; empty where no value is defined."""
        frame = self.rows(measure, site, pair, position, queries, heads=False)
        frame = frame[frame["layer"].notna()].sort_values("layer")
        return frame if frame["value"].notna().any() else frame.iloc[:0]

    @cached_property
    def _parts(self) -> dict[tuple[str, str], pd.DataFrame]:
        """The table by measure and site: figures ask for hundreds of selections, and a run with
        families has some hundred thousand rows. Texts are Python's: Arrow's are slow to cut."""
        texts = dict.fromkeys(self.table.select_dtypes("string"), "string[python]")
        grouped = self.table.astype(texts).groupby(["measure", "site"], sort=False)
        return {(str(m), str(s)): part for (m, s), part in grouped}

    def compared(self, frame: pd.DataFrame) -> list[Pair]:
        """The pairs of these rows to set side by side: headline and null, else the sides alone."""
        found = frame[["condition", "reference"]].drop_duplicates()
        present: list[Pair] = [
            (str(c), None if r is None or r != r else str(r))
            for c, r in found.astype(object).where(found.notna(), None).itertuples(index=False)
        ]
        if self.headline is not None and self.headline in present:
            return [p for p in self.beside_null if p in present]
        sides = [*self.headline, self.null_control] if self.headline else []
        wanted = [p for side in dict.fromkeys(sides) for p in present if p[0] == side]
        return wanted or [p for p in self.main_pairs if p in present][:3] or present[:3]

    def standing(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Of rows of one measure those that may be called large, in their order."""
        return standing(rows, self._dtype)

    def largest(self, rows: pd.DataFrame) -> Largest:
        """The largest of rows of one measure of one pair that may be called large."""
        return largest(rows, self._dtype)

    @property
    def _dtype(self) -> str:
        return str(self.manifest.get("model", {}).get("dtype", "float32"))

    # --- what vouches for them -------------------------------------------------------------------

    @property
    def certificates(self) -> list[Certificate]:
        """Which conditions say the same, by pair and group of queries; the headline's first."""
        headline = self.manifest.get("headline")
        found = sorted(
            self.manifest.get("certificates", []),
            key=lambda entry: not (headline and headline.items() <= entry.items()),
        )
        return [Certificate.of(entry) for entry in found]

    def certified(self, pair: Pair | None) -> list[dict[str, Any]]:
        """The manifest's certificates of a pair, matched queries first."""
        entries = self.manifest.get("certificates", [])
        found = [c for c in entries if (c["condition"], c["reference"]) == pair]
        return sorted(found, key=lambda c: c["queries"] != "matched")

    def verdict(self, pair: Pair | None = None) -> Verdict:
        """The certificate of a pair, the headline without one, in one line."""
        pair = pair or self.headline
        if pair is None:
            return Verdict(None, "NOT CERTIFIED: the run names no headline pair")
        found = self.certified(pair) or self.certified((str(pair[1]), pair[0]))
        if not found:
            return Verdict(None, f"NOT CERTIFIED: no match certificate for {pair_name(pair)}")
        failed = [str(entry["queries"]) for entry in found if not entry["passed"]]
        alike = len(failed) in (0, len(found))  # then the first word says it of all
        parts = "; ".join(
            f"{entry['queries']}{'' if alike or entry['passed'] else ' FAIL'}: "
            f"{Certificate.of(entry).numbers}"
            for entry in found
        )
        where = "" if alike else f" ON {' AND '.join(failed).upper()}"
        return Verdict(
            not failed,
            f"{'FAIL' if failed else 'PASS'} {pair_name(pair)}, {parts}",
            f"OUTPUTS NOT MATCHED{where}" if failed else "",
        )

    @property
    def interval(self) -> str:
        """How the intervals were made, in words."""
        entry = self.manifest.get("interval")
        if not entry:
            return "no intervals"
        percent = f"{100 * entry['level']:g} %"
        return f"{percent} interval, {entry['method']}, {entry['replicates']} replicates"

    # --- its parts -------------------------------------------------------------------------------

    @property
    def queries(self) -> pd.DataFrame:
        """What was measured: group (`queries`), `query`, `text`, `label`, `ids` from the text's
        first token on, `n_text` of them of the text, and `answer_ids`."""
        return self._beside(files.QUERIES, ["queries", "query", "text", "label", "ids", "n_text"])

    @property
    def answers(self) -> pd.DataFrame:
        """What every condition wrote itself: group (`queries`), `query`, `condition`, `text`,
        `ids`; empty where nothing was written."""
        return self._beside(files.ANSWERS, ["queries", "query", "condition", "text", "ids"])

    def _beside(self, name: str, columns: list[str]) -> pd.DataFrame:
        import pandas as pd

        file = self.path / name
        return pd.read_parquet(file) if file.exists() else pd.DataFrame(columns=columns)

    @property
    def interchange(self) -> Patched:
        """What `interp patch` found; `NotMeasured` without it."""
        from interp.runs.patched import Patched

        return Patched.of(self)

    @property
    def weights(self) -> Weighed:
        """What `interp weights` found; `NotMeasured` without it."""
        from interp.runs.weights import Weighed

        return Weighed.of(self)

    @property
    def reading(self) -> Readings:
        """What `interp read` found; `NotMeasured` without it."""
        from interp.runs.readings import Readings

        return Readings.of(self)

    @property
    def subspaces(self) -> FoundSubspaces:
        """What `interp subspace` found; `NotMeasured` without it."""
        from interp.runs.subspaces import FoundSubspaces

        return FoundSubspaces.of(self)

    @property
    def edges(self) -> FoundEdges:
        """What `interp edges` found; `NotMeasured` without it."""
        from interp.runs.edges import FoundEdges

        return FoundEdges.of(self)

    @property
    def ladder(self) -> Laddered:
        """What `interp ladder` found; `NotMeasured` without it."""
        from interp.runs.ladder import Laddered

        return Laddered.of(self)

    def exchanged(self) -> Run:
        """The run with the two conditions of its interchange as headline, and that part's n and
        interval: so names, colours, certificate and captions are theirs. `NotMeasured` without
        one."""
        found = self.manifest.get("interchange")
        if not found:
            raise NotMeasured("this run has no interchange: make it with `interp patch`")
        return self._about(found, {"matched": found["n"]})

    def climbed(self) -> Run:
        """The same of its ladder, with the numbers of queries that score; a pair of one condition
        and base leaves the headline as it is."""
        found = self.ladder.found
        return self._about(found, {k: n for k, n in found["n"].items() if k != "fitted"})

    def _about(self, found: Mapping[str, Any], counts: Mapping[str, int]) -> Run:
        """The run with a part's pair, numbers of queries and interval."""
        manifest, count = self.manifest, found["interval"]["replicates"]
        pair = {name: found[name] for name in ("condition", "reference")}
        if pair["reference"] is None:
            pair = manifest.get("headline") or {}
        null, control = manifest.get("null_pair") or {}, self.null_control
        kept = any(pair.get(side) == name for side, name in null.items() if name != control)
        changes = {
            "headline": pair or None,
            "null_pair": null if kept else None,
            "queries": {**manifest.get("queries", {}), **counts},
            "interval": {**manifest["interval"], "replicates": count} if count else None,
        }
        other = replace(self, manifest={**manifest, **changes})
        other.__dict__["_parts"] = self._parts  # of the same table
        return other

    @property
    def _title(self) -> str:
        model = self.manifest.get("model", {}).get("name", "a model")
        counts = self.manifest.get("queries", {})
        size = ", ".join(f"{count} {group} queries" for group, count in counts.items())
        return f"Run of {model}: {size}"

    def __repr__(self) -> str:
        return f"<{self._title}; {self.verdict().text}; {len(self.table)} rows; {self.path}>"

    def _repr_html_(self) -> str:
        rows = [(name, own.get("description", "")) for name, own in self.conditions.items()]
        signed = [str(c) for c in self.certificates if (c.condition, c.reference) == self.headline]
        kept = [name for name in self.manifest.get("files", {}) if "/" not in name]
        shown = HtmlTable(("condition", "what it is"), rows)
        return html_page(self._title, shown, *signed, f"{self.path}: {', '.join(kept)}")


def of_pair(frame: pd.DataFrame, pair: Pair) -> pd.DataFrame:
    """The rows of one pair."""
    return frame[_is_of(frame, pair).fillna(False)]


def _is_of(frame: pd.DataFrame, pair: Pair) -> pd.Series:
    condition, reference = pair
    given = frame["reference"]
    same = given.isna() if reference is None else given == reference
    return (frame["condition"] == condition) & same


def load_run(path: str | Path) -> Run:
    """Open a run folder; every file the manifest names must be there and have its sha256."""
    import pandas as pd
    import xarray as xr
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    root = Path(path)
    manifest = files.read_manifest(root)
    for name, expected in manifest["files"].items():
        file = root / name
        if not file.is_file():
            raise RunError(f"{file} is missing; run `interp diverge` again")
        if files.sha256(file) != expected:
            raise RunError(f"{file} has changed since the run (sha256 differs); run it again")
    try:  # what was sealed over files that were damaged already
        values = load_file(root / files.ARRAYS)
        arrays = {
            name: xr.DataArray(values[name], dims=label["dims"], coords=label["coords"], name=name)
            for name, label in manifest["arrays"].items()
        }
        named = (files.TABLE, *files.ADDED)
        tables = [pd.read_parquet(root / name) for name in named if name in manifest["files"]]
        table = pd.concat([one.astype(files.COLUMNS) for one in tables], ignore_index=True)
    except (OSError, ValueError, TypeError, LookupError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{root} is damaged ({reason}); run `interp diverge` again") from error
    return Run(root, table, arrays, manifest)
