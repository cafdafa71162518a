"""One head, closely: what a run keeps of its most divergent head, and `interp head` shows.

view = HeadView.of(load_run("RUN"))
view.narrowed(run).most_attended(each=5)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from interp.errors import ConfigError
from interp.names import Head
from interp.runs.view import Run
from interp.showing import HtmlTable, html_page

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr


@dataclass(frozen=True)
class HeadView:
    """One head, closely: what `interp head` shows and a run keeps of its most divergent head.

    `patterns`: float32 `[condition, query, query_pos, 1 + key_pos]`, a few example queries; column
    0 is the mass on everything before the query (`prefix_mass`), the rest the query's own keys;
    NaN past a query's end. `tokens`: the example queries' tokens. `content_js`: nats
    `[pair, query]` over all queries, `pairs` are (condition, reference). `attended`: rows with
    `condition, token, where ("prefix" or "query"), position, mass`, most attended first, `mass`
    averaged over the last tokens of the queries that `over` names. `texts`: the example queries
    as they were written.
    """

    head: Head
    conditions: list[str]
    pairs: list[tuple[str, str]]
    tokens: list[list[str]]
    patterns: np.ndarray
    content_js: np.ndarray
    attended: list[dict[str, Any]]
    over: str = "mean over all queries"
    texts: tuple[str, ...] = ()

    @property
    def labels(self) -> list[str]:
        """The example queries as they were written; their tokens joined where that is not known."""
        return list(self.texts) or ["".join(tokens) for tokens in self.tokens]

    def _repr_html_(self) -> str:
        rows = [
            (name, self._attended(name), f"{self.patterns[i, 0, len(self.tokens[0]) - 1, 0]:.3f}")
            for i, name in enumerate(self.conditions)
        ]
        head = ("condition", "most attended, with mean attention", "before the query")
        note = f"before the query: by the last token of “{self.labels[0]}”"
        return html_page(f"Head {self.head}", HtmlTable(head, rows), note)

    def _attended(self, condition: str, most: int = 3) -> str:
        mine = [row for row in self.attended if row["condition"] == condition]
        return ", ".join(f"{row['token']} {row['mass']:.3f}" for row in mine[:most])

    def arrays(self) -> dict[str, xr.DataArray]:
        """The arrays a run keeps; the rest goes into the manifest under `head_view`."""
        import xarray as xr

        names = [" | ".join(pair) for pair in self.pairs]
        return {
            "head_pattern": xr.DataArray(
                self.patterns,
                dims=("condition", "query", "query_pos", "key"),
                coords={"condition": self.conditions},
            ),
            "head_content_js": xr.DataArray(
                self.content_js, dims=("pair", "query"), coords={"pair": names}
            ),
        }

    def manifest(self) -> dict[str, Any]:
        """What is not an array."""
        return {
            "head": str(self.head),
            "pairs": [list(pair) for pair in self.pairs],
            "tokens": self.tokens,
            "texts": list(self.texts),
            "attended": self.attended,
        }

    @classmethod
    def of(cls, run: Run) -> HeadView:
        """The head view that a run keeps."""
        kept, patterns = run.manifest["head_view"], run.arrays["head_pattern"]
        return cls(
            head=Head.parse(kept["head"]),
            conditions=patterns["condition"].values.tolist(),
            pairs=[(condition, reference) for condition, reference in kept["pairs"]],
            tokens=kept["tokens"],
            patterns=patterns.values,
            content_js=run.arrays["head_content_js"].values,
            attended=kept["attended"],
            texts=tuple(kept.get("texts", ())),
        )

    @classmethod
    def read(cls, acts: xr.Dataset, head: Head, query: int) -> HeadView:
        """What activations of `Lab.run` hold of a head on one query: patterns and tokens alone.

        What was selected before counts as all there is; a `ConfigError` names it where the
        patterns, the head or the query are not in it.
        """
        import numpy as np

        if "pattern" not in acts or not {"layer", "key", "position"} <= {*map(str, acts.coords)}:
            raise ConfigError('no patterns in here: read them with lab.run(..., sites=["pattern"])')
        whole: Any = acts
        for dim in ("condition", "query", "layer"):
            whole = whole if dim in whole.dims else whole.expand_dims(dim)
        layers, queries = whole["layer"].values.tolist(), whole["query"].values.tolist()
        last = whole.sizes.get("head", 0) - 1
        if head.layer not in layers or head.head > last:
            where = ", ".join(map(str, layers))
            raise ConfigError(f"no head {head}: there are heads 0 to {last} in layers {where}")
        if query not in queries:
            raise ConfigError(f"no query {query}: there are {', '.join(map(str, queries))}")
        one = whole.sel(query=query)
        length = int(one["n_tokens"])
        patterns = one["pattern"].sel(layer=head.layer, key=[0, *range(-length, 0)])
        cells = patterns.isel(head=head.head, position=slice(-length, None))
        return cls(
            head=head,
            conditions=[str(name) for name in whole["condition"].values],
            pairs=[],
            tokens=[[str(token) for token in one["token"].values.ravel()[-length:]]],
            patterns=cells.transpose("condition", "position", "key").values[:, None],
            content_js=np.empty((0, 1)),
            attended=[],
        )

    def narrowed(self, run: Run, most: int = 8) -> HeadView:
        """The view of the headline's two, base and the null's control, where it has more than
        `most` conditions; without a headline, of the first `most`."""
        if len(self.conditions) <= most:
            return self
        main = run.main_conditions
        kept = [c for c in self.conditions if c in main][:most] or self.conditions[:most]
        at = [self.conditions.index(c) for c in kept]
        return replace(
            self,
            conditions=kept,
            patterns=self.patterns[at],
            attended=[row for row in self.attended if row["condition"] in kept],
        )

    def most_attended(self, each: int = 5) -> list[Mapping[str, Any]]:
        """The `each` most attended tokens of every condition, in the conditions' order."""
        kept: list[Mapping[str, Any]] = []
        for condition in self.conditions:
            mine = [row for row in self.attended if row["condition"] == condition]
            kept += sorted(mine, key=lambda row: -row["mass"])[:each]
        return kept
